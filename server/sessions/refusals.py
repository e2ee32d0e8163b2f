"""Audits what sessions refuse with 409 (contract §3, §9): a row for each, in a transaction of its own."""

import structlog
from sqlalchemy import Connection

from server.auth import Principal
from server.errors import RequestError
from storage import audit, sessions
from storage.errors import StorageError
from storage.records import AuditEntry
from storage.store import Store

log = structlog.get_logger()


async def note_refusal(
    store: Store, who: Principal, session_id: str | None, peer: str | None, route: str, refusal: RequestError
) -> None:
    """Note a 409 with the session that the request or the refusal names, where that is one of the caller's site.

    Any other refusal leaves no row here. `route` is a pattern: what the request told is in no row.
    """
    if refusal.status != 409:
        return
    named = refusal.members.get("session_id") or session_id

    def unit(tx: Connection) -> None:
        record = sessions.find(tx, who.site, str(named)) if named else None
        status = {"status": record.status} if record is not None else {}
        audit.append(tx, AuditEntry(
            who.site, "session.refused", who.name, record.session_id if record is not None else None, peer,
            refusal.code, {"route": route, **status}))

    try:
        await store.write(unit)
    except StorageError as error:
        log.warning("session.refusal_not_noted", code=error.code)  # it is refused all the same
