"""Reads every blob again, slowly and in turn, so that rot is found before anybody needs the bytes.

A scrub knows no place of its own: it reads what nobody has read for long enough, so it goes on after a crash where it
was, several share the work, and what an ACK has read is not read again.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

from server.integrity.checking import Asks, Checker, Pace
from storage import audit, integrity
from storage.records import DEFAULT_SITE, AuditEntry, BlobRecord, now, timestamp
from storage.store import Store

BATCH = 5000
MIB = 1024 * 1024
SWEEP_S = 600.0
OTHERS_READ_S = 0.5
"""How long to wait where all that is left is being read by others."""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub came to: how much it read, and how many of these blobs are not as they were stored."""

    blobs: int
    size_bytes: int
    damaged: int


class Scrubber:
    """Scrubs `mib_per_s` MiB a second; `every_days` says how long a blob may be left alone, 0 for ever."""

    def __init__(self, store: Store, checker: Checker, *, mib_per_s: float, every_days: float) -> None:
        self._store = store
        self._checker = checker
        self._pace = Pace(mib_per_s * MIB)
        self._left_alone = timedelta(days=every_days)

    @property
    def period_s(self) -> float | None:
        """How often to `sweep`, in seconds: a tenth of what is promised, at most SWEEP_S; None for never."""
        seconds = self._left_alone.total_seconds()
        return max(1.0, min(SWEEP_S, seconds / 10)) if seconds else None

    async def sweep(self) -> None:
        """Read what was left alone for too long."""
        await self.scrub(timestamp(now() - self._left_alone))

    async def scrub(self, before: str) -> Scrubbed:
        """Read every blob that was sealed and last read before that moment; raises the alarms."""
        began_s, blobs, size_bytes, damaged = time.monotonic(), 0, 0, 0
        most = await self._store.read(lambda tx: integrity.count_unread_since(tx, before))
        while blobs < most:  # if the clock is set back meanwhile, what was read seems to be unread
            batch = await self._store.read(lambda tx: integrity.unread_since(tx, before, BATCH))
            if not batch:
                break
            found = [(one, good) for one in batch if (good := await self._read(one)) is not None]
            blobs += len(found)
            size_bytes += sum(one.size_bytes for one, _ in found)
            damaged += sum(not good for _, good in found)
            if not found:
                await asyncio.sleep(OTHERS_READ_S)
        if blobs:
            entry = AuditEntry(DEFAULT_SITE, "integrity.scrubbed", detail={
                "blobs": blobs, "size_bytes": size_bytes, "damaged": damaged,
                "seconds": round(time.monotonic() - began_s)})
            await self._store.write(lambda tx: audit.append(tx, entry))
        return Scrubbed(blobs, size_bytes, damaged)

    async def _read(self, one: BlobRecord) -> bool | None:
        return await self._checker.check_if_free(one.site, one.sha256, Asks.SCRUB, self._pace)
