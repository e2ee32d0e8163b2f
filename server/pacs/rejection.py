"""Rejects images and shows them again (IHE IOCM): hidden from lists, viewers and forwarding. No byte is touched."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from server.errors import RequestError
from server.idempotency import Call, once
from server.linking import note_shown
from server.visibility import may_see_image
from storage import audit, instances, jobs, orders
from storage.records import AuditEntry, ImageRecord
from storage.store import Store

CODES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
"""Document titles of a rejection note, coding scheme DCM (PS3.16 CID 7011, IHE RAD TF-3 4.66)."""

Found = Callable[[Connection], Sequence[ImageRecord]]


class Rejection:
    """What an operator hides or shows. Twice is once: only what changes is audited."""

    def __init__(self, store: Store, on_restored: Callable[[], None]) -> None:
        self._store = store
        self._on_restored = on_restored

    async def image(self, image_id: int, code: str | None, reason: str, call: Call) -> dict[str, Any]:
        """Reject one image, or show it again with `code` None. RequestError `not_found`."""
        return await self._change(
            {"image_id": image_id}, lambda tx: _one(instances.find(tx, call.who.site, image_id)), code, reason, call)

    async def study(self, study_instance_uid: str, code: str | None, reason: str, call: Call) -> dict[str, Any]:
        """Reject the images that a study has now, or show all of them again with `code` None. RequestError `not_found`.

        What comes later is shown: it is another act of the modality.
        """
        return await self._change(
            {"study_instance_uid": study_instance_uid},
            lambda tx: instances.live_of_study(tx, call.who.site, study_instance_uid), code, reason, call)

    async def _change(
        self, subject: dict[str, Any], found: Found, code: str | None, reason: str, call: Call
    ) -> dict[str, Any]:
        def unit(tx: Connection) -> dict[str, Any]:
            images = [image for image in found(tx) if may_see_image(tx, image, call.who)]
            if not images:
                raise RequestError("not_found", "there is no such image")
            changed = [image for image in images if image.rejection_code != code]
            for image in changed:
                self._set(tx, image, code, reason, call)
            if code is None:
                _note_complete(tx, changed)
            return {**subject, "rejection_code": code, "meaning": CODES.get(code or ""),
                    "images": [image.id for image in images], "changed": len(changed)}

        request = {**subject, "code": code, "reason": reason}
        answer = await self._store.write(lambda tx: once(tx, call, request, unit))
        if code is None:
            self._on_restored()
        return answer

    def _set(self, tx: Connection, image: ImageRecord, code: str | None, reason: str, call: Call) -> None:
        instances.reject(tx, image.id, code)
        if code is None:
            jobs.release_deliveries(tx, image.site, image.id)
        audit.append(tx, AuditEntry(
            image.site, "image.rejected" if code else "image.restored", call.who.name, f"image/{image.id}", call.peer,
            detail={"code": code, "before": image.rejection_code, "reason": reason,
                    "sop_instance_uid": image.sop_instance_uid}))


def _note_complete(tx: Connection, restored: Sequence[ImageRecord]) -> None:
    """Tell of the orders that are complete by images that are shown again."""
    linked = [order for image in restored if image.superseded_by is None for order in orders.of_image(tx, image.id)]
    more = Counter(order.radiology_order_id for order in linked)
    for order in {order.radiology_order_id: order for order in linked}.values():
        note_shown(tx, order, more[order.radiology_order_id])


def _one(image: ImageRecord | None) -> list[ImageRecord]:
    return [image] if image is not None else []
