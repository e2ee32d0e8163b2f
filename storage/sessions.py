"""Units of work on sessions, their aliases, ACKs and idempotency keys. Decides nothing: compares and sets."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update

from storage.database.prepared import Prepared, inserting
from storage.errors import Conflict, NotFound
from storage.records import SessionRecord, Status, timestamp
from storage.tables import ack, blob, idempotency, image, session, session_alias, session_member

_COLUMNS = [session.c[field.name] for field in fields(SessionRecord)]
_STATUS = [field.name for field in fields(SessionRecord)].index("status")
_NAMES = [column.name for column in session.c]
_ADD = inserting(session)
_FIND = Prepared(select(*_COLUMNS).where(
    session.c.site == bindparam("wanted_site"), session.c.session_id == bindparam("wanted")))
_REAL_ID = Prepared(select(session_alias.c.session_id).where(session_alias.c.alias_id == bindparam("wanted")))
_BY_DEDUP_KEY = Prepared(select(*_COLUMNS).where(session.c.dedup_key == bindparam("wanted")))
_OF_BLOB = Prepared(select(*_COLUMNS).where(
    session.c.site == bindparam("wanted_site"), session.c.blob_sha256 == bindparam("wanted")))
_CHANGES: dict[tuple[str, ...], Prepared] = {}
"""The updates that were asked for so far, by the columns that they set."""
_ADD_MEMBER = inserting(session_member)
_IS_MEMBER = Prepared(select(session_member.c.principal).where(
    session_member.c.session_id == bindparam("wanted"), session_member.c.principal == bindparam("wanted_principal")))


def _record(row: Row[Any] | tuple[Any, ...]) -> SessionRecord:  # a row of the session table
    values = list(row)
    values[_STATUS] = Status(values[_STATUS])
    return SessionRecord(*values)


def add(tx: Connection, record: SessionRecord) -> None:
    """Insert a new session. Refused when its id or its dedup key is taken."""
    _ADD.run(tx, **{name: getattr(record, name) for name in _NAMES})


def add_alias(tx: Connection, site: str, alias_id: str, session_id: str) -> None:
    """Let `alias_id` name an existing session for good; naming the same one again is no change."""
    if tx.execute(select(session_alias.c.alias_id).where(session_alias.c.alias_id == alias_id)).first() is None:
        tx.execute(insert(session_alias).values(alias_id=alias_id, site=site, session_id=session_id))


def add_member(tx: Connection, site: str, session_id: str, principal: str) -> None:
    """Let `principal` go on with a session: its maker, and whoever was answered with it."""
    if not is_member(tx, session_id, principal):
        add_first_member(tx, site, session_id, principal)


def add_first_member(tx: Connection, site: str, session_id: str, principal: str) -> None:
    """Like `add_member`, for the maker of a session that was made just now."""
    _ADD_MEMBER.run(tx, session_id=session_id, principal=principal, site=site)


def is_member(tx: Connection, session_id: str, principal: str) -> bool:
    """Whether `principal` made the session or was answered with it."""
    return _IS_MEMBER.first(tx, wanted=session_id, wanted_principal=principal) is not None


def find(tx: Connection, site: str, session_id: str) -> SessionRecord | None:
    """The session of that id or alias in `site`."""
    row = _FIND.first(tx, wanted_site=site, wanted=session_id)
    if row is None and (real := _REAL_ID.first(tx, wanted=session_id)) is not None:
        row = _FIND.first(tx, wanted_site=site, wanted=real[0])
    return _record(row) if row else None


def get(tx: Connection, site: str, session_id: str) -> SessionRecord:
    """Like `find`; NotFound when there is none."""
    record = find(tx, site, session_id)
    if record is None:
        raise NotFound("no such session")
    return record


def by_dedup_key(tx: Connection, key: str) -> SessionRecord | None:
    """The session that holds the dedup key."""
    row = _BY_DEDUP_KEY.first(tx, wanted=key)
    return _record(row) if row else None


def of_blob(tx: Connection, site: str, sha256: str) -> list[SessionRecord]:
    """The sessions that hold a blob."""
    return [_record(row) for row in _OF_BLOB.rows(tx, wanted_site=site, wanted=sha256)]


def change(tx: Connection, session_id: str, expected: Status, **values: Any) -> None:  # columns of any type
    """Compare and set: Conflict when the status is not `expected`."""
    names = ("updated_at", *values)
    if names not in _CHANGES:
        _CHANGES[names] = Prepared(update(session).where(
            session.c.session_id == bindparam("wanted"), session.c.status == bindparam("expected_status")), names)
    if _CHANGES[names].run(tx, wanted=session_id, expected_status=expected, updated_at=timestamp(), **values) != 1:
        raise Conflict(f"the session is not {expected}")


def give_visit(
    tx: Connection, site: str, radiology_order_id: str, visit_id: str, seq: int, *, is_number: bool
) -> None:
    """Sessions that named an order before its visit was known get it; `seq` is the audit row that tells it."""
    tx.execute(update(session).where(
        session.c.site == site, session.c.radiology_order_id == radiology_order_id, session.c.visit_id.is_(None)
    ).values(visit_id=visit_id, numeric_ids=session.c.numeric_ids + (",visit_id" if is_number else ""), seq=seq,
             updated_at=timestamp()))


def prioritise(tx: Connection, session_id: str, priority: str, seq: int) -> None:
    """Give a session another priority; `seq` is the audit row that tells it."""
    tx.execute(update(session).where(session.c.session_id == session_id).values(
        priority=priority, seq=seq, updated_at=timestamp()))


def of_order(tx: Connection, site: str, radiology_order_id: str) -> list[SessionRecord]:
    """Every session that names an order."""
    rows = tx.execute(select(*_COLUMNS).where(
        session.c.site == site, session.c.radiology_order_id == radiology_order_id))
    return [_record(row) for row in rows]


def without_order(
    tx: Connection, site: str, statuses: tuple[Status, ...], *, principal: str | None = None,
    before_seq: int | None = None, limit: int = 100,
) -> list[SessionRecord]:
    """Sessions of those statuses that name no order, the one changed last first; `principal`: those that he made."""
    query = select(*_COLUMNS).where(
        session.c.site == site, session.c.status.in_(statuses), session.c.radiology_order_id.is_(None))
    if principal is not None:
        query = query.where(session.c.principal == principal)
    if before_seq is not None:
        query = query.where(session.c.seq < before_seq)
    return [_record(row) for row in tx.execute(query.order_by(session.c.seq.desc()).limit(limit))]


def listing(
    tx: Connection, site: str, *, statuses: tuple[Status, ...] = (), visit_id: str | None = None,
    principal: str | None = None, radiology_order_id: str | None = None, device_id: str | None = None,
    error_codes: tuple[str, ...] | None = None, updated_after: str | None = None,
    retries_left: bool = False, before_seq: int | None = None, limit: int = 100,
) -> list[SessionRecord]:
    """Sessions of a site, the one changed last first; `before_seq` goes on where a page ended."""
    query = select(*_COLUMNS).where(session.c.site == site)
    if statuses:
        query = query.where(session.c.status.in_(statuses))
    if error_codes is not None:
        query = query.where(session.c.error_code.in_(error_codes))
    for column, value in (
        (session.c.visit_id, visit_id), (session.c.radiology_order_id, radiology_order_id),
        (session.c.device_id, device_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if principal is not None:
        members = select(session_member.c.session_id).where(session_member.c.principal == principal)
        query = query.where(session.c.session_id.in_(members))
    if retries_left:
        query = query.where(session.c.retry_count < session.c.max_retries)
    if updated_after is not None:
        query = query.where(session.c.updated_at > updated_after)
    if before_seq is not None:
        query = query.where(session.c.seq < before_seq)
    return [_record(row) for row in tx.execute(query.order_by(session.c.seq.desc()).limit(limit))]


def add_ack(
    tx: Connection, site: str, session_id: str, device: str, server_image_id: int, blob_sha256: str
) -> None:
    """Note that `device` has its own read-back; a second time is no change."""
    if not acked(tx, session_id, device):
        tx.execute(insert(ack).values(
            site=site, session_id=session_id, device=device, server_image_id=server_image_id,
            blob_sha256=blob_sha256, acked_at=timestamp()))


def acked(tx: Connection, session_id: str, device: str) -> bool:
    """Whether `device` had its own ACK."""
    return tx.execute(
        select(ack.c.device).where(ack.c.session_id == session_id, ack.c.device == device)).first() is not None


def remembered(tx: Connection, principal: str, route: str, key: str, since: str) -> dict[str, Any] | None:
    """The answer kept for an Idempotency-Key: `request_sha256 status answer`."""
    row = tx.execute(select(idempotency).where(
        idempotency.c.principal == principal, idempotency.c.route == route, idempotency.c.key == key,
        idempotency.c.created_at >= since)).first()
    return dict(row._mapping) if row else None


def remember(
    tx: Connection, site: str, principal: str, route: str, key: str, request_sha256: str, status: int,
    answer: dict[str, Any],
) -> None:
    """Keep an answer for its Idempotency-Key; one that is older than its time is overwritten."""
    tx.execute(idempotency.delete().where(
        idempotency.c.principal == principal, idempotency.c.route == route, idempotency.c.key == key))
    tx.execute(insert(idempotency).values(
        site=site, principal=principal, route=route, key=key, request_sha256=request_sha256, status=status,
        answer=answer, created_at=timestamp()))


def forget_answers(tx: Connection, before: str) -> None:
    """Drop answers that are older than `before`."""
    tx.execute(idempotency.delete().where(idempotency.c.created_at < before))


def synced_without_image(tx: Connection) -> int:
    """Orphans (contract §6): sessions said to be stored, without an image or without its blob."""
    broken = (
        select(func.count()).select_from(
            session.outerjoin(image, session.c.server_image_id == image.c.id)
            .outerjoin(blob, (blob.c.sha256 == session.c.blob_sha256) & (blob.c.site == session.c.site)))
        .where(session.c.status.in_([Status.SYNCED, Status.ACK_RECEIVED]))
        .where(or_(image.c.id.is_(None), blob.c.sha256.is_(None)))
    )
    return int(tx.execute(broken).scalar_one())


def brought(tx: Connection, image_id: int, principal: str) -> bool:
    """Whether a session that `principal` made has this image; who was only answered with it knows a hash (§6)."""
    return tx.execute(
        select(session.c.session_id)
        .where(session.c.server_image_id == image_id, session.c.principal == principal).limit(1)
    ).first() is not None
