"""Gives the chain out row by row, as JSON Lines or as DICOM audit messages, one a line. Holds a page at a time."""

import json
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from server.auditing.messages import message_of
from storage import audit, instances
from storage.records import DEFAULT_SITE, AuditEntry
from storage.store import Store

PAGE_ROWS = 1000
Row = dict[str, Any]  # a row of the audit table


class Format(StrEnum):
    """How a row is written."""

    JSONL = "jsonl"
    DICOM = "dicom"


async def export(store: Store, form: Format, after: int, actor: str, source_id: str) -> AsyncIterator[str]:
    """The rows behind `after`, one a line; the last one tells that they were given out (PS3.15 §A.5.3.2)."""
    end = await store.write(lambda tx: audit.append(tx, AuditEntry(
        DEFAULT_SITE, "audit.exported", actor, detail={"format": form, "after": after})))

    def page(tx: Connection, seq: int) -> list[tuple[int, str]]:
        return [(row["seq"], _line(tx, row, form, source_id)) for row in audit.after(tx, seq, PAGE_ROWS)]

    while after < end.seq:
        lines = await store.read(lambda tx, seq=after: page(tx, seq))  # type: ignore[misc]  # a default binds the value
        for seq, line in lines:
            if seq <= end.seq:
                yield line
        if not lines:
            return
        after = lines[-1][0]


def _line(tx: Connection, row: Row, form: Format, source_id: str) -> str:
    if form is Format.JSONL:
        return json.dumps(as_written(row), ensure_ascii=False, separators=(",", ":"))
    return message_of(row, source_id, _study_of(tx, row))


def as_written(row: Row) -> Row:
    """A row as its JSON: `detail` as an object."""
    return {**row, "detail": json.loads(row["detail"])}


def _study_of(tx: Connection, row: Row) -> str | None:
    subject = row["subject"] or ""
    if subject.startswith("image/") and subject.removeprefix("image/").isdecimal():
        image = instances.find(tx, row["site"], int(subject.removeprefix("image/")))
        return image.study_instance_uid if image is not None else None
    return subject if row["action"] in ("image.read", "study.stable") and "." in subject else None
