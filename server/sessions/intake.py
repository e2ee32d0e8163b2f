"""Admits uploads: finds or makes their sessions, and hands out the upload to go on with."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection

from server.admission import Admission, NewUpload
from server.auth import Principal, Role
from server.errors import RequestError, SessionFailure
from server.filing import Inspection
from server.sessions import creation, machine
from server.sessions.completion import Completion, origin_of
from server.sessions.limits import Limits
from server.sessions.metadata import texts_of, wanted_session
from server.sessions.refusals import note_refusal
from server.sessions.schema import NewSession
from storage import audit, orders, sessions, uploads
from storage.blobs.base import Piece, Span, staging
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound
from storage.moments import boot_id
from storage.records import (
    AuditEntry,
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


class Intake:
    """The AdmitsUploads of the sessions."""

    def __init__(
        self, store: Store, completion: Completion, limits: Limits, name_order: creation.NameOrder,
        expires_after: timedelta,
    ) -> None:
        self._store = store
        self._completion = completion
        self._limits = limits
        self._name_order = name_order
        self._expires_after = expires_after

    async def admit(self, new: NewUpload, who: Principal) -> Admission:
        """Find or make the session of an upload, and hand the upload out; a 409 is audited."""
        try:
            return await self._admit(new, who)
        except RequestError as error:
            named = error.members.get("session_id") or new.metadata.get("session_id", b"").decode(errors="replace")
            await note_refusal(self._store, who, str(named), new.peer, "/files", error)
            raise

    async def _admit(self, new: NewUpload, who: Principal) -> Admission:
        who.require(Role.UPLOADER)
        room_bytes = await self._limits.room_bytes()
        if new.upload_concat == "partial":
            return await self._admit_part(new, who, room_bytes)
        values = texts_of(new)
        wanted = wanted_session(new, values)

        def unit(tx: Connection) -> creation.Handed | SessionRecord:
            record, made = self._session_of(tx, new, values.get("session_id"), wanted, who)
            if made:
                self._limits.check_new(tx, who, new.length_bytes, room_bytes)
                return creation.attach(tx, record, who, self._spare(record, new, who), new.part_ids, new.peer)
            upload = uploads.live(tx, record.session_id)
            if record.status in machine.STORED and upload is not None:
                return creation.Handed(record, upload, new=False)
            if record.retry_count or (upload is not None and not _goes_on(upload, new, is_creation=True)):
                return record  # a lost upload may have a good prefix, and one of other bytes must be ended
            spare = self._spare(record, new, who)
            if upload is None:
                self._limits.check_new(tx, who, spare.length_bytes, room_bytes)
            return creation.hand_out(tx, record, who, spare, new.part_ids, new.peer)

        # light: whatever flushes its bytes flushes this too, and a URL without bytes is soon made again
        handed = await self._store.write(unit, light=True)
        if isinstance(handed, SessionRecord):
            handed = await self.hand_out(handed, who, new, is_creation=True)
        return Admission(handed.upload, handed.new)

    async def admit_whole(
        self, new: NewUpload, who: Principal, content: bytes, first: Callable[[Connection, UploadRecord], None]
    ) -> UploadRecord | None:
        """Seal the content first, then make, finish and file in one transaction; nothing stays if that cannot be."""
        who.require(Role.UPLOADER)
        wanted, spare = wanted_session(new, texts_of(new)), self._spare(None, new, who)
        room_bytes = await self._limits.room_bytes()

        def is_plainly_new(tx: Connection) -> bool:
            if not self._is_plainly_new(tx, wanted, who):
                return False
            self._limits.check_new(tx, who, len(content), room_bytes)
            return True

        if not self._store.glance(is_plainly_new):
            return None
        key, expected = staging(spare.site, spare.upload_id), Sha256(wanted.checksum_sha256 or "") or None
        inspected: Inspection | SessionFailure | None
        try:
            content_sealed = await self._store.blobs.seal(key, expected, Piece(0, content))
            inspected = await self._completion.inspect(
                content_sealed, origin_of(who.site, who.name, wanted.file_name, wanted.content_type))
        except (DigestMismatch, NoSpace, FlushFailed, NotFound):  # not found: clean-up took what had lain there
            inspected = None
        if not isinstance(inspected, Inspection):
            await self._store.blobs.delete(key)
            return None  # its session is made first, and then fails

        def unit(tx: Connection) -> UploadRecord:
            planned = creation.plan(tx, wanted, who, self._name_order, new.peer, for_bytes=True)
            if not planned.new:
                raise Conflict("it is known already")
            self._limits.check_new(tx, who, len(content), room_bytes=None)  # its bytes are here
            upload = replace(
                spare, session_id=planned.session.session_id, offset_bytes=len(content), state=UploadState.FINISHED,
                finished_at=timestamp(), blob_sha256=content_sealed.sha256, audited_bytes=len(content))
            creation.note_upload(tx, planned.session, who, spare, new.peer)
            first(tx, upload)
            # each row is written once, as it is at the end: that halves what SQLite has to do for a small file
            record = self._completion.file_new(tx, upload, planned.session, content_sealed, inspected, new.peer)
            creation.insert(tx, record, who)
            uploads.add(tx, upload)
            return upload

        try:
            upload = await self._store.write(unit)
        except Conflict:
            return None  # the staged name stays: by it the next start finds bytes that were sealed for nobody
        self._store.blobs.discard(key)
        self._completion.on_stored()
        return upload

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
        order_id = wanted.radiology_order_id.text if wanted.radiology_order_id is not None else None
        return who.sees_order(order_id, visit) and creation.acts_for(who, wanted)

    async def _admit_part(self, new: NewUpload, who: Principal, room_bytes: int | None) -> Admission:
        part = self._spare(None, new, who)

        def unit(tx: Connection) -> None:
            self._limits.check_new(tx, who, part.length_bytes, room_bytes)
            uploads.add(tx, part)
            audit.append(tx, AuditEntry(who.site, "upload.created", who.name, part.upload_id, new.peer,
                                        detail={"upload_id": part.upload_id, "offset": 0, "partial": True}))

        await self._store.write(unit)
        return Admission(part, created=True)

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
        room_bytes = await self._limits.room_bytes()
        if live is None and not new.part_ids:
            prefix = await self._good_prefix(record, spare, who, room_bytes)
            spare = replace(spare, offset_bytes=prefix, audited_bytes=prefix)  # told of as they came to the lost one

        def unit(tx: Connection) -> tuple[creation.Handed, UploadRecord | None]:
            present = creation.see(tx, record.session_id, who)
            upload, ended = uploads.live(tx, record.session_id), None
            if present.status in machine.STORED and upload is not None:
                return creation.Handed(present, upload, new=False), None
            present = creation.take_up(tx, present, who.name, new.peer)
            if upload is not None and not _goes_on(upload, new, is_creation=is_creation):
                uploads.end(tx, upload.upload_id, "REPLACED")
                upload, ended = None, upload
            if upload is None:
                self._limits.check_new(tx, who, spare.length_bytes, None if spare.offset_bytes else room_bytes)
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
            expires_at=timestamp(now() + self._expires_after), upload_concat=new.upload_concat,
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
        self._store.glance(lambda tx: self._limits.check_new(tx, who, spare.length_bytes, room_bytes))
        old = staging(record.site, lost.upload_id)
        try:
            if await self._store.blobs.size(old) < lost.offset_bytes:
                return 0
            return await self._store.blobs.append(
                staging(record.site, spare.upload_id), 0, self._store.blobs.read(old, Span(0, lost.offset_bytes)))
        except NotFound:
            return 0


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
