"""Units of work on uploads and blobs. Offsets compare and set; nothing here touches bytes."""

from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from storage.errors import Conflict, NotFound
from storage.records import BlobRecord, UploadRecord, UploadState, timestamp
from storage.tables import arrival, blob, image, quarantine, session, upload

_COLUMNS = [upload.c[field.name] for field in fields(UploadRecord)]


def _record(row: Row[Any]) -> UploadRecord:  # a row of the upload table
    values = dict(row._mapping)
    values["state"] = UploadState(values["state"])
    return UploadRecord(**values)


def add(tx: Connection, record: UploadRecord) -> None:
    """Insert a new upload. Refused when its session has a live one."""
    tx.execute(insert(upload).values(**asdict(record)))


def find(tx: Connection, upload_id: str) -> UploadRecord | None:
    """The upload of that id."""
    row = tx.execute(select(*_COLUMNS).where(upload.c.upload_id == upload_id)).first()
    return _record(row) if row else None


def get(tx: Connection, upload_id: str) -> UploadRecord:
    """Like `find`; NotFound when there is none."""
    record = find(tx, upload_id)
    if record is None:
        raise NotFound("no such upload")
    return record


def live(tx: Connection, session_id: str) -> UploadRecord | None:
    """The one upload of a session that is not gone."""
    row = tx.execute(
        select(*_COLUMNS).where(upload.c.session_id == session_id, upload.c.state != UploadState.GONE)
    ).first()
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


def open_count(tx: Connection, principal: str) -> int:
    """How many open uploads a principal has."""
    return int(tx.execute(select(func.count()).select_from(upload).where(
        upload.c.principal == principal, upload.c.state == UploadState.OPEN)).scalar_one())


def advance(tx: Connection, upload_id: str, expected: int, offset_bytes: int, boot_id: str, expires_at: str) -> None:
    """Note that `offset_bytes` are durable. Conflict when the upload is not open at `expected`."""
    changed = tx.execute(
        update(upload).where(
            upload.c.upload_id == upload_id, upload.c.state == UploadState.OPEN,
            upload.c.offset_bytes == expected)
        .values(offset_bytes=offset_bytes, boot_id=boot_id, expires_at=expires_at)
    )
    if changed.rowcount != 1:
        raise Conflict("the upload moved on")


def finish(tx: Connection, upload_id: str, blob_sha256: str) -> None:
    """Mark an open upload as finished. Conflict when it is not open."""
    changed = tx.execute(
        update(upload).where(upload.c.upload_id == upload_id, upload.c.state == UploadState.OPEN)
        .values(state=UploadState.FINISHED, finished_at=timestamp(), blob_sha256=blob_sha256,
                offset_bytes=upload.c.length_bytes)
    )
    if changed.rowcount != 1:
        raise Conflict("the upload is not open")


def end(tx: Connection, upload_id: str, reason: str) -> bool:
    """Mark an upload as gone for good; False when it was gone already."""
    changed = tx.execute(
        update(upload).where(upload.c.upload_id == upload_id, upload.c.state != UploadState.GONE)
        .values(state=UploadState.GONE, gone_reason=reason)
    )
    return changed.rowcount == 1


def add_blob(tx: Connection, site: str, sha256: str, size_bytes: int, repaired: bool = False) -> None:
    """Note a sealed blob; `repaired` clears its alarm, its bytes having been replaced by good ones."""
    there = tx.execute(select(blob.c.sha256).where(blob.c.site == site, blob.c.sha256 == sha256)).first()
    if there is None:
        tx.execute(insert(blob).values(
            site=site, sha256=sha256, size_bytes=size_bytes, sealed_at=timestamp(), alarm=None))
    elif repaired:
        tx.execute(update(blob).where(blob.c.site == site, blob.c.sha256 == sha256).values(alarm=None))


def find_blob(tx: Connection, site: str, sha256: str) -> BlobRecord | None:
    """The row of a sealed blob."""
    row = tx.execute(select(blob).where(blob.c.site == site, blob.c.sha256 == sha256)).first()
    return BlobRecord(**row._mapping) if row else None


def note_readback(tx: Connection, site: str, sha256: str, alarm: str | None) -> None:
    """Keep what reading a blob back found: verified now, or an alarm."""
    values: dict[str, Any] = {"alarm": alarm} if alarm else {"verified_at": timestamp()}
    tx.execute(update(blob).where(blob.c.site == site, blob.c.sha256 == sha256).values(**values))


def blobs_without_owner(tx: Connection) -> list[tuple[str, str]]:
    """Orphans (contract §6): (site, sha256) of blob rows that nothing refers to."""
    owners = [
        select(table.c.blob_sha256).where(table.c.blob_sha256 == blob.c.sha256, table.c.site == blob.c.site)
        for table in (session, upload, image, arrival, quarantine)
    ]
    query = select(blob.c.site, blob.c.sha256)
    for owner in owners:
        query = query.where(~owner.exists())
    return [(row.site, row.sha256) for row in tx.execute(query)]


def blob_keys(tx: Connection) -> set[tuple[str, str]]:
    """Every (site, sha256) that has a row."""
    return {(row.site, row.sha256) for row in tx.execute(select(blob.c.site, blob.c.sha256))}
