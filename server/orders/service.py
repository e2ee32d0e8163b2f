"""What may be done with orders: announced by the EMR, read, listed, and asked how far they are."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from server.auth import Principal, Role
from server.errors import RequestError
from server.identifiers import OutsideId, parse_id
from server.orders.announcing import announce
from server.orders.progress import Progress
from server.orders.schema import OF_THE_PATIENT, OrderBody, attributes_of
from server.visibility import may_see_image, may_see_order, only_names_orders
from storage import orders
from storage.records import ImageRecord, OrderRecord
from storage.store import Store


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order, and the ids of its images that are shown."""

    record: OrderRecord
    images: list[int]


class OrderService:
    """The use cases. Raises RequestError; what may not be seen is `not_found`."""

    def __init__(self, store: Store, progress: Progress, *, quarantines: bool) -> None:
        self._store = store
        self._progress = progress
        self._quarantines = quarantines

    async def put(
        self, order_id: OutsideId, body: OrderBody, who: Principal, peer: str | None
    ) -> tuple[bool, OrderView]:
        """Announce or replace an order: (whether it is new, the order)."""
        who.require(Role.OPERATOR)
        visit = parse_id(body.visit_id, "visit_id") if body.visit_id is not None else None

        def unit(tx: Connection) -> tuple[bool, OrderView]:
            new, record = announce(
                tx, who.site, order_id, visit=visit, attributes=attributes_of(body), actor=who.name, peer=peer,
                quarantines=self._quarantines)
            return new, _view(tx, record, who)

        return await self._store.write(unit)

    async def get(self, order_id: OutsideId, who: Principal) -> OrderView:
        """What is known of an order."""
        return await self._store.read(lambda tx: _view(tx, _seen(tx, order_id, who), who))

    async def listing(self, who: Principal, limit: int, after: str, **by: str | None) -> list[OrderView]:
        """Orders that `who` may see, in order of their ids; `by`: see storage.orders.listing.

        RequestError `forbidden`: who is not told an order's patient finds none by guessing.
        """
        who.require(Role.VIEWER, Role.UPLOADER)
        if only_names_orders(who) and (by.get("patient_id") or by.get("accession_number")):
            raise RequestError("forbidden", "an uploader looks for no patient and no accession number")
        visit = by.pop("visit_id") or who.visit_id
        if not who.sees_visit(visit):
            return []
        principal = who.name if only_names_orders(who) else None
        return await self._store.read(lambda tx: [_view(tx, record, who) for record in orders.listing(
            tx, who.site, visit_id=visit, radiology_order_id=who.radiology_order_id, principal=principal, after=after,
            limit=limit, **by)])

    async def status(self, order_id: OutsideId, who: Principal) -> dict[str, Any]:
        """Expected, on its way, or there."""
        record = await self._store.read(lambda tx: _seen(tx, order_id, who))
        return await self._progress.of_order(record)

    async def images(self, order_id: OutsideId, who: Principal) -> list[ImageRecord]:
        """The images of an order that are shown and that `who` may see."""

        def unit(tx: Connection) -> list[ImageRecord]:
            record = _seen(tx, order_id, who)
            return [image for image in orders.images(tx, record.site, record.radiology_order_id)
                    if may_see_image(tx, image, who)]

        return await self._store.read(unit)


def _seen(tx: Connection, order_id: OutsideId, who: Principal) -> OrderRecord:
    who.require(Role.VIEWER, Role.UPLOADER)
    record = orders.find(tx, who.site, order_id.text)
    if record is None or not may_see_order(tx, record, who):
        raise RequestError("not_found", "there is no such order")
    return record


def _view(tx: Connection, record: OrderRecord, who: Principal) -> OrderView:
    """What `who` is shown of an order: to name one, which anybody can, tells neither its patient nor others' images."""
    images = orders.images(tx, record.site, record.radiology_order_id)
    if only_names_orders(who):
        images = [image for image in images if may_see_image(tx, image, who)]
        kept = {name: value for name, value in record.attributes.items() if name not in OF_THE_PATIENT}
        record = replace(record, attributes=kept, accession_number=None)
    return OrderView(record, [image.id for image in images])
