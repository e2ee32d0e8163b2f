"""The session calls (contract §4), one method each. Moves are made in moves.py and creation.py."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from server.admission import NewUpload
from server.auth import Principal, Role
from server.bodies import canonical
from server.errors import RequestError, SessionFailure
from server.idempotency import once
from server.identifiers import OutsideId, parse_id
from server.sessions import creation, machine
from server.sessions.intake import Intake
from server.sessions.limits import Limits
from server.sessions.moves import fail, move, move_on, note, taking_metadata
from server.sessions.refusals import note_refusal
from server.sessions.schema import (
    Acknowledge,
    Cancel,
    CreateSession,
    NewSession,
    ReportFailure,
    UploadBinary,
    new_session,
)
from storage import audit, blob_rows, instances, sessions, uploads
from storage.blobs.base import staging
from storage.records import ImageRecord, SessionRecord, Status, UploadRecord, UploadState, timestamp
from storage.store import Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls from where: the principal, the visit of the URL if it names one, the peer's address."""

    who: Principal
    visit: OutsideId | None
    peer: str | None
    idempotency_key: str | None = None
    route: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """A session with what is shown beside it."""

    record: SessionRecord
    bytes_received: int
    images: list[ImageRecord]
    safe: bool
    owner: bool


class ReadsBack(Protocol):
    """Verifies stored bytes for those who will rely on them."""

    async def verify(self, site: str, sha256: str, asker: str, asks: str) -> None:
        """Return once the medium gave the right bytes to a reading that began after `asker` asked.

        `asker` is the same when it asks again; `asks`, on whose behalf it does, goes into the audit.
        RequestError `readback_failed`; `readback_running`, and the reading goes on.
        """
        ...


