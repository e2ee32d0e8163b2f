"""Is it alive, is it ready, does it hold together: `/healthz`, `/readyz`, and the four orphans of `fsck`."""

from dataclasses import dataclass

from sqlalchemy import Connection

from storage import blob_rows, instances, jobs, sessions
from storage.blobs.base import BlobKey, Lists, sealed
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
