"""What belongs to no order yet, and a person's word on where it belongs: links made and undone, each with a reason."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from server.auth import Principal, Role
from server.errors import RequestError
from server.idempotency import Call, once
from server.identifiers import OutsideId, parse_text_id, shown
from server.linking import BY_OPERATOR, link
from server.orders.announcing import name_order
from server.orders.progress import ACTIVE
from server.visibility import may_see_image
from storage import audit, instances, orders, sessions
from storage.records import AuditEntry, ImageRecord, OrderRecord, SessionRecord
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the inbox: images without an order, sessions on their way that name none."""

    images: list[ImageRecord]
    sessions: list[SessionRecord]


class Inbox:
    """Seen by operators, and by each creator as far as it made what lies there (contract §4)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, who: Principal, limit: int, before_id: int | None, before_seq: int | None) -> Page:
        """The newest first, `limit` of each; `before_id` and `before_seq` go on where a page ended."""
        principal = None if who.may(Role.OPERATOR) else who.name
        return await self._store.read(lambda tx: Page(
            orders.unlinked_images(tx, who.site, principal=principal, before_id=before_id, limit=limit),
            sessions.without_order(
                tx, who.site, ACTIVE, principal=principal, before_seq=before_seq, limit=limit)))

    async def link(self, image_id: int, order_id: OutsideId, reason: str, call: Call) -> dict[str, Any]:
        """Link an image to an order, which is unverified where the EMR has not announced it.

        RequestError `not_found`; `order_visit_mismatch`, `forbidden` for an order that the token does not cover.
        """

        visit = parse_text_id(call.who.visit_id, "visit_id") if call.who.visit_id is not None else None

        def unit(tx: Connection, image: ImageRecord) -> bool:
            order = name_order(tx, call.who, order_id, visit)
            _check_scope(order, call.who)
            return link(tx, image, order, BY_OPERATOR, call.who.name, call.peer, reason)

        return await self._change("link", image_id, order_id, reason, call, unit)

    async def unlink(self, image_id: int, order_id: OutsideId, reason: str, call: Call) -> dict[str, Any]:
        """Undo a link, whoever made it; nothing but a person's link brings it back. RequestError `not_found`."""

        def unit(tx: Connection, image: ImageRecord) -> bool:
            order = orders.find(tx, image.site, order_id.text)
            if order is not None:
                _check_scope(order, call.who)
            if not orders.unlink(tx, image.id, order_id.text):
                return False
            audit.append(tx, AuditEntry(
                image.site, "image.unlinked", call.who.name, f"image/{image.id}", call.peer,
                detail={"radiology_order_id": order_id.text, "reason": reason}))
            return True

        return await self._change("unlink", image_id, order_id, reason, call, unit)

    async def _change(
        self, verb: str, image_id: int, order_id: OutsideId, reason: str, call: Call,
        unit: Callable[[Connection, ImageRecord], bool],
    ) -> dict[str, Any]:
        def change(tx: Connection) -> dict[str, Any]:
            image = instances.find(tx, call.who.site, image_id)
            if image is None or not may_see_image(tx, image, call.who):
                raise RequestError("not_found", "there is no such image")
            changed = unit(tx, image)
            return {"image_id": image_id, "changed": changed,
                    "orders": [shown(order, "radiology_order_id") for order in orders.of_image(tx, image_id)]}

        request = {"verb": verb, "image_id": image_id, "radiology_order_id": order_id.text, "reason": reason}
        return await self._store.write(lambda tx: once(tx, call, request, change))


def _check_scope(order: OrderRecord, who: Principal) -> None:
    if not who.sees_order(order.radiology_order_id, order.visit_id):
        raise RequestError("forbidden", "the token does not cover that order")
