"""What `fsck` finds that does not hang together, case by case, and the remedy where there is a safe one.

Contract §6 counts four orphans; files that no row names, and rows that are gone though the audit tells of them, come on
top. Blobs whose file is gone or cut raise the alarm as soon as they are counted (server/integrity), which sending the
file again closes. No remedy takes the last copy of anything away: sealed bytes are freed by clean-up only, a day after
nobody owns them, and a stored session stays stored, with the alarm raised. What can be mended in two ways is named, and
left to a person. Each remedy is audited.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection

from storage import audit, blob_rows, instances, inventory, repairs
from storage.blobs.base import Ages, BlobKey, Lists, sealed
from storage.errors import NotFound, StorageError
from storage.inventory import KeptBlob, LooseImage, StoredSession, Twins
from storage.records import AuditEntry, now
from storage.store import Store

ACTOR = "command line"
GRACE_S = 24 * 3600.0
"""How long nobody must have owned bytes before they are freed (contract §1)."""

GIVES_ROW_AGAIN = "the file is there: it is read, and gets its row again if it is whole"

Attributes = tuple[str, str, dict[str, str], dict[str, str]]
"""(Study Instance UID, Series Instance UID, what the study shows, what the series shows) of a DICOM file."""
ReadAttributes = Callable[[Path], Attributes]


class Kind(StrEnum):
    """What does not hang together."""

    FILE_WITHOUT_ROW = "file without row"
    ROW_LOST = "file whose row was lost"
    BLOB_WITHOUT_OWNER = "blob without owner"
    SESSION_WITHOUT_BLOB = "stored session without its blob"
    SESSION_WITHOUT_IMAGE = "stored session without its image"
    IMAGE_WITHOUT_SERIES = "image without series"
    LIVE_TWINS = "two live images"
    GONE = "row that the audit tells of"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that does not hang together. `remedy` says what repairing does, or what a person has to decide.

    `mend` does it and tells whether that was still needed; None where only a person can.
    """

    kind: Kind
    subject: str
    remedy: str
    mend: Callable[[], Awaitable[bool]] | None

    @property
    def is_orphan(self) -> bool:
        """Whether it is never as it should be; files that no row names yet come and go."""
        return self.kind is not Kind.FILE_WITHOUT_ROW