class SessionService:
    """The use cases. Raises RequestError; what moves a status is one unit of work."""

    def __init__(
        self, store: Store, intake: Intake, limits: Limits, readback: ReadsBack, name_order: creation.NameOrder
    ) -> None:
        self._store = store
        self._intake = intake
        self._limits = limits
        self._readback = readback
        self._name_order = name_order

    async def create(self, body: CreateSession, caller: Caller) -> tuple[int, creation.Created]:
        """`create_session/`: (201 or 200, what it came to)."""
        caller.who.require(Role.UPLOADER)
        if caller.visit is not None and body.radiology_order_id is None:
            raise RequestError("invalid_field", "radiology_order_id is needed under a visit",
                               field="radiology_order_id")
        await self._limits.check_room(body.file_size)
        wanted: NewSession = new_session(body, caller.visit)
        created = await self._refusals_audited(body.session_id, caller, self._store.write(
            lambda tx: creation.create(tx, wanted, caller.who, self._name_order, caller.peer)))
        return (201 if created.new else 200), created

    async def upload_metadata(
        self, session_id: str, metadata: dict[str, Any] | None, caller: Caller
    ) -> tuple[SessionRecord, bool]:
        """`upload_metadata/`: (session, whether it was known already)."""

        def unit(tx: Connection) -> tuple[SessionRecord, bool]:
            record = self._own(tx, session_id, caller)
            if record.metadata is not None and metadata and canonical(metadata) != canonical(record.metadata):
                raise RequestError("metadata_immutable", session_id=record.session_id)
            if record.metadata_uploaded_at is not None and record.status not in (Status.FAILED, Status.QUEUED):
                return record, True
            steps = taking_metadata(record, metadata or {})
            return move_on(tx, record, steps, caller.who.name, caller.peer), False

        return await self._refusals_audited(session_id, caller, self._store.write(unit))

    async def upload_binary(
        self, session_id: str, body: UploadBinary, caller: Caller
    ) -> tuple[SessionRecord, UploadRecord]:
        """`upload_binary/`: the session and its upload; with every byte there ingest is started again."""
        record = await self._store.read(lambda tx: self._own(tx, session_id, caller))
        encoded = body.encoded_size if body.content_encoding else None
        new = NewUpload(encoded, {}, "", caller.peer, content_encoding=body.content_encoding)
        handed = await self._refusals_audited(session_id, caller, self._intake.hand_out(record, caller.who, new))
        return handed.session, handed.upload

    async def acknowledge(self, session_id: str, body: Acknowledge, caller: Caller) -> tuple[SessionRecord, bool]:
        """`acknowledge/` (contract §8): reads the blob back, then notes the device's ACK. (session, replayed)."""
        return await self._refusals_audited(session_id, caller, self._acknowledge(session_id, body, caller))

    async def _acknowledge(self, session_id: str, body: Acknowledge, caller: Caller) -> tuple[SessionRecord, bool]:
        record = await self._store.read(lambda tx: self._own(tx, session_id, caller))
        if record.status not in machine.STORED or record.blob_sha256 is None:
            raise RequestError("not_synced", f"the session is {record.status}", session_id=record.session_id)
        if body.server_image_id != record.server_image_id:
            raise RequestError("image_mismatch", session_id=record.session_id)
        if body.checksum_sha256 is None and record.checksum_source == "server":
            raise RequestError("checksum_required", "the sender declared no checksum: send checksum_sha256",
                               field="checksum_sha256")
        if body.checksum_sha256 is not None and body.checksum_sha256 != record.checksum_sha256:
            raise RequestError("checksum_mismatch", session_id=record.session_id)
        device = parse_id(body.device_id, "device_id").text if body.device_id is not None else None
        device = device or asking_device(record, caller.who)
        await self._readback.verify(record.site, record.blob_sha256, f"{record.session_id}/{device}", "acknowledge")

        def unit(tx: Connection) -> tuple[SessionRecord, bool]:
            present = self._own(tx, session_id, caller)
            assert present.blob_sha256 is not None, "it is stored"
            if not _is_sound(tx, present):  # somebody else found damage since
                raise RequestError("readback_failed", session_id=present.session_id, retry_after_s=60)
            replayed = sessions.acked(tx, present.session_id, device)
            sessions.add_ack(tx, present.site, present.session_id, device, body.server_image_id, present.blob_sha256)
            if present.status is Status.SYNCED:
                present = move(tx, present, Status.ACK_RECEIVED, caller.who.name, peer=caller.peer,
                               detail={"device": device}, ack_received_at=timestamp())
            elif not replayed:
                note(tx, present, "session.acknowledged", caller.who.name, caller.peer, device=device)
            return present, replayed

        return await self._store.write(unit)

    async def retry(self, session_id: str, caller: Caller) -> dict[str, Any]:
        """`retry/`: FAILED → QUEUED; tells what comes next. The Idempotency-Key saves a retry (contract §7)."""
        last = await self._store.read(lambda tx: uploads.latest(tx, self._own(tx, session_id, caller).session_id))
        held = 0
        if last is not None:
            held = await self._store.held_bytes(last) if last.state is UploadState.OPEN else last.offset_bytes

        def unit(tx: Connection) -> dict[str, Any]:
            record = self._own(tx, session_id, caller)
            preserved = machine.keeps_progress(record.error_code)
            record = creation.retry(tx, record, caller.who, caller.peer)
            offset = held if preserved else 0
            return {
                "session_id": record.session_id, "status": record.status, "retry_count": record.retry_count,
                "retries_left": record.retries_left,
                "resume": {"next": "upload_binary" if record.metadata is not None else "upload_metadata",
                           "upload_offset": offset, "progress_preserved": offset > 0}}

        return await self._refusals_audited(
            session_id, caller,
            self._store.write(lambda tx: once(tx, caller, {"session_id": session_id}, unit)))

    async def cancel(self, session_id: str, body: Cancel, caller: Caller) -> SessionRecord:
        """`cancel/`: FAILED / CLIENT_ABORTED; staged bytes are freed."""
        return await self._abort(session_id, SessionFailure("CLIENT_ABORTED", body.reason), caller)

    async def report_failure(self, session_id: str, body: ReportFailure, caller: Caller) -> SessionRecord:
        """`report_failure/`: what broke on the client's side."""
        return await self._abort(session_id, SessionFailure(body.error_code, body.error_message or ""), caller)

    async def _abort(self, session_id: str, failure: SessionFailure, caller: Caller) -> SessionRecord:
        def unit(tx: Connection) -> UploadRecord | None:
            record = self._own(tx, session_id, caller)
            live = uploads.live(tx, record.session_id)

            def abort(tx: Connection) -> dict[str, Any]:
                fail(tx, record, failure, caller.who.name, caller.peer)
                return {}

            once(tx, caller, {"session_id": session_id, "error_code": failure.code}, abort)
            return live

        live = await self._refusals_audited(session_id, caller, self._store.write(unit))
        if live is not None and not machine.keeps_upload(failure.code):
            await self._store.blobs.delete(staging(live.site, live.upload_id))
        return await self._store.read(lambda tx: self._own(tx, session_id, caller))

    async def view(self, session_id: str, caller: Caller, device: str | None = None) -> View:
        """A session as `caller` may see it."""
        record = await self._store.read(lambda tx: self._seen(tx, session_id, caller))
        return await self.view_of(record, caller.who, device)

    async def view_of(self, record: SessionRecord, who: Principal, device: str | None = None) -> View:
        """What is shown beside a session; the offset is asked of the bytes, the rest of the rows."""
        asking = device or asking_device(record, who)

        def unit(tx: Connection) -> tuple[UploadRecord | None, list[ImageRecord], bool]:
            image = instances.find(tx, record.site, record.server_image_id) if record.server_image_id else None
            safe = (record.status is Status.ACK_RECEIVED and _is_sound(tx, record)
                    and sessions.acked(tx, record.session_id, asking))
            return uploads.live(tx, record.session_id), [image] if image else [], safe

        live, images, safe = await self._store.read(unit)
        received = record.file_size or 0 if record.status in machine.STORED else 0
        if live is not None:
            # it may end between the two looks: then its row is right
            received = max(live.offset_bytes, await self._store.held_bytes(live))
        return View(record, received, images, safe, owner=record.principal == who.name)

    async def receipt(self, session_id: str, caller: Caller) -> str:
        """The session's receipt; `not_found` before SYNCED."""
        record = await self._store.read(lambda tx: self._seen(tx, session_id, caller))
        if record.receipt is None:
            raise RequestError("not_found", "the session has no receipt yet", session_id=record.session_id)
        return record.receipt

    async def history(self, session_id: str, caller: Caller) -> list[dict[str, Any]]:
        """The session's audit rows in order."""

        def unit(tx: Connection) -> list[dict[str, Any]]:
            return audit.of_subject(tx, self._seen(tx, session_id, caller).session_id)

        return await self._store.read(unit)

    async def listing(self, caller: Caller, limit: int, **filters: Any) -> list[SessionRecord]:  # see storage.sessions
        """Sessions that `caller` may see, the one changed last first."""
        who = caller.who
        sees_all = who.is_narrowed or who.may(Role.VIEWER, Role.OPERATOR, Role.AUDITOR)
        visit = caller.visit.text if caller.visit else who.visit_id
        order_id = filters.pop("radiology_order_id", None) or who.radiology_order_id
        if not who.sees_order(order_id, visit):
            return []
        return await self._store.read(lambda tx: sessions.listing(
            tx, who.site, visit_id=visit, radiology_order_id=order_id, principal=None if sees_all else who.name,
            limit=limit, **filters))

    def _seen(self, tx: Connection, session_id: str, caller: Caller) -> SessionRecord:
        record = creation.see(tx, session_id, caller.who)
        if caller.visit is not None and record.visit_id != caller.visit.text:
            raise RequestError("not_found", "there is no such session under this visit")
        return record

    def _own(self, tx: Connection, session_id: str, caller: Caller) -> SessionRecord:
        caller.who.require(Role.UPLOADER)
        return self._seen(tx, session_id, caller)

    async def _refusals_audited(self, session_id: str | None, caller: Caller, work: Awaitable[T]) -> T:
        """What `work` gives; each 409 leaves an audit row of its own (contract §3, §9)."""
        try:
            return await work
        except RequestError as error:
            await note_refusal(self._store, caller.who, session_id, caller.peer, caller.route, error)
            raise


def asking_device(record: SessionRecord, who: Principal) -> str:
    """The device on whose behalf is asked: the session's own for its maker, else the principal (contract §8)."""
    return record.device_id if record.device_id and record.principal == who.name else who.name


def _is_sound(tx: Connection, record: SessionRecord) -> bool:
    """Whether the session's bytes are stored, and nothing casts doubt on them."""
    blob = blob_rows.find(tx, record.site, record.blob_sha256) if record.blob_sha256 else None
    return blob is not None and blob.alarm is None
