"""Units of work that move a session: each move is checked, audited, and compared-and-set. Nothing else moves one."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from server.errors import SessionFailure
from server.sessions import machine
from storage import audit, sessions, uploads
from storage.records import AuditEntry, AuditPosition, SessionRecord, Status, timestamp


def note(
    tx: Connection, record: SessionRecord, action: str, actor: str, peer: str | None = None, outcome: str = "ok",
    **detail: Any,  # whatever JSON can hold: ids, sizes, codes
) -> AuditPosition:
    """Append an audit row about a session."""
    return audit.append(tx, AuditEntry(
        record.site, action, actor=actor, subject=record.session_id, peer=peer, outcome=outcome, detail=detail))


def move(
    tx: Connection, record: SessionRecord, to: Status, actor: str, *, peer: str | None = None,
    detail: dict[str, Any] | None = None, **columns: Any,  # columns of the session table
) -> SessionRecord:
    """Move `record` to another status in the table's sense. RequestError `invalid_transition`, or Conflict."""
    machine.check(record.status, to)
    position = note(tx, record, "session.status", actor, peer, **{"from": record.status, "to": to, **(detail or {})})
    sessions.change(tx, record.session_id, record.status, status=to, seq=position.seq, **columns)
    return replace(record, status=to, seq=position.seq, updated_at=timestamp(), **columns)


def fail(
    tx: Connection, record: SessionRecord, failure: SessionFailure, actor: str, peer: str | None = None
) -> SessionRecord:
    """Move to FAILED with the reason; uploads that §2 declares gone are ended in the same transaction."""
    failed = move(
        tx, record, Status.FAILED, actor, peer=peer, detail={"error_code": failure.code},
        error_code=failure.code, error_message=failure.detail)
    live = uploads.live(tx, record.session_id)
    if live is not None and not machine.keeps_upload(failure.code):
        uploads.end(tx, live.upload_id, failure.code)
    return failed


def take_metadata(
    tx: Connection, record: SessionRecord, actor: str, metadata: dict[str, Any], peer: str | None = None
) -> SessionRecord:
    """QUEUED → METADATA_UPLOADING → METADATA_UPLOADED: entered and left in one transaction (contract §3)."""
    columns: dict[str, Any] = {"metadata_uploaded_at": timestamp()} if record.metadata_uploaded_at is None else {}
    if record.metadata is None:
        columns["metadata"] = metadata
    record = move(tx, record, Status.METADATA_UPLOADING, actor, peer=peer)
    return move(tx, record, Status.METADATA_UPLOADED, actor, peer=peer, **columns)
