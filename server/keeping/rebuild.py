"""Makes Study, Series and Image rows anew from the blobs alone, each through the one ingest. Makes no session.

For the day on which the database is lost and no backup is left. Facts: a blob is taken once it has been read whole and
is what its address says; each leaves an arrival that owns it, so a second run goes on where the first was cut short,
and changes nothing where it was not. Not in the blobs, and so gone: sessions and their receipts' rows, what was
acknowledged, the audit chain, orders and links to them, tokens, file names, who sent what, the image ids of before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from server.errors import AppError, SessionFailure
from server.filing import Files, Inspection, Origin
from storage import audit, blob_rows, instances, inventory
from storage.blobs.base import BlobKey, Lists
from storage.errors import StorageError
from storage.records import AuditEntry, Door, Sha256
from storage.store import Store

ACTOR = "command line"
DAMAGED = "damaged"


@dataclass(slots=True)
class Rebuilt:
    """How far it is: blobs looked at, images made, blobs known before, blobs that are no image of their own."""

    seen: int = 0
    images: int = 0
    known: int = 0
    others: dict[str, int] = field(default_factory=dict)

    def note(self, outcome: str) -> None:
        """One blob more that came to `outcome`."""
        self.others[outcome] = self.others.get(outcome, 0) + 1


class Rebuilder:
    """Walks the sealed blobs; `files` is the one door into the PACS, with nothing forwarded and nothing refused."""

    def __init__(self, store: Store, files: Files) -> None:
        self._store = store
        self._files = files
        self.done = Rebuilt()

    async def run(self, told: Callable[[Rebuilt], None]) -> Rebuilt:
        """File every blob, telling how far it is. AppError where the database has sessions: it is no fresh one."""
        if await self._store.read(inventory.holds_sessions):
            raise AppError("this database holds sessions: rebuild-index works on a fresh one, beside the blobs; to "
                           "mend what is here, run packhorse fsck --repair, or restore a backup")
        assert isinstance(self._store.blobs, Lists), "the only store so far keeps files"
        async for key in self._store.blobs.keys("sealed"):
            self.done.seen += 1
            told(self.done)
            if await self._store.read(lambda tx, key=key: instances.has_arrival(tx, key.site, key.name)):  # type: ignore[misc]
                self.done.known += 1
            else:
                await self._file(key)
        entry = AuditEntry("default", "index.rebuilt", ACTOR, detail={
            "seen": self.done.seen, "images": self.done.images, "known": self.done.known, **self.done.others})
        await self._store.write(lambda tx: audit.append(tx, entry))
        return self.done

    async def _file(self, key: BlobKey) -> None:
        sha256, origin = Sha256(key.name), Origin(key.site, Door.REBUILT, ACTOR, claims_dicom=False)
        try:
            if await self._store.blobs.digest(key) != sha256:
                return self.done.note(DAMAGED)
            size_bytes = await self._store.blobs.size(key)
        except StorageError:
            return self.done.note(DAMAGED)
        try:
            inspected: Inspection | SessionFailure = await self._files.inspect(sha256, size_bytes, origin)
        except SessionFailure as failure:
            inspected = failure
        outcome = await self._store.write(lambda tx: self._rows(tx, origin, sha256, size_bytes, inspected))
        if outcome == "STORED":
            self.done.images += 1
        else:
            self.done.note(outcome)

    def _rows(
        self, tx: Connection, origin: Origin, sha256: Sha256, size_bytes: int, inspected: Inspection | SessionFailure
    ) -> str:
        blob_rows.add(tx, origin.site, sha256, size_bytes)
        image_id, uid, outcome = None, None, "STORED"
        if isinstance(inspected, SessionFailure):
            outcome = inspected.code
        else:
            filed = self._files.file(tx, inspected, origin)
            if filed.image is not None:
                image_id, uid = filed.image.id, filed.image.sop_instance_uid
                outcome = "DUPLICATE" if filed.deduplicated else "STORED"
            elif filed.failure is not None:
                outcome = filed.failure.code
        instances.add_arrival(
            tx, site=origin.site, door=origin.door, sop_instance_uid=uid, blob_sha256=sha256, image_id=image_id,
            outcome=outcome)
        return outcome
