"""Units of work on uploads. Offsets compare and set; nothing here touches bytes."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, insert, or_, select, update

from storage.database.prepared import Prepared, inserting
from storage.errors import Conflict, NotFound
from storage.records import UploadRecord, UploadState, timestamp
from storage.tables import upload, upload_part

_COLUMNS = [upload.c[field.name] for field in fields(UploadRecord)]
_NAMES = [column.name for column in upload.c]
_STATE = [field.name for field in fields(UploadRecord)].index("state")
_ADD = inserting(upload)
_FIND = Prepared(select(*_COLUMNS).where(upload.c.upload_id == bindparam("wanted")))
_LIVE = Prepared(select(*_COLUMNS).where(
    upload.c.session_id == bindparam("wanted"), upload.c.state != UploadState.GONE.value))
_CLAIMED = case((upload.c.length_bytes > upload.c.offset_bytes, upload.c.length_bytes), else_=upload.c.offset_bytes)
_OPEN_COUNT = Prepared(select(func.count(), func.coalesce(func.sum(_CLAIMED), 0)).where(
    upload.c.principal == bindparam("wanted"), upload.c.state == UploadState.OPEN.value))
_FINISH = Prepared(
    update(upload).where(upload.c.upload_id == bindparam("wanted"), upload.c.state == UploadState.OPEN.value)
    .values(offset_bytes=upload.c.length_bytes, audited_bytes=upload.c.length_bytes),
    ("state", "finished_at", "blob_sha256", "offset_bytes", "audited_bytes"))
_ADVANCE = Prepared(
    update(upload).where(upload.c.upload_id == bindparam("wanted"), upload.c.state == UploadState.OPEN.value,
                         upload.c.offset_bytes == bindparam("expected"),
                         upload.c.audited_bytes == bindparam("expected_audited")),
    ("offset_bytes", "boot_id", "expires_at", "audited_bytes"))
_TELL = Prepared(
    update(upload).where(upload.c.upload_id == bindparam("wanted"), upload.c.audited_bytes < bindparam("told_bytes"))
    .values(audited_bytes=bindparam("told_bytes")))


def _record(row: Row[Any] | tuple[Any, ...]) -> UploadRecord:  # a row of the upload table
    values = list(row)
    values[_STATE] = UploadState(values[_STATE])
    return UploadRecord(*values)


def add(tx: Connection, record: UploadRecord) -> None:
    """Insert a new upload. Refused when its session has a live one."""
    _ADD.run(tx, **{name: getattr(record, name) for name in _NAMES})


def find(tx: Connection, upload_id: str) -> UploadRecord | None:
    """The upload of that id."""
    row = _FIND.first(tx, wanted=upload_id)
    return _record(row) if row else None


def get(tx: Connection, upload_id: str) -> UploadRecord:
    """Like `find`; NotFound when there is none."""
    record = find(tx, upload_id)
    if record is None:
        raise NotFound("no such upload")
    return record


def live(tx: Connection, session_id: str) -> UploadRecord | None:
    """The one upload of a session that is not gone."""
    row = _LIVE.first(tx, wanted=session_id)
    return _record(row) if row else None


def latest(tx: Connection, session_id: str) -> UploadRecord | None:
    """The upload of a session that was made last, gone or not."""
    row = tx.execute(
        select(*_COLUMNS).where(upload.c.session_id == session_id)
        .order_by(upload.c.created_at.desc(), upload.c.upload_id.desc()).limit(1)
    ).first()
    return _record(row) if row else None


def unfinished(tx: Connection) -> list[UploadRecord]:
    """Every open upload."""
    return [_record(row) for row in tx.execute(select(*_COLUMNS).where(upload.c.state == UploadState.OPEN))]


def expired(tx: Connection, moment: str) -> list[UploadRecord]:
    """Open uploads whose time is over at `moment`."""
    rows = tx.execute(
        select(*_COLUMNS).where(upload.c.state == UploadState.OPEN, upload.c.expires_at <= moment))
    return [_record(row) for row in rows]


def open_count(tx: Connection, principal: str) -> tuple[int, int]:
    """The open uploads of a principal: how many, and the bytes that they hold or have announced."""
    count, claimed_bytes = _OPEN_COUNT.first(tx, wanted=principal) or (0, 0)
    return int(count), int(claimed_bytes)


def declare_length(tx: Connection, upload_id: str, length_bytes: int) -> None:
    """Tell the length that was deferred. Conflict when the upload is not open, or has another length."""
    changed = tx.execute(
        update(upload).where(
            upload.c.upload_id == upload_id, upload.c.state == UploadState.OPEN,
            or_(upload.c.length_bytes.is_(None), upload.c.length_bytes == length_bytes))
        .values(length_bytes=length_bytes))
    if changed.rowcount != 1:
        raise Conflict("the upload has another length")


def await_end(tx: Connection, upload_id: str, awaits_end: bool) -> None:
    """Note whether the bytes that come now leave the upload open. Conflict when the upload is not open."""
    changed = tx.execute(
        update(upload).where(upload.c.upload_id == upload_id, upload.c.state == UploadState.OPEN)
        .values(awaits_end=awaits_end))
    if changed.rowcount != 1:
        raise Conflict("the upload is not open")


def add_parts(tx: Connection, site: str, final_id: str, part_ids: Sequence[str]) -> None:
    """Note of what a final upload is made, in order; one part may stand more than once."""
    tx.execute(insert(upload_part), [
        {"site": site, "final_id": final_id, "position": position, "part_id": part_id}
        for position, part_id in enumerate(part_ids)])


def parts(tx: Connection, final_id: str) -> list[UploadRecord]:
    """The parts of a final upload, in order."""
    rows = tx.execute(
        select(*_COLUMNS).join(upload_part, upload_part.c.part_id == upload.c.upload_id)
        .where(upload_part.c.final_id == final_id).order_by(upload_part.c.position))
    return [_record(row) for row in rows]


def finals_of(tx: Connection, part_id: str) -> list[str]:
    """The ids of the open final uploads that wait for this part."""
    rows = tx.execute(
        select(upload.c.upload_id).distinct().join(upload_part, upload_part.c.final_id == upload.c.upload_id)
        .where(upload_part.c.part_id == part_id, upload.c.state == UploadState.OPEN))
    return [row.upload_id for row in rows]


def shorten(tx: Connection, upload_ids: Sequence[str], expires_at: str) -> None:
    """Let open uploads expire at `expires_at` unless they do so earlier."""
    tx.execute(update(upload).where(
        upload.c.upload_id.in_(upload_ids), upload.c.expires_at > expires_at).values(expires_at=expires_at))


def advance(tx: Connection, expected: UploadRecord, present: UploadRecord) -> None:
    """Note the offset, boot, expiry and told bytes of `present`. Conflict when the upload is not open as `expected`."""
    changed = _ADVANCE.run(
        tx, wanted=expected.upload_id, expected=expected.offset_bytes, expected_audited=expected.audited_bytes,
        offset_bytes=present.offset_bytes, boot_id=present.boot_id, expires_at=present.expires_at,
        audited_bytes=present.audited_bytes)
    if changed != 1:
        raise Conflict("the upload moved on")


def tell(tx: Connection, upload_id: str, audited_bytes: int) -> bool:
    """Note that the audit tells of so many bytes; False when it did already."""
    return _TELL.run(tx, wanted=upload_id, told_bytes=audited_bytes) == 1


def finish(tx: Connection, upload_id: str, blob_sha256: str) -> None:
    """Mark an open upload as finished. Conflict when it is not open."""
    changed = _FINISH.run(tx, wanted=upload_id, state=UploadState.FINISHED, finished_at=timestamp(),
                          blob_sha256=blob_sha256)
    if changed != 1:
        raise Conflict("the upload is not open")


def end(tx: Connection, upload_id: str, reason: str) -> bool:
    """Mark an upload as gone for good; False when it was gone already."""
    changed = tx.execute(
        update(upload).where(upload.c.upload_id == upload_id, upload.c.state != UploadState.GONE)
        .values(state=UploadState.GONE, gone_reason=reason)
    )
    return changed.rowcount == 1
