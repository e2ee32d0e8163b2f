"""Units of work that make sessions: idempotency, dedup (contract §6), retry, and handing out the upload."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from server.auth import Principal, Role
from server.bodies import canonical
from server.errors import RequestError
from server.identifiers import OutsideId, parse_text_id
from server.sessions import machine
from server.sessions.moves import move, move_on, note, taking_bytes, walk
from server.sessions.schema import NewSession
from storage import blob_rows, sessions, uploads
from storage.errors import Refused
from storage.records import OrderRecord, SessionRecord, Status, UploadRecord, new_id, rank, timestamp

NameOrder = Callable[[Connection, Principal, OutsideId, OutsideId | None], OrderRecord]
"""Names an order: (tx, who, order, visit) → what is known of it; RequestError `order_visit_mismatch`, `forbidden`."""


@dataclass(frozen=True, slots=True)
class Created:
    """What a creation came to; not `new`: an existing session is the answer. `hint` is "retry" or None."""

    session: SessionRecord
    new: bool
    duplicate: bool = False
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Handed:
    """The upload to go on with; not `new`: it was there before."""

    session: SessionRecord
    upload: UploadRecord
    new: bool


def may_see(tx: Connection, record: SessionRecord, who: Principal) -> bool:
    """Whether `who` may know of the session: its site, its visit, and what the role covers (contract §11)."""
    if record.site != who.site or not who.sees_order(record.radiology_order_id, record.visit_id):
        return False
    if who.is_narrowed or who.may(Role.VIEWER, Role.OPERATOR, Role.AUDITOR):
        return True
    return sessions.is_member(tx, record.session_id, who.name)


def see(tx: Connection, session_id: str, who: Principal) -> SessionRecord:
    """The session, or RequestError `not_found`: what may not be seen is not there."""
    record = sessions.find(tx, who.site, session_id)
    if record is None or not may_see(tx, record, who):
        raise RequestError("not_found", "there is no such session")
    return record


def create(
    tx: Connection, new: NewSession, who: Principal, name_order: NameOrder, peer: str | None, *,
    for_bytes: bool = False,
) -> Created:
    """Make a session, or find the one that the same creation made, or its duplicate (contract §6).

    `for_bytes`: a new one goes on to BINARY_UPLOADING at once.
    """
    created = plan(tx, new, who, name_order, peer, for_bytes=for_bytes)
    if created.new:
        insert(tx, created.session, who)
    return created


def plan(
    tx: Connection, new: NewSession, who: Principal, name_order: NameOrder, peer: str | None, *,
    for_bytes: bool = False,
) -> Created:
    """Like `create`, but a new session is audited only: the caller inserts it, with what else becomes of it."""
    new = _of_user(new, who)
    order, visit = _order_and_visit(tx, new, who, name_order)
    known = sessions.find(tx, who.site, new.session_id) if new.session_id else None
    if known is not None:
        return _same_again(tx, known, new, visit, who)
    key = dedup_key(new, who)
    holder = sessions.by_dedup_key(tx, key) if key else None
    if holder is not None and not _must_supersede(tx, holder):
        if new.session_id and new.session_id != holder.session_id:
            sessions.add_alias(tx, who.site, new.session_id, holder.session_id)
        sessions.add_member(tx, who.site, holder.session_id, who.name)
        note(tx, holder, "session.duplicate", who.name, peer, asked_as=new.session_id)
        hint = "retry" if holder.status is Status.FAILED else None
        return Created(holder, new=False, duplicate=True, hint=hint)
    if holder is not None:
        sessions.change(tx, holder.session_id, holder.status, dedup_key=None)
    record = _record(new, visit, who, key, holder.session_id if holder else None)
    if order is not None:
        record = _of_order(record, order)
    position = note(tx, record, "session.created", who.name, peer, supersedes=record.supersedes)
    changed = walk(tx, record, taking_bytes(record), who.name, peer) if for_bytes else {"seq": position.seq}
    return Created(replace(record, **changed), new=True)


def insert(tx: Connection, record: SessionRecord, who: Principal) -> None:
    """The row of a session that `plan` made. RequestError `session_conflict`."""
    try:
        sessions.add(tx, record)
    except Refused as error:  # the id exists in another site, which must not be told apart
        raise RequestError("session_conflict", "this session_id is taken", fields=["session_id"]) from error
    sessions.add_first_member(tx, who.site, record.session_id, who.name)


def _order_and_visit(
    tx: Connection, new: NewSession, who: Principal, name_order: NameOrder
) -> tuple[OrderRecord | None, str | None]:
    visit, order = new.visit_id.text if new.visit_id else None, None
    if new.radiology_order_id is not None:
        order = name_order(tx, who, new.radiology_order_id, new.visit_id)
        visit = order.visit_id
    if not who.sees_order(order.radiology_order_id if order else None, visit):
        raise RequestError("forbidden", "the token belongs to another visit or order")
    return order, visit


def acts_for(who: Principal, new: NewSession) -> bool:
    """Whether the token may make a session of the user that the creation names."""
    return who.created_by_id is None or new.created_by_id is None or new.created_by_id.text == who.created_by_id


def _of_user(new: NewSession, who: Principal) -> NewSession:
    """A token that acts for one user makes sessions of that user only."""
    if who.created_by_id is None:
        return new
    if not acts_for(who, new):
        raise RequestError("forbidden", "the token acts for another user")
    return replace(new, created_by_id=new.created_by_id or parse_text_id(who.created_by_id, "created_by_id"))


def _same_again(
    tx: Connection, known: SessionRecord, new: NewSession, visit: str | None, who: Principal
) -> Created:
    if not may_see(tx, known, who):
        raise RequestError("session_conflict", "this session_id is taken", fields=["session_id"])
    wanted = _record(new, visit, who, None, None)
    names = ["file_name", "file_size", "radiology_order_id", "content_type", "local_file_uuid", "created_by_id",
             "device_id", "max_retries", "client_created_at", "local_file_path"]
    if rank(wanted.priority) > rank(known.priority):  # an order may have raised it since
        names.append("priority")
    if known.checksum_source == "client" or wanted.checksum_sha256 is not None:
        names.append("checksum_sha256")
    if wanted.file_size is None:
        names.remove("file_size")
    differing = [name for name in names if getattr(known, name) != getattr(wanted, name)]
    if new.metadata is not None and canonical(new.metadata) != canonical(known.metadata):
        differing.append("metadata")
    if differing:
        raise RequestError("session_conflict", f"the session exists with another {', '.join(differing)}",
                           session_id=known.session_id, fields=differing)
    return Created(known, new=False)


def dedup_key(new: NewSession, who: Principal) -> str | None:
    """(site, order, declared checksum); without an order the key holds for the same principal (contract §5)."""
    if new.checksum_sha256 is None:
        return None
    whose = f"order:{new.radiology_order_id.text}" if new.radiology_order_id else f"principal:{who.name}"
    return f"{who.site}|{whose}|{new.checksum_sha256}"


def _must_supersede(tx: Connection, holder: SessionRecord) -> bool:
    if holder.status is Status.FAILED:
        return not machine.is_retryable(holder.error_code) or holder.retries_left == 0
    if holder.status in machine.STORED and holder.blob_sha256:
        return blob_rows.is_doubted(tx, holder.site, holder.blob_sha256)
    return False


def _record(
    new: NewSession, visit: str | None, who: Principal, key: str | None, supersedes: str | None
) -> SessionRecord:
    moment = timestamp()
    return SessionRecord(
        session_id=new.session_id or new_id(), site=who.site, visit_id=visit,
        radiology_order_id=new.radiology_order_id.text if new.radiology_order_id else None, status=Status.QUEUED,
        priority=new.priority, file_name=new.file_name, file_size=new.file_size, content_type=new.content_type,
        checksum_sha256=new.checksum_sha256, checksum_source="client" if new.checksum_sha256 else "server",
        local_file_path=new.local_file_path, local_file_uuid=new.local_file_uuid,
        created_by_id=new.created_by_id.text if new.created_by_id else None,
        device_id=new.device_id.text if new.device_id else None, principal=who.name,
        numeric_ids=new.numeric_ids(), max_retries=new.max_retries, retry_count=0, error_code=None,
        error_message=None, metadata=new.metadata, client_created_at=new.client_created_at, created_at=moment,
        updated_at=moment, metadata_uploaded_at=None, binary_uploaded_at=None, synced_at=None,
        ack_received_at=None, server_image_id=None, blob_sha256=None, duplicate_of=None, supersedes=supersedes,
        dedup_key=key, receipt=None, seq=0)


def _of_order(record: SessionRecord, order: OrderRecord) -> SessionRecord:
    """A new session as its order has it: as urgent, or more (contract §4); ids in the form first received (§1)."""
    own = [name for name in record.numeric_ids.split(",") if name not in ("", "visit_id", "radiology_order_id")]
    numeric_ids = ",".join([*own, *filter(None, [order.numeric_ids])])
    return replace(record, priority=max(record.priority, order.priority, key=rank), numeric_ids=numeric_ids)


def retry(tx: Connection, record: SessionRecord, who: Principal, peer: str | None) -> SessionRecord:
    """FAILED → QUEUED, at the cost of one retry (contract §7)."""
    machine.check(record.status, Status.QUEUED)
    if not machine.is_retryable(record.error_code):
        raise RequestError("not_retryable", f"{record.error_code} cannot be retried", session_id=record.session_id)
    if record.retries_left == 0:
        raise RequestError("retries_exhausted", f"all {record.max_retries} retries are used",
                           session_id=record.session_id)
    return move(
        tx, record, Status.QUEUED, who.name, peer=peer, detail={"retry_count": record.retry_count + 1},
        retry_count=record.retry_count + 1, error_code=None, error_message=None)


def take_up(tx: Connection, record: SessionRecord, actor: str, peer: str | None) -> SessionRecord:
    """On to BINARY_UPLOADING, where bytes are taken. RequestError as `taking_bytes`."""
    steps = taking_bytes(record)
    return move_on(tx, record, steps, actor, peer) if steps else record


def hand_out(
    tx: Connection, record: SessionRecord, who: Principal, spare: UploadRecord, part_ids: tuple[str, ...],
    peer: str | None,
) -> Handed:
    """Give the session's live upload, or make `spare` its upload. RequestError as `taking_bytes`."""
    record = take_up(tx, record, who.name, peer)
    live = uploads.live(tx, record.session_id)
    return Handed(record, live, new=False) if live is not None else attach(tx, record, who, spare, part_ids, peer)


def attach(
    tx: Connection, record: SessionRecord, who: Principal, upload: UploadRecord, part_ids: tuple[str, ...],
    peer: str | None,
) -> Handed:
    """Make `upload` that of a session which has none; a final one has parts."""
    uploads.add(tx, upload)
    if part_ids:
        uploads.add_parts(tx, record.site, upload.upload_id, part_ids)
    note_upload(tx, record, who, upload, peer)
    return Handed(record, upload, new=True)


def note_upload(
    tx: Connection, record: SessionRecord, who: Principal, upload: UploadRecord, peer: str | None
) -> None:
    """Audit that an upload was made."""
    note(tx, record, "upload.created", who.name, peer, upload_id=upload.upload_id, offset=upload.offset_bytes)
