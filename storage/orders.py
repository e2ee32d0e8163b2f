"""Units of work on orders: what the EMR said, and what was only named by a sender so far."""

from typing import Any

from sqlalchemy import Connection, insert, select, update

from storage.records import OrderRecord, timestamp
from storage.tables import image_order, imaging_order


def find(tx: Connection, site: str, radiology_order_id: str) -> OrderRecord | None:
    """The order of that id."""
    row = tx.execute(select(imaging_order).where(
        imaging_order.c.site == site, imaging_order.c.radiology_order_id == radiology_order_id)).first()
    return OrderRecord(**row._mapping) if row else None


def by_accession(tx: Connection, site: str, accession_number: str) -> list[OrderRecord]:
    """The orders of a site with that accession number."""
    rows = tx.execute(select(imaging_order).where(
        imaging_order.c.site == site, imaging_order.c.accession_number == accession_number))
    return [OrderRecord(**row._mapping) for row in rows]


def put(
    tx: Connection, site: str, radiology_order_id: str, *, visit_id: str | None, accession_number: str | None,
    verified: bool, attributes: dict[str, Any],
) -> OrderRecord:
    """Insert the order, or replace what was known of it."""
    values = {"visit_id": visit_id, "accession_number": accession_number, "verified": verified,
              "attributes": attributes, "updated_at": timestamp()}
    if find(tx, site, radiology_order_id) is None:
        tx.execute(insert(imaging_order).values(
            site=site, radiology_order_id=radiology_order_id, created_at=values["updated_at"], **values))
    else:
        tx.execute(update(imaging_order).where(
            imaging_order.c.site == site, imaging_order.c.radiology_order_id == radiology_order_id
        ).values(**values))
    record = find(tx, site, radiology_order_id)
    assert record is not None, "it was just written"
    return record


def link(tx: Connection, site: str, image_id: int, radiology_order_id: str, linked_by: str) -> None:
    """Link an image to an order; twice is no change."""
    there = select(image_order.c.image_id).where(
        image_order.c.image_id == image_id, image_order.c.radiology_order_id == radiology_order_id)
    if tx.execute(there).first() is None:
        tx.execute(insert(image_order).values(
            site=site, image_id=image_id, radiology_order_id=radiology_order_id, linked_by=linked_by,
            linked_at=timestamp()))


def of_image(tx: Connection, image_id: int) -> list[str]:
    """The orders that an image is linked to."""
    return [row[0] for row in tx.execute(
        select(image_order.c.radiology_order_id).where(image_order.c.image_id == image_id)
        .order_by(image_order.c.linked_at))]


def image_ids(tx: Connection, site: str, radiology_order_id: str) -> list[int]:
    """The images that are linked to an order."""
    return [row[0] for row in tx.execute(
        select(image_order.c.image_id).where(
            image_order.c.site == site, image_order.c.radiology_order_id == radiology_order_id)
        .order_by(image_order.c.image_id))]
