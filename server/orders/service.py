"""Orders: announced by the EMR, or first named by a sender. An order belongs to the visit that first named it."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from sqlalchemy import Connection

from server.auth import Principal, Role
from server.bodies import Body, parse
from server.errors import RequestError
from server.identifiers import OutsideId, parse_id, present
from storage import audit, orders
from storage.records import AuditEntry, OrderRecord
from storage.store import Store


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("must be a time, such as 2026-11-22T10:02:40Z") from error  # without what was sent
    return text


Short = Annotated[str, Field(max_length=64)]


class OrderBody(Body):
    """What an EMR announces (contract §4)."""

    visit_id: int | str | None = None
    patient_id: Short | None = None
    issuer_of_patient_id: Short | None = None
    patient_name: Annotated[str, Field(max_length=324)] | None = None
    patient_birth_date: Annotated[str, Field(pattern=r"^\d{4}-?\d{2}-?\d{2}$")] | None = None
    patient_sex: Literal["M", "F", "O"] | None = None
    accession_number: Annotated[str, Field(max_length=16)] | None = None
    modality: Annotated[str, Field(max_length=16)] | None = None
    requested_procedure_description: Short | None = None
    study_instance_uid: Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")] | None = None
    scheduled_at: Annotated[str, AfterValidator(_moment)] | None = None
    scheduled_station_ae_title: Annotated[str, Field(max_length=16)] | None = None
    priority: Literal["STAT", "URGENT", "ROUTINE"] = "ROUTINE"
    expected_images: Annotated[int, Field(ge=0, le=1_000_000)] | None = None


def name_order(tx: Connection, site: str, radiology_order_id: str, visit_id: str | None) -> str | None:
    """A sender named an order: keep it, unverified, if it is new. Gives its visit.

    RequestError `order_visit_mismatch` when it belongs to another visit (contract §1).
    """
    known = orders.find(tx, site, radiology_order_id)
    if known is None:
        orders.put(
            tx, site, radiology_order_id, visit_id=visit_id, accession_number=None, verified=False, attributes={})
        return visit_id
    if visit_id is None or known.visit_id == visit_id:
        return known.visit_id
    if known.visit_id is not None:
        raise RequestError("order_visit_mismatch", "the order belongs to another visit")
    orders.put(tx, site, radiology_order_id, visit_id=visit_id, accession_number=known.accession_number,
               verified=known.verified, attributes=known.attributes)
    return visit_id


class OrderService:
    """What the EMR may do with orders."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, order_id: OutsideId, value: object, who: Principal) -> tuple[bool, dict[str, Any]]:
        """Announce or replace an order: (whether it is new, the order). Needs the operator's role."""
        who.require(Role.OPERATOR)
        body = parse(OrderBody, value)
        visit = parse_id(body.visit_id, "visit_id") if body.visit_id is not None else None

        def unit(tx: Connection) -> tuple[bool, OrderRecord]:
            known = orders.find(tx, who.site, order_id.text)
            if known is not None and known.visit_id is not None and visit is not None and known.visit_id != visit.text:
                raise RequestError("order_visit_mismatch", "the order belongs to another visit")
            attributes = {**body.model_dump(exclude={"visit_id"}), "visit_is_number": bool(visit and visit.numeric)}
            visit_id = visit.text if visit else known.visit_id if known else None
            record = orders.put(tx, who.site, order_id.text, visit_id=visit_id, accession_number=body.accession_number,
                                verified=True, attributes=attributes)
            audit.append(tx, AuditEntry(who.site, "order.announced", who.name, f"order/{order_id.text}"))
            return known is None, record

        new, record = await self._store.write(unit)
        return new, await self._json(order_id, record)

    async def get(self, order_id: OutsideId, who: Principal) -> dict[str, Any]:
        """An order and its images' ids. RequestError `not_found`."""
        who.require(Role.VIEWER, Role.UPLOADER)
        record = await self._store.read(lambda tx: orders.find(tx, who.site, order_id.text))
        if record is None or not who.sees_order(record.radiology_order_id, record.visit_id):
            raise RequestError("not_found", "there is no such order")
        return await self._json(order_id, record)

    async def _json(self, order_id: OutsideId, record: OrderRecord) -> dict[str, Any]:
        images = await self._store.read(lambda tx: orders.image_ids(tx, record.site, record.radiology_order_id))
        attributes = {name: record.attributes.get(name) for name in OrderBody.model_fields if name != "visit_id"}
        numeric = bool(record.attributes.get("visit_is_number", (record.visit_id or "").isdecimal()))
        return {
            "radiology_order_id": present(record.radiology_order_id, order_id.numeric),
            "visit_id": present(record.visit_id, numeric), **attributes, "verified": record.verified,
            "images": images, "created_at": record.created_at, "updated_at": record.updated_at}
