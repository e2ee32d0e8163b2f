"""What a sender's question waits for: its own reading of the blob, or word that it still goes on (contract §8).

Facts: a reading counts only for those who asked before it began, for what happened to the bytes meanwhile it may not
have seen. Whoever asks during one waits for the next, which all who wait share. A large blob takes longer than an
answer may: then a row keeps since when was asked, the reading goes on, and the same asker, on whatever process, finds
what it came to. That is used once, and for a minute only. What came before what is told by moments, never by a clock
that somebody may set (storage.moments).
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from server.errors import RequestError
from server.integrity.checking import Asks, Checker, Watch
from server.worker import Tasks
from storage import blob_rows, integrity
from storage.moments import Moment, is_after, moment, passed_ns
from storage.records import BlobRecord, now, timestamp
from storage.store import Store

FRESH = timedelta(minutes=1)
"""For how long what a long reading found is an answer to who waited for it."""
WAITS = timedelta(hours=24)
"""For how long it is known that somebody waits."""
AGAIN_S = 5
SEND_AGAIN = "keep your copy and send the file again: create_session/ gives a new session for it"


@dataclass(slots=True)
class _Coming:
    """A reading that waits for its turn: whoever asked until `since` is in time for it."""

    since: Moment
    good: "asyncio.Future[bool] | None" = None


class Readback:
    """Verifies blobs for those who will rely on them."""

    WAIT_S = 10.0

    def __init__(self, store: Store, checker: Checker, tasks: Tasks) -> None:
        self._store = store
        self._checker = checker
        self._tasks = tasks
        self._coming: dict[tuple[str, str], _Coming] = {}

    async def verify(self, site: str, sha256: str, asker: str, asks: str) -> None:
        """Return once the medium gave the right bytes to a reading that began after `asker` asked.

        RequestError `readback_failed`, `readback_running`; StorageError where nothing can be said of the bytes.
        """
        asked = moment()
        waits_since = self._waits_since(sha256, asker)
        if waits_since is not None:
            found = await self._found_since(site, sha256, waits_since)
            if found is not None:
                await self._answer(sha256, asker, good=found)
                return
        since = waits_since or asked
        try:
            async with asyncio.timeout(self.WAIT_S):
                good = await asyncio.shield(self._reading(site, sha256, since, Asks(asks)))
        except TimeoutError:
            forget_before = timestamp(now() - WAITS)
            await self._store.write(lambda tx: integrity.wait(tx, site, sha256, asker, since, forget_before))
            raise RequestError("readback_running", retry_after_s=AGAIN_S) from None
        if waits_since is not None:
            await self._answer(sha256, asker, good=good)
        elif not good:
            raise _failed()

    def _waits_since(self, sha256: str, asker: str) -> Moment | None:
        since = self._store.glance(lambda tx: integrity.waits_since(tx, sha256, asker))
        return since if _is_within(since, WAITS) else None

    async def _answer(self, sha256: str, asker: str, *, good: bool) -> None:
        await self._store.write(lambda tx: integrity.stop_waiting(tx, sha256, asker))
        if not good:
            raise _failed()

    async def _found_since(self, site: str, sha256: str, since: Moment) -> bool | None:
        """What a reading found that began after `since` and ended lately; None where there was none."""
        known: BlobRecord | None = await self._store.read(lambda tx: blob_rows.find(tx, site, sha256))
        if known is None or not is_after(known.read_moment, since) or not _is_within(known.read_moment, FRESH):
            return None
        if known.alarm is not None:
            return False
        return True if is_after(known.verified_moment, since) else None

    def _reading(self, site: str, sha256: str, since: Moment, asks: Asks) -> "asyncio.Future[bool]":
        """The next reading of the blob that begins in this process."""
        key = (site, sha256)
        coming = self._coming.get(key)
        if coming is None:
            coming = self._coming[key] = _Coming(since)
            coming.good = self._tasks.spawn(self._take_turn(key, coming, asks), f"readback-{sha256[:8]}")
        coming.since = max(coming.since, since)
        assert coming.good is not None, "it was spawned with it"
        return coming.good

    async def _take_turn(self, key: tuple[str, str], coming: _Coming, asks: Asks) -> bool:
        site, sha256 = key
        try:
            async with self._checker.alone(site, sha256):
                del self._coming[key]  # whoever asks from now on is late for this one
                found = await self._found_since(site, sha256, coming.since)  # another process may have read meanwhile
                return found if found is not None else await self._checker.read(site, sha256, asks, Watch())
        finally:
            if self._coming.get(key) is coming:
                del self._coming[key]


def _is_within(since: str | None, limit: timedelta) -> bool:
    passed = passed_ns(since)
    return passed is not None and passed <= limit.total_seconds() * 1e9


def _failed() -> RequestError:
    return RequestError("readback_failed", SEND_AGAIN, retry_after_s=60)
