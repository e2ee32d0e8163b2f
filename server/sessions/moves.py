"""Units of work that move a session: each move is checked, audited, and compared-and-set. Nothing else moves one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import Connection

from server.errors import RequestError, SessionFailure
from server.sessions import machine
from storage import audit, sessions, uploads
from storage.database.base import at_unit_end
from storage.records import AuditEntry, AuditPosition, SessionRecord, Status, timestamp

log = structlog.get_logger()
Columns = dict[str, Any]  # columns of the session table, by name


def note(
    tx: Connection, record: SessionRecord, action: str, actor: str, peer: str | None = None, outcome: str = "ok",
    **detail: Any,  # whatever JSON can hold: ids, sizes, codes
) -> AuditPosition:
    """Append an audit row about a session."""
    return audit.append(tx, AuditEntry(
        record.site, action, actor=actor, subject=record.session_id, peer=peer, outcome=outcome, detail=detail))


def walk(
    tx: Connection, record: SessionRecord, steps: Sequence[tuple[Status, Columns]], actor: str, peer: str | None,
    detail: Columns | None = None,
) -> Columns:
    """Check and audit moves in the table's sense, one after another, and write nothing else.

    Gives the columns of the session that they change. RequestError `invalid_transition`.
    """
    status, changed = record.status, Columns()
    for to, columns in steps:
        machine.check(status, to)
        position = note(tx, record, "session.status", actor, peer, **{"from": status, "to": to, **(detail or {})})
        status = to
        changed |= {**columns, "status": to, "seq": position.seq}
    return changed


def move(
    tx: Connection, record: SessionRecord, to: Status, actor: str, *, peer: str | None = None,
    detail: Columns | None = None, **columns: Any,  # columns of the session table
) -> SessionRecord:
    """Move `record` to another status. RequestError `invalid_transition`, or Conflict."""
    return move_on(tx, record, [(to, columns)], actor, peer, detail)


def move_on(
    tx: Connection, record: SessionRecord, steps: Sequence[tuple[Status, Columns]], actor: str, peer: str | None,
    detail: Columns | None = None,
) -> SessionRecord:
    """Several moves at once: each is audited, the row is compared and set once. RequestError, or Conflict."""
    changed = walk(tx, record, steps, actor, peer, detail)
    sessions.change(tx, record.session_id, record.status, **changed)
    return replace(record, updated_at=timestamp(), **changed)


def fail(
    tx: Connection, record: SessionRecord, failure: SessionFailure, actor: str, peer: str | None = None,
    **columns: Any,  # columns of the session table
) -> SessionRecord:
    """Move to FAILED with the reason; uploads that §2 declares gone are ended in the same transaction."""
    failed = move(
        tx, record, Status.FAILED, actor, peer=peer, detail={"error_code": failure.code},
        error_code=failure.code, error_message=failure.detail, **columns)
    live = uploads.live(tx, record.session_id)
    if live is not None and not machine.keeps_upload(failure.code):
        uploads.end(tx, live.upload_id, failure.code)
    at_unit_end(tx, lambda _: log.warning("session.failed", session_id=record.session_id, error_code=failure.code,
                                          retryable=failure.retryable))
    return failed


def taking_metadata(record: SessionRecord, metadata: Columns) -> list[tuple[Status, Columns]]:
    """QUEUED → METADATA_UPLOADING → METADATA_UPLOADED: entered and left in one transaction (contract §3)."""
    columns: Columns = {"metadata_uploaded_at": timestamp()} if record.metadata_uploaded_at is None else {}
    if record.metadata is None:
        columns["metadata"] = metadata
    return [(Status.METADATA_UPLOADING, {}), (Status.METADATA_UPLOADED, columns)]


def taking_bytes(record: SessionRecord) -> list[tuple[Status, Columns]]:
    """The moves from where `record` is to BINARY_UPLOADING, where bytes are taken; none when it is there.

    RequestError `metadata_required` from QUEUED without metadata; `invalid_transition` where no bytes are wanted.
    """
    steps: list[tuple[Status, Columns]] = []
    if record.status is Status.QUEUED:
        if record.metadata is None:
            raise RequestError("metadata_required", "send upload_metadata/ first", session_id=record.session_id)
        steps = taking_metadata(record, record.metadata)
    if record.status in (Status.QUEUED, Status.METADATA_UPLOADED):
        return [*steps, (Status.BINARY_UPLOADING, {})]
    if record.status is not Status.BINARY_UPLOADING:
        machine.check(record.status, Status.BINARY_UPLOADING)
    return []