class Repairer:
    """Finds the cases; `read_attributes` reads a DICOM file for the series of its image."""

    def __init__(self, store: Store, path_of: Callable[[BlobKey], Path], read_attributes: ReadAttributes) -> None:
        self._store = store
        self._path_of = path_of
        self._read_attributes = read_attributes

    async def cases(self) -> AsyncIterator[Case]:
        """Every case; mending one while they are given is safe."""
        sizes = await self._files()
        rows = await self._store.read(blob_rows.keys)
        for site, sha256 in await self._store.read(blob_rows.without_owner):
            yield self._without_owner(site, sha256)
        told = set()
        for session in await self._store.read(inventory.stored_sessions_without_rows):
            told.add((session.site, session.blob_sha256))
            yield self._session(session, sizes)
        for loose in await self._store.read(inventory.images_without_series):
            yield self._loose(loose)
        for twins in await self._store.read(inventory.live_twins):
            yield self._twins(twins)
        for subject in await self._store.read(inventory.told_of_and_gone):
            yield Case(Kind.GONE, subject, "a person: somebody opened the lock on history, for no such row is ever "
                       "deleted: run packhorse audit verify, find out who it was, and restore a backup", None)
        for site, sha256 in sizes.keys() - rows:
            if not await self._store.read(lambda tx, site=site, sha256=sha256: blob_rows.is_owned(tx, site, sha256)):  # type: ignore[misc]
                yield await self._without_row(sealed(site, sha256))
            elif (site, sha256) not in told:
                yield self._row_lost(site, sha256, sizes[site, sha256])

    async def _files(self) -> dict[tuple[str, str], int]:
        """The size of every sealed file, in bytes."""
        found = {}
        if isinstance(self._store.blobs, Lists):
            async for key in self._store.blobs.keys("sealed"):
                try:
                    found[key.site, key.name] = await self._store.blobs.size(key)
                except NotFound:
                    continue  # clean-up took it meanwhile
        return found

    async def _without_row(self, key: BlobKey) -> Case:
        subject = f"blob/{key.name}"
        born_at = await self._store.read(inventory.born_at)
        age_s = await self._store.blobs.age_s(key) if isinstance(self._store.blobs, Ages) else 0.0
        if born_at is None or age_s > (now() - datetime.fromisoformat(born_at)).total_seconds():
            return Case(Kind.FILE_WITHOUT_ROW, subject, "a person: it was here before this database was, so the one "
                        "that named it was lost: restore a backup, or run packhorse rebuild-index", None)
        if age_s <= GRACE_S:
            return Case(Kind.FILE_WITHOUT_ROW, subject, "none: clean-up frees it when a day has passed", None)

        async def mend() -> bool:
            def unit(tx: Connection) -> BlobKey | None:
                freed = self._store.take_back(tx, key, GRACE_S)
                if freed is not None:
                    _note(tx, key.site, Kind.FILE_WITHOUT_ROW, subject)
                return freed

            freed = await self._store.write(unit)
            if freed is not None:
                await self._store.blobs.delete(freed)
            return freed is not None

        return Case(Kind.FILE_WITHOUT_ROW, subject, "it is freed", mend)

    def _without_owner(self, site: str, sha256: str) -> Case:
        async def mend() -> bool:
            done = await self._mended(
                site, Kind.BLOB_WITHOUT_OWNER, f"blob/{sha256}", lambda tx: repairs.disown(tx, site, sha256))
            if done and isinstance(self._store.blobs, Ages):
                await self._store.blobs.renew(sealed(site, sha256))  # its day of grace begins now
            return done

        return Case(Kind.BLOB_WITHOUT_OWNER, f"blob/{sha256}",
                    "its row is taken away, and clean-up frees its bytes in a day", mend)

    def _alarm(self, found: KeptBlob, why: str) -> Case:
        subject = f"blob/{found.sha256}"

        async def mend() -> bool:
            return await self._mended(found.site, Kind.SESSION_WITHOUT_BLOB, subject,
                                      lambda tx: repairs.doubt(tx, found, why))

        return Case(Kind.SESSION_WITHOUT_BLOB, subject,
                    f"{why}: the integrity alarm is raised, and sending the same file again mends it", mend)

    def _session(self, lost: StoredSession, sizes: dict[tuple[str, str], int]) -> Case:
        if not lost.has_image:
            return Case(Kind.SESSION_WITHOUT_IMAGE, lost.session_id, "a person: restore a backup from before", None)
        assert lost.blob_sha256 is not None, "it was said to be stored"
        size = sizes.get((lost.site, lost.blob_sha256))
        found = KeptBlob(lost.site, lost.blob_sha256, lost.size_bytes if lost.size_bytes is not None else size or 0)
        if size is None:
            return self._alarm(found, "the row and the file are gone")

        return Case(Kind.SESSION_WITHOUT_BLOB, lost.session_id, GIVES_ROW_AGAIN,
                    lambda: self._tell_of(Kind.SESSION_WITHOUT_BLOB, lost.session_id, found, size))

    def _row_lost(self, site: str, sha256: str, size: int) -> Case:
        subject, found = f"blob/{sha256}", KeptBlob(site, sha256, size)
        return Case(Kind.ROW_LOST, subject, GIVES_ROW_AGAIN,
                    lambda: self._tell_of(Kind.ROW_LOST, subject, found, size))

    async def _tell_of(self, kind: Kind, subject: str, found: KeptBlob, size: int) -> bool:
        """Read the file, of that size now, and give it its row again: with the alarm where it is not `found`."""
        try:
            digest = await self._store.blobs.digest(sealed(found.site, found.sha256))
        except StorageError:
            return False
        if digest != found.sha256:
            return await self._mended(found.site, kind, subject, lambda tx: repairs.doubt(
                tx, found, "the bytes are not those that were stored"))
        whole = KeptBlob(found.site, found.sha256, size)
        return await self._mended(found.site, kind, subject, lambda tx: repairs.tell_of(tx, whole))

    def _loose(self, loose: LooseImage) -> Case:
        subject = f"image/{loose.image_id}"

        async def mend() -> bool:
            try:
                await self._store.blobs.size(sealed(loose.site, loose.blob_sha256))  # NotFound also for what is no file
                study, series, *attributes = self._read_attributes(
                    self._path_of(sealed(loose.site, loose.blob_sha256)))
            except (OSError, ValueError, NotFound):
                return False
            if (study, series) != (loose.study_instance_uid, loose.series_instance_uid):
                return False
            return await self._mended(loose.site, Kind.IMAGE_WITHOUT_SERIES, subject,
                                      lambda tx: repairs.hang(tx, loose, *attributes))

        return Case(Kind.IMAGE_WITHOUT_SERIES, subject,
                    "its series is made again from the image's own header, if that names the same UIDs", mend)

    def _twins(self, twins: Twins) -> Case:
        ids = ", ".join(str(image_id) for image_id, _ in twins.images)
        (first, digest), *others = twins.images
        if digest is None or any(other != digest for _, other in others):
            return Case(Kind.LIVE_TWINS, twins.sop_instance_uid, f"a person: images {ids} have one SOP Instance UID "
                        "and different content: choose the right one, and reject the other", None)

        def unit(tx: Connection) -> bool:
            if twins not in inventory.live_twins(tx):
                return False
            for image_id, _ in others:
                instances.supersede(tx, image_id, by=first)
            return True

        async def mend() -> bool:
            return await self._mended(twins.site, Kind.LIVE_TWINS, twins.sop_instance_uid, unit)

        return Case(Kind.LIVE_TWINS, twins.sop_instance_uid,
                    f"images {ids} hold the same data set: {first} stays, the others are superseded by it", mend)

    async def _mended(self, site: str, kind: Kind, subject: str, work: Callable[[Connection], bool]) -> bool:
        def unit(tx: Connection) -> bool:
            done = work(tx)
            if done:
                _note(tx, site, kind, subject)
            return done

        return await self._store.write(unit)


def _note(tx: Connection, site: str, kind: Kind, subject: str) -> None:
    audit.append(tx, AuditEntry(site, "fsck.repaired", ACTOR, subject, detail={"kind": kind}))
