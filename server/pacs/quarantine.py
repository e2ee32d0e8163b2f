"""What is held until a person decides: accepted it becomes an image, rejected it stays aside. No session changes."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection

from server.auth import Principal
from server.errors import RequestError
from server.filing import Origin
from server.idempotency import Call, once
from server.identifiers import shown
from server.pacs.ingest import Ingester
from server.reads import check_verified
from storage import audit, blob_rows, orders, quarantine, sessions
from storage.records import PRIORITIES, AuditEntry, Door, QuarantineRecord, QuarantineState, Sha256
from storage.store import Store

Verify = Callable[[str, str, str, str], Awaitable[None]]
"""(site, sha256, who asks, on whose behalf): returns once the medium gave the right bytes; see Readback.verify."""


class Quarantine:
    """Lists and decides. A decision for the other side of an accepted one is RequestError `already_accepted`."""

    def __init__(self, store: Store, ingester: Ingester, verify: Verify) -> None:
        self._store = store
        self._ingester = ingester
        self._verify = verify

    async def listing(
        self, state: QuarantineState | None, limit: int, after_id: int, who: Principal
    ) -> list[dict[str, Any]]:
        """What is, or was, held, in order of coming."""
        return await self._store.read(lambda tx: [
            _json(tx, held) for held in quarantine.listing(tx, who.site, state, limit, after_id)])

    async def accept(self, quarantine_id: int, reason: str, call: Call) -> dict[str, Any]:
        """The bytes become an image of their own; the live one of their UID is superseded (contract §6).

        The session that brought them stays FAILED: its sender was told so, and a new session is a duplicate of this.
        They have lain there for as long as a person took: they are read back first, for what is filed is never changed.
        RequestError `readback_failed`, `readback_running`.
        """
        held = await self._store.read(lambda tx: _find(tx, quarantine_id, call))
        if held.state is QuarantineState.ACCEPTED:
            return await self._store.write(lambda tx: once(
                tx, call, {"id": quarantine_id, "accept": reason}, lambda tx: _json(tx, held)))
        await self._verify(held.site, held.blob_sha256, f"quarantine/{held.id}", "quarantine")
        origin = await self._store.read(lambda tx: _origin(tx, held, call))
        blob = await self._store.read(lambda tx: blob_rows.find(tx, held.site, held.blob_sha256))
        assert blob is not None, "what is held owns its blob"
        inspection = await self._ingester.inspect(Sha256(held.blob_sha256), blob.size_bytes, origin)

        def unit(tx: Connection) -> dict[str, Any]:
            present = _find(tx, quarantine_id, call)
            if present.state is not QuarantineState.ACCEPTED:
                check_verified(tx, present.site, present.blob_sha256)
                image = self._ingester.accept(tx, inspection, origin).image
                assert image is not None, "whatever a person accepts is filed"
                quarantine.decide(tx, present.id, present.state, QuarantineState.ACCEPTED, image.id)
                _note(tx, present, "quarantine.accepted", reason, call, image_id=image.id)
            return _json(tx, _find(tx, quarantine_id, call))

        return await self._store.write(
            lambda tx: once(tx, call, {"id": quarantine_id, "accept": reason}, unit))

    async def reject(self, quarantine_id: int, reason: str, call: Call) -> dict[str, Any]:
        """The bytes stay aside; they may still be accepted later."""
        def unit(tx: Connection) -> dict[str, Any]:
            present = _find(tx, quarantine_id, call)
            if present.state is QuarantineState.ACCEPTED:
                raise RequestError("already_accepted", f"it is image {present.image_id} now: reject that image",
                                   image_id=present.image_id)
            if present.state is QuarantineState.HELD:
                quarantine.decide(tx, present.id, present.state, QuarantineState.REJECTED)
                _note(tx, present, "quarantine.rejected", reason, call)
            return _json(tx, _find(tx, quarantine_id, call))

        return await self._store.write(
            lambda tx: once(tx, call, {"id": quarantine_id, "reject": reason}, unit))


def _find(tx: Connection, quarantine_id: int, call: Call) -> QuarantineRecord:
    held = quarantine.find(tx, call.who.site, quarantine_id)
    if held is None:
        raise RequestError("not_found", "there is nothing held under that id")
    return held


def _origin(tx: Connection, held: QuarantineRecord, call: Call) -> Origin:
    """Where the bytes came from, filed by the person who accepts them."""
    session = sessions.find(tx, held.site, held.session_id) if held.session_id else None
    return Origin(
        held.site, Door(held.door), call.who.name, claims_dicom=True, radiology_order_id=held.radiology_order_id,
        session_id=held.session_id, file_name=session.file_name if session else None, peer=call.peer,
        priority=session.priority if session else PRIORITIES[0])


def _note(tx: Connection, held: QuarantineRecord, action: str, reason: str, call: Call, **detail: int) -> None:
    audit.append(tx, AuditEntry(
        held.site, action, call.who.name, f"quarantine/{held.id}", call.peer,
        detail={"reason": reason, "why_held": held.reason, "sha256": held.blob_sha256, "session_id": held.session_id,
                "supersedes": held.conflicts_with, **detail}))


def _json(tx: Connection, held: QuarantineRecord) -> dict[str, Any]:
    blob = blob_rows.find(tx, held.site, held.blob_sha256)
    order = orders.find(tx, held.site, held.radiology_order_id) if held.radiology_order_id is not None else None
    return {
        "id": held.id, "why_held": held.reason, "state": held.state, "sop_instance_uid": held.sop_instance_uid,
        "conflicts_with": held.conflicts_with, "image_id": held.image_id,
        "radiology_order_id": shown(order, "radiology_order_id") if order else held.radiology_order_id,
        "session_id": held.session_id, "door": held.door,
        "file_sha256": held.blob_sha256, "size": blob.size_bytes if blob else None, "created_at": held.created_at,
        "decided_at": held.decided_at}
