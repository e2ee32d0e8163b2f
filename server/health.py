"""Is it alive, is it ready, does it hold together: `/healthz`, `/readyz`, and the four orphans of `fsck`."""

from dataclasses import dataclass

from sqlalchemy import Connection

from storage import blob_rows, instances, jobs, sessions
from storage.blobs.base import Lists
from storage.errors import StorageError
from storage.store import Store
from storage.triggers import missing_triggers


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests can be served, and what stands in the way."""

    ready: bool
    faults: tuple[str, ...]
    backlog: dict[str, int]


async def readiness(store: Store) -> Readiness:
    """Ask the database; dropped triggers are a fault (contract §9)."""
    try:
        dropped, backlog = await store.read(lambda tx: (missing_triggers(tx), jobs.backlog(tx)))
    except StorageError as error:
        return Readiness(False, (f"the database does not answer: {error}",), {})
    return Readiness(not dropped, tuple(f"the trigger {name} is gone" for name in dropped), backlog)


@dataclass(frozen=True, slots=True)
class Orphans:
    """The four that must be zero (contract §6), and files that no row names, which clean-up takes away."""

    blobs_without_owner: int
    synced_without_image: int
    images_without_series: int
    sop_instances_twice: int
    files_without_row: int

    @property
    def is_sound(self) -> bool:
        """Whether all four are zero."""
        return not any((self.blobs_without_owner, self.synced_without_image, self.images_without_series,
                        self.sop_instances_twice))


async def count_orphans(store: Store) -> Orphans:
    """Count them; a blob row whose file is missing counts as a session without its blob."""

    def unit(tx: Connection) -> tuple[int, int, int, int, set[tuple[str, str]]]:
        return (len(blob_rows.without_owner(tx)), sessions.synced_without_image(tx),
                instances.dicom_without_series(tx), instances.live_twins(tx), blob_rows.keys(tx))

    unowned, without_image, without_series, twice, rows = await store.read(unit)
    files: set[tuple[str, str]] = set()
    if isinstance(store.blobs, Lists):
        files = {(key.site, key.name) async for key in store.blobs.keys("sealed")}
    return Orphans(unowned, without_image + len(rows - files), without_series, twice, len(files - rows))
