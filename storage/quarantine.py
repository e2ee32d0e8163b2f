"""Units of work on quarantine: bytes that are held until a person decides. Rows stay, and so do their bytes."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from storage.errors import Conflict
from storage.records import QuarantineRecord, QuarantineState, timestamp
from storage.tables import quarantine

_COLUMNS = [quarantine.c[field.name] for field in fields(QuarantineRecord)]


def _record(row: Row[Any]) -> QuarantineRecord:  # a row of the quarantine table
    values = dict(row._mapping)
    values["state"] = QuarantineState(values["state"])
    return QuarantineRecord(**values)


def hold(
    tx: Connection, site: str, *, blob_sha256: str, reason: str, sop_instance_uid: str, conflicts_with: int | None,
    session_id: str | None, radiology_order_id: str | None, door: str,
) -> int:
    """Keep bytes aside for a person; the same bytes for the same reason and order are kept once. Gives the id."""
    same = tx.execute(select(quarantine.c.id).where(
        quarantine.c.site == site, quarantine.c.blob_sha256 == blob_sha256, quarantine.c.reason == reason,
        quarantine.c.radiology_order_id.is_not_distinct_from(radiology_order_id))).scalar()
    if same is not None:
        return int(same)
    done = tx.execute(insert(quarantine).values(
        site=site, blob_sha256=blob_sha256, reason=reason, sop_instance_uid=sop_instance_uid,
        conflicts_with=conflicts_with, session_id=session_id, radiology_order_id=radiology_order_id, door=door,
        state=QuarantineState.HELD, created_at=timestamp()))
    assert done.inserted_primary_key is not None, "the table has a primary key"
    return int(done.inserted_primary_key[0])


def find(tx: Connection, site: str, quarantine_id: int) -> QuarantineRecord | None:
    """What is held under that id."""
    row = tx.execute(select(*_COLUMNS).where(quarantine.c.site == site, quarantine.c.id == quarantine_id)).first()
    return _record(row) if row else None


def listing(
    tx: Connection, site: str, state: QuarantineState | None, limit: int, after_id: int = 0
) -> list[QuarantineRecord]:
    """What is, or was, held in a site, in order of coming."""
    query = select(*_COLUMNS).where(quarantine.c.site == site, quarantine.c.id > after_id)
    if state is not None:
        query = query.where(quarantine.c.state == state)
    return [_record(row) for row in tx.execute(query.order_by(quarantine.c.id).limit(limit))]


def decide(
    tx: Connection, quarantine_id: int, expected: QuarantineState, state: QuarantineState, image_id: int | None = None
) -> None:
    """Keep what a person decided. Conflict when the state is not `expected`."""
    changed = tx.execute(
        update(quarantine).where(quarantine.c.id == quarantine_id, quarantine.c.state == expected)
        .values(state=state, image_id=image_id, decided_at=timestamp()))
    if changed.rowcount != 1:
        raise Conflict("another decided meanwhile")
