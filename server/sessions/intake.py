"""Answers the upload protocols: admits uploads, says who may use them, and what their end means."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import Connection

from server.admission import Admission, NewUpload, Standing, Taken, Unit, Verdict
from server.auth import Principal, Role
from server.bodies import parse
from server.errors import RequestError, SessionFailure
from server.filing import Origin
from server.identifiers import OutsideId, parse_text_id
from server.sessions import creation, machine
from server.sessions.completion import Completion, claims_dicom
from server.sessions.moves import fail
from server.sessions.schema import CreateSession, NewSession
from storage import audit, orders, sessions, uploads
from storage.blobs.base import Measures, Piece, Sealed, Span, boot_id, staging
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound
from storage.records import (
    AuditEntry,
    Door,
    SessionRecord,
    Sha256,
    Status,
    UploadRecord,
    UploadState,
    new_id,
    now,
    timestamp,
)
from storage.store import Store


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """Limits of what comes in, sizes in bytes; the last two hold per principal."""

    max_size_bytes: int
    expires_after: timedelta
    max_open: int
    max_staged_bytes: int


class Intake:
    """The UploadPolicy of the sessions."""

    def __init__(
        self, store: Store, completion: Completion, name_order: creation.NameOrder, settings: IntakeSettings
    ) -> None:
        self._store = store
        self._measures = store.blobs if isinstance(store.blobs, Measures) else None
        self._completion = completion
        self._name_order = name_order
        self._settings = settings

    # --- creation -----------------------------------------------------------------------------------

    async def admit(self, new: NewUpload, who: Principal) -> Admission:
        """Find or make the session of an upload, and hand the upload out."""
        who.require(Role.UPLOADER)
        room_bytes = await self._room_bytes()
        if new.upload_concat == "partial":
            return await self._admit_part(new, who, room_bytes)
        values = _texts(new)
        wanted = _new_session(new, values)

        def unit(tx: Connection) -> creation.Handed | SessionRecord:
            record, made = self._session_of(tx, new, values.get("session_id"), wanted, who)
            if made:
                self._check_limits(tx, who, new.length_bytes, room_bytes)
                return creation.attach(tx, record, who, self._spare(record, new, who), new.part_ids, new.peer)
            upload = uploads.live(tx, record.session_id)
            if record.status in machine.STORED and upload is not None:
                return creation.Handed(record, upload, new=False)
            if record.retry_count or (upload is not None and not _goes_on(upload, new, is_creation=True)):
                return record  # a lost upload may have a good prefix, and one of other bytes must be ended
            spare = self._spare(record, new, who)
            if upload is None:
                self._check_limits(tx, who, spare.length_bytes, room_bytes)
            return creation.hand_out(tx, record, who, spare, new.part_ids, new.peer)

        # light: whatever flushes its bytes flushes this too, and a URL without bytes is soon made again
        handed = await self._store.write(unit, light=True)
        if isinstance(handed, SessionRecord):
            handed = await self.hand_out(handed, who, new, is_creation=True)
        return Admission(handed.upload, handed.new)

    async def admit_whole(
        self, new: NewUpload, who: Principal, content: bytes, first: Callable[[Connection, UploadRecord], None]
    ) -> Taken | None:
        """Seal the content first, then make, finish and file in one transaction; nothing stays if that cannot be."""
        who.require(Role.UPLOADER)
        values = _texts(new)
        wanted, spare = _new_session(new, values), self._spare(None, new, who)
        room_bytes = await self._room_bytes()

        def is_plainly_new(tx: Connection) -> bool:
            if not self._is_plainly_new(tx, wanted, who):
                return False
            self._check_limits(tx, who, len(content), room_bytes)
            return True

        if not self._store.glance(is_plainly_new):
            return None
        key, expected = staging(spare.site, spare.upload_id), Sha256(wanted.checksum_sha256 or "") or None
        try:
            content_sealed = await self._store.blobs.seal(key, expected, Piece(0, content))
            inspected = await self._completion.inspect(content_sealed, Origin(
                who.site, Door.TUS, who.name, claims_dicom(wanted.file_name, wanted.content_type)))
        except (DigestMismatch, NoSpace, FlushFailed, NotFound):  # not found: clean-up took what had lain there
            await self._store.blobs.delete(key)
            return None

        def unit(tx: Connection) -> Taken | None:
            record, made = self._session_of(tx, new, values.get("session_id"), wanted, who)
            if not made:
                raise Conflict("it is known already")
            self._check_limits(tx, who, len(content), room_bytes=None)  # its bytes are here
            upload = replace(spare, session_id=record.session_id)
            creation.attach(tx, record, who, upload, (), new.peer)
            first(tx, upload)
            return Taken(upload, self._completion.at_once(tx, upload, record, content_sealed, inspected, new.peer))

        try:
            taken = await self._store.write(unit)
        except Conflict:
            return None  # the staged name stays: by it the next start finds bytes that were sealed for nobody
        self._store.blobs.discard(key)
        self._completion.on_stored()
        return taken

    def _is_plainly_new(self, tx: Connection, wanted: NewSession, who: Principal) -> bool:
        """Whether nothing speaks against making the session, so that bytes may be sealed before it is made."""
        key = creation.dedup_key(wanted, who)
        if key is not None and sessions.by_dedup_key(tx, key) is not None:
            return False
        if wanted.session_id is not None and sessions.find(tx, who.site, wanted.session_id) is not None:
            return False
        visit = wanted.visit_id.text if wanted.visit_id else None
        if wanted.radiology_order_id is not None:
            order = orders.find(tx, who.site, wanted.radiology_order_id.text)
            if order is not None and visit not in (None, order.visit_id):
                return False
            visit = order.visit_id if order is not None else visit
        return who.sees_visit(visit)

    async def check_room(self, size_bytes: int) -> None:
        """RequestError `file_too_large`, or `insufficient_storage` for what cannot fit now."""
        self._check_size(size_bytes, await self._room_bytes())

    async def _room_bytes(self) -> int | None:
        """What the store can still take, in bytes; None where it cannot tell."""
        return await self._measures.room_bytes() if self._measures is not None else None

    def _check_size(self, size_bytes: int, room_bytes: int | None) -> None:
        if size_bytes > self._settings.max_size_bytes:
            raise RequestError("file_too_large", f"at most {self._settings.max_size_bytes} bytes are taken")
        if room_bytes is not None and size_bytes > room_bytes:
            raise RequestError("insufficient_storage", "it would not fit on the disk now", retry_after_s=300)

    async def _admit_part(self, new: NewUpload, who: Principal, room_bytes: int | None) -> Admission:
        part = self._spare(None, new, who)

        def unit(tx: Connection) -> None:
            self._check_limits(tx, who, part.length_bytes, room_bytes)
            uploads.add(tx, part)
            audit.append(tx, AuditEntry(who.site, "upload.created", who.name, part.upload_id, new.peer,
                                        detail={"upload_id": part.upload_id, "offset": 0, "partial": True}))

        await self._store.write(unit)
        return Admission(part, created=True)

    def _check_limits(
        self, tx: Connection, who: Principal, length_bytes: int | None, room_bytes: int | None
    ) -> None:
        """Just before an upload's row is made, and not for one that was there before (contract §5)."""
        if length_bytes is not None:
            self._check_size(length_bytes, room_bytes)
        count, claimed_bytes = uploads.open_count(tx, who.name)
        passes = claimed_bytes + (length_bytes or 0) > self._settings.max_staged_bytes
        if count >= self._settings.max_open or passes:
            raise _too_many(count)

    def _session_of(
        self, tx: Connection, new: NewUpload, session_id: str | None, wanted: NewSession, who: Principal
    ) -> tuple[SessionRecord, bool]:
        """The session, and whether it was made now."""
        if session_id and sessions.find(tx, who.site, session_id) is not None:
            return self._existing(tx, new, session_id, who), False
        created = creation.create(tx, wanted, who, self._name_order, new.peer, for_bytes=True)
        if created.hint == "retry":
            return creation.retry(tx, created.session, who, new.peer), False
        return created.session, created.new

    def _existing(self, tx: Connection, new: NewUpload, session_id: str, who: Principal) -> SessionRecord:
        record = creation.see(tx, session_id, who)
        told = new.length_bytes is not None and new.content_encoding is None
        if told and record.file_size not in (None, new.length_bytes):
            raise RequestError("session_conflict", f"the session's file has {record.file_size} bytes",
                               session_id=record.session_id, fields=["file_size"])
        return creation.retry(tx, record, who, new.peer) if record.status is Status.FAILED else record

    async def hand_out(
        self, record: SessionRecord, who: Principal, new: NewUpload, *, is_creation: bool = False
    ) -> creation.Handed:
        """The session's upload; one that begins with a good prefix has those bytes before the row that names it.

        An upload that takes other bytes than `new` tells of is ended, and the session goes on with a fresh one.
        """
        live = await self._store.read(lambda tx: uploads.live(tx, record.session_id))
        spare = self._spare(record, new, who)
        room_bytes = await self._room_bytes()
        if live is None and not new.part_ids:
            spare = replace(spare, offset_bytes=await self._good_prefix(record, spare, who, room_bytes))

        def unit(tx: Connection) -> tuple[creation.Handed, UploadRecord | None]:
            present = creation.take_up(tx, creation.see(tx, record.session_id, who), who.name, new.peer)
            upload, ended = uploads.live(tx, record.session_id), None
            if upload is not None and not _goes_on(upload, new, is_creation=is_creation):
                uploads.end(tx, upload.upload_id, "REPLACED")
                upload, ended = None, upload
            if upload is None:
                self._check_limits(tx, who, spare.length_bytes, None if spare.offset_bytes else room_bytes)
            return creation.hand_out(tx, present, who, spare, new.part_ids, new.peer), ended

        used = False
        try:
            handed, ended = await self._store.write(unit)
            used = handed.new
        finally:
            if spare.offset_bytes and not used:
                await self._store.blobs.delete(staging(record.site, spare.upload_id))
        if ended is not None:
            await self._store.blobs.delete(staging(record.site, ended.upload_id))
        return handed

    def _spare(self, record: SessionRecord | None, new: NewUpload, who: Principal) -> UploadRecord:
        """An upload that may become the session's, or a part of a concatenation."""
        length = new.length_bytes
        if length is None and record is not None and new.content_encoding is None and new.upload_concat is None:
            length = record.file_size
        return UploadRecord(
            upload_id=new_id(), site=who.site, session_id=record.session_id if record else None,
            principal=who.name, length_bytes=length, offset_bytes=0, state=UploadState.OPEN, gone_reason=None,
            boot_id=boot_id(), upload_metadata=new.raw_metadata, created_at=timestamp(),
            expires_at=timestamp(now() + self._settings.expires_after), upload_concat=new.upload_concat,
            content_encoding=new.content_encoding, repr_digest=new.repr_digest, awaits_end=new.awaits_end)

    async def _good_prefix(
        self, record: SessionRecord, spare: UploadRecord, who: Principal, room_bytes: int | None
    ) -> int:
        """After STAGING_LOST the new upload starts with the bytes that were known to be durable (contract §2)."""
        lost = await self._store.read(lambda tx: uploads.latest(tx, record.session_id))
        if lost is None or lost.gone_reason != "STAGING_LOST" or lost.offset_bytes == 0:
            return 0
        if lost.content_encoding != spare.content_encoding or lost.length_bytes not in (None, spare.length_bytes):
            return 0  # they are the beginning of other bytes
        self._store.glance(lambda tx: self._check_limits(tx, who, spare.length_bytes, room_bytes))
        old = staging(record.site, lost.upload_id)
        try:
            if await self._store.blobs.size(old) < lost.offset_bytes:
                return 0
            return await self._store.blobs.append(
                staging(record.site, spare.upload_id), 0, self._store.blobs.read(old, Span(0, lost.offset_bytes)))
        except NotFound:
            return 0

    # --- access -------------------------------------------------------------------------------------

    def authorize(self, tx: Connection, upload: UploadRecord, who: Principal, *, reading: bool) -> Standing:
        """Who may see the session may use its upload; a part belongs to its maker; writing needs the role."""
        record = None
        if upload.session_id is not None:
            record = creation.see(tx, upload.session_id, who)
        elif upload.principal != who.name:
            raise RequestError("not_found", "there is no such upload")
        if not reading:
            who.require(Role.UPLOADER)
        return self._standing(upload, record)

    def standing(self, tx: Connection, upload: UploadRecord) -> Standing:
        """`gone` with the session's error while the upload is gone or its session FAILED (contract §5)."""
        record = sessions.get(tx, upload.site, upload.session_id) if upload.session_id is not None else None
        return self._standing(upload, record)

    def _standing(self, upload: UploadRecord, record: SessionRecord | None) -> Standing:
        if record is None:
            gone = upload.state is UploadState.GONE
            return Standing(RequestError("gone", "the upload was ended") if gone else None)
        refusal = None
        if upload.state is UploadState.GONE or record.status is Status.FAILED:
            refusal = RequestError("gone", record.error_message or "the upload was ended",
                                   session_id=record.session_id, error_code=record.error_code)
        return Standing(refusal, record)

    def taken_up(self, tx: Connection, upload: UploadRecord, peer: str | None) -> Standing:
        """A retry keeps the upload's URL (contract §7), so its next bytes may come without another word."""
        standing = self.standing(tx, upload)
        if standing.refusal is not None or standing.session is None or not standing.waits:
            return standing
        return Standing(None, creation.take_up(tx, standing.session, upload.principal, peer))

    def sized(self, tx: Connection, upload: UploadRecord, length_bytes: int) -> None:
        """The upload's length, and the file's unless the wire carries another representation of it."""
        if length_bytes > self._settings.max_size_bytes:
            raise RequestError("file_too_large", f"at most {self._settings.max_size_bytes} bytes are taken")
        uploads.declare_length(tx, upload.upload_id, length_bytes)
        if upload.session_id is None or upload.content_encoding is not None:
            return
        record = sessions.get(tx, upload.site, upload.session_id)
        if record.file_size is None:
            sessions.change(tx, record.session_id, record.status, file_size=length_bytes)
        elif record.file_size != length_bytes:
            raise RequestError("inconsistent_upload_length", f"the session's file has {record.file_size} bytes")

    def check_claim(self, tx: Connection, upload: UploadRecord, size_bytes: int) -> None:
        """What all its principal's uploads would hold or have announced, against the limit."""
        self._check_size(size_bytes, None)
        count, claimed_bytes = uploads.open_count(tx, upload.principal)
        if claimed_bytes - upload.offset_bytes + size_bytes > self._settings.max_staged_bytes:
            raise _too_many(count)

    # --- the end of an upload -----------------------------------------------------------------------

    async def failed(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """Session FAILED and, where §2 says so, the upload gone: one transaction; then its bytes are freed.

        An upload that has finished or gone meanwhile is left as it is: its bytes are no longer at stake.
        """

        def unit(tx: Connection) -> bool:
            present = uploads.get(tx, upload.upload_id)
            if present.state is not UploadState.OPEN:
                return False
            if failure.code == "UPLOAD_EXPIRED" and present.expires_at > upload.expires_at:
                return False  # bytes have come since: it expires later
            record = sessions.get(tx, upload.site, upload.session_id) if upload.session_id else None
            if record is not None and record.status in machine.ACTIVE:
                fail(tx, record, failure, "server")
            elif not machine.keeps_upload(failure.code):
                uploads.end(tx, upload.upload_id, failure.code)
            return True

        failed = await self._store.write(unit)
        if failed and not machine.keeps_upload(failure.code) and failure.code != "STAGING_LOST":
            await self._store.blobs.delete(staging(upload.site, upload.upload_id))

    async def terminated(self, upload: UploadRecord, who: Principal) -> None:
        """DELETE (contract §5): unfinished, the session is CLIENT_ABORTED; finished, everything goes on."""

        def unit(tx: Connection) -> None:
            record = sessions.get(tx, upload.site, upload.session_id) if upload.session_id else None
            is_open = uploads.get(tx, upload.upload_id).state is UploadState.OPEN
            if is_open and record is not None and record.status in machine.ACTIVE:
                fail(tx, record, SessionFailure("CLIENT_ABORTED", "the sender deleted the upload"), who.name)
            audit.append(tx, AuditEntry(upload.site, "upload.terminated", who.name, upload.session_id,
                                        detail={"upload_id": upload.upload_id}))
            uploads.end(tx, upload.upload_id, "CLIENT_ABORTED")

        await self._store.write(unit)
        await self._store.blobs.delete(staging(upload.site, upload.upload_id))

    async def finished(
        self, upload: UploadRecord, session: SessionRecord, sealed: Sealed, peer: str | None, first: Unit
    ) -> Verdict | None:
        """See Completion."""
        return await self._completion.finished(upload, session, sealed, peer, first)


def _too_many(count: int) -> RequestError:
    return RequestError("too_many_uploads", f"{count} uploads of yours are unfinished", retry_after_s=60)


def _goes_on(upload: UploadRecord, new: NewUpload, *, is_creation: bool) -> bool:
    """Whether the bytes that `new` tells of can go on in `upload`: the same representation, of the same length.

    A creation must also mean the same parts, for a final upload takes no bytes and another one joins nothing.
    """
    if upload.state is not UploadState.OPEN:
        return True
    if is_creation and upload.upload_concat != new.upload_concat:
        return False
    is_length_known = None not in (upload.length_bytes, new.length_bytes)
    return upload.content_encoding == new.content_encoding and not (
        is_length_known and upload.length_bytes != new.length_bytes)


KEYS = ("filename", "name", "filetype", "type", "relativePath", "session_id", "visit_id", "radiology_order_id",
        "checksum_sha256", "sha256", "local_file_uuid", "device_id", "created_by_id", "priority", "content_encoding")
"""What is read of Upload-Metadata (contract §5); other keys are kept with the upload, unread."""


def _texts(new: NewUpload) -> dict[str, str]:
    """The known keys as text; RequestError `invalid_metadata` for bytes that are not UTF-8."""
    texts = {}
    for key in KEYS:
        if value := new.metadata.get(key):
            try:
                texts[key] = value.decode()
            except UnicodeDecodeError as error:
                raise RequestError("invalid_metadata", f"{key} is not UTF-8", field=key) from error
    return texts


def _name(texts: dict[str, str]) -> str:
    """A file name fit to show: the last part of a path, no control characters, at most 255 characters."""
    name = texts.get("filename") or texts.get("name") or texts.get("relativePath") or "upload"
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable())[:255] or "upload"


def _new_session(new: NewUpload, texts: dict[str, str]) -> NewSession:
    checksum = texts.get("checksum_sha256") or texts.get("sha256") or new.checksum_sha256
    is_whole = new.content_encoding is None  # else the length is that of a compressed representation
    body = parse(CreateSession, {
        "file_name": _name(texts), "file_size": new.length_bytes or 0, "checksum_sha256": checksum or "0" * 64,
        "content_type": texts.get("filetype") or texts.get("type"), "session_id": texts.get("session_id"),
        "local_file_uuid": texts.get("local_file_uuid"), "priority": texts.get("priority", "ROUTINE")})

    def outside(key: str) -> OutsideId | None:
        return parse_text_id(texts[key], key) if key in texts else None

    return NewSession(
        file_name=body.file_name, file_size=new.length_bytes if is_whole else None, content_type=body.content_type,
        checksum_sha256=body.checksum_sha256 if checksum else None, session_id=body.session_id,
        local_file_uuid=body.local_file_uuid, priority=body.priority, visit_id=outside("visit_id"),
        radiology_order_id=outside("radiology_order_id"), created_by_id=outside("created_by_id"),
        device_id=outside("device_id"), metadata={})
