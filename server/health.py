"""Is it ready, does it hold together: what is wrong for `/readyz`, and the four orphans of `fsck`."""

import asyncio
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from storage import blob_rows, clock, figures, instances, jobs, sessions
from storage.blobs.base import BlobKey, Lists, sealed
from storage.errors import StorageError
from storage.records import now
from storage.store import Store
from storage.triggers import missing_triggers, said_of

WRITER_S = 3.0
STUCK_S = 300.0
CLOCK_AHEAD, CLOCK_BEHIND = timedelta(hours=1), timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong, and what to do. `stops`: until then no request should be sent here."""

    code: str
    detail: str
    advice: str
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is wrong, and how many jobs wait by kind."""

    faults: tuple[Fault, ...]
    backlog: dict[str, int]

    @property
    def ready(self) -> bool:
        """Whether requests can be served."""
        return not any(fault.stops for fault in self.faults)


async def readiness(store: Store, disk: Path, reserve_bytes: int, head_fault: str | None) -> Readiness:
    """Look at the database, its triggers (contract §9), writer, jobs and clock, at alarms, and at the disk.

    `head_fault`: why the audit's signed head is not kept up.
    """

    def look(tx: Connection) -> tuple[list[str], dict[str, figures.Queue], int, str | None, dict[str, int]]:
        return (missing_triggers(tx), figures.queues(tx), figures.alarms(tx), clock.believed(tx),
                jobs.backlog(tx))

    try:
        dropped, queues, alarms, believed, backlog = await store.read(look)
    except StorageError as error:
        return Readiness((Fault("database_silent", f"the database does not answer: {error}",
                                "look at the disk that it is on, and at the log", stops=True),), {})
    faults = [*map(_trigger, dropped), await _writer(store), await asyncio.to_thread(_disk, disk, reserve_bytes),
              *map(_stuck, queues, queues.values()), _clock(believed), _alarms(alarms), _head(head_fault)]
    return Readiness(tuple(fault for fault in faults if fault is not None), backlog)


def _trigger(name: str) -> Fault:
    return Fault("trigger_gone", said_of(name),
                 "somebody opened the lock on history: find out who, and run packhorse audit verify; then "
                 "packhorse fsck --repair makes it anew", stops=True)


async def _writer(store: Store) -> Fault | None:
    """A transaction that changes nothing waits as long for the writer as any other."""
    try:
        async with asyncio.timeout(WRITER_S):
            await store.write(lambda _: None, light=True)
    except (TimeoutError, StorageError):
        return Fault("writer_behind", f"a transaction waits for more than {WRITER_S:g} s, or fails",
                     "the disk of the database is too slow or too busy, or full: look at packhorse_commit_seconds",
                     stops=True)
    return None


def _disk(disk: Path, reserve_bytes: int) -> Fault | None:
    free = shutil.disk_usage(disk).free
    if free >= max(reserve_bytes, 1):
        return None
    return Fault("disk_below_reserve", f"{free} bytes are left of the {reserve_bytes} that are kept in reserve",
                 "uploads are refused until there is room: free some, or give the disk more")


def _stuck(kind: str, queue: figures.Queue) -> Fault | None:
    if queue.oldest_s < STUCK_S:
        return None
    return Fault("jobs_stuck", f"a job of kind {kind} has been due for {queue.oldest_s:.0f} s",
                 "does a process that does jobs run? The log tells what it is at")


def _clock(believed: str | None) -> Fault | None:
    ahead = now() - datetime.fromisoformat(believed) if believed is not None else timedelta(0)
    if -CLOCK_BEHIND < ahead <= CLOCK_AHEAD:
        return None
    way = "ahead of" if ahead > CLOCK_AHEAD else "behind"
    return Fault("clock_distrusted", f"the clock is {abs(ahead.total_seconds()):.0f} s {way} what was believed last",
                 "no upload expires until the clock has run evenly for an hour, or has caught up: set it right")


def _head(why: str | None) -> Fault | None:
    if why is None:
        return None
    return Fault("audit_head", f"the signed head of the audit chain: {why}",
                 "run packhorse audit verify, and look at what it names, or at the disk of the head")


def _alarms(count: int) -> Fault | None:
    if not count:
        return None
    return Fault("integrity_alarms", f"the stored bytes of {count} files are damaged or missing",
                 "packhorse scrub --list names them: whoever still has a copy sends it again; look at the disk")


@dataclass(frozen=True, slots=True)
class Orphans:
    """The four that must be zero (contract §6), and files that no row names, which clean-up takes away.

    `blobs_gone` and `blobs_cut` have a row and no file, or one of another size: what needs them is without its blob.
    """

    blobs_without_owner: int
    synced_without_image: int
    blobs_gone: tuple[BlobKey, ...]
    blobs_cut: tuple[BlobKey, ...]
    images_without_series: int
    sop_instances_twice: int
    files_without_row: int

    @property
    def is_sound(self) -> bool:
        """Whether all four are zero."""
        return not any((self.blobs_without_owner, self.synced_without_image, self.blobs_gone, self.blobs_cut,
                        self.images_without_series, self.sop_instances_twice))


async def count_orphans(store: Store) -> Orphans:
    """Count them; rows first, so that what is stored meanwhile is a file without a row, and never the other way."""

    def unit(tx: Connection) -> tuple[int, int, int, int, dict[tuple[str, str], int]]:
        return (len(blob_rows.without_owner(tx)), sessions.synced_without_image(tx),
                instances.dicom_without_series(tx), instances.live_twins(tx), blob_rows.sizes(tx))

    unowned, without_image, without_series, twice, rows = await store.read(unit)
    files: dict[tuple[str, str], int] = {}
    if isinstance(store.blobs, Lists):
        files = {(key.site, key.name): size async for key, size in store.blobs.sizes("sealed")}
    gone = tuple(sealed(*row) for row in sorted(rows.keys() - files.keys()))
    cut = tuple(sealed(*row) for row in sorted(rows.keys() & files.keys()) if files[row] != rows[row])
    return Orphans(unowned, without_image, gone, cut, without_series, twice, len(files.keys() - rows.keys()))
