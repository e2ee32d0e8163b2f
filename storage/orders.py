"""Units of work on orders and their links: what the EMR said, and what was only named by a sender so far."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from storage.database.prepared import Prepared
from storage.records import ImageRecord, OrderRecord, timestamp
from storage.tables import image, image_order, imaging_order, session, session_member

BY_OPERATOR = "operator"
"""`linked_by` of a person's link: the only one that brings back a link which a person undid."""

_COLUMNS = [imaging_order.c[field.name] for field in fields(OrderRecord)]
_FIND = Prepared(select(*_COLUMNS).where(
    imaging_order.c.site == bindparam("wanted_site"), imaging_order.c.radiology_order_id == bindparam("wanted")))
_OF_IMAGE = Prepared(
    select(*_COLUMNS).join(image_order, (image_order.c.site == imaging_order.c.site) & (
        image_order.c.radiology_order_id == imaging_order.c.radiology_order_id))
    .where(image_order.c.image_id == bindparam("wanted"), image_order.c.undone_at.is_(None))
    .order_by(image_order.c.linked_at, image_order.c.radiology_order_id))
_LINK = Prepared(select(image_order.c.linked_by, image_order.c.undone_at).where(
    image_order.c.image_id == bindparam("wanted"), image_order.c.radiology_order_id == bindparam("wanted_order")))
_SHOWN = (image.c.superseded_by.is_(None), image.c.rejected_at.is_(None))


def _record(row: Row[Any]) -> OrderRecord:  # a row of the order table
    return OrderRecord(**row._mapping)


def find(tx: Connection, site: str, radiology_order_id: str) -> OrderRecord | None:
    """The order of that id."""
    row = _FIND.first(tx, wanted_site=site, wanted=radiology_order_id)
    return OrderRecord(*row) if row else None


def by_accession(tx: Connection, site: str, accession_number: str) -> list[OrderRecord]:
    """The orders of a site with that accession number."""
    rows = tx.execute(select(*_COLUMNS).where(
        imaging_order.c.site == site, imaging_order.c.accession_number == accession_number))
    return [_record(row) for row in rows]


def listing(
    tx: Connection, site: str, *, visit_id: str | None = None, radiology_order_id: str | None = None,
    accession_number: str | None = None, patient_id: str | None = None, principal: str | None = None, after: str = "",
    limit: int = 100,
) -> list[OrderRecord]:
    """Orders of a site by their ids; `principal`: those that sessions of his name; `after` goes on behind a page."""
    query = select(*_COLUMNS).where(imaging_order.c.site == site, imaging_order.c.radiology_order_id > after)
    if visit_id is not None:
        query = query.where(imaging_order.c.visit_id == visit_id)
    if radiology_order_id is not None:
        query = query.where(imaging_order.c.radiology_order_id == radiology_order_id)
    if accession_number is not None:
        query = query.where(imaging_order.c.accession_number == accession_number)
    if patient_id is not None:
        query = query.where(imaging_order.c.attributes["patient_id"].as_string() == patient_id)
    if principal is not None:
        query = query.where(imaging_order.c.radiology_order_id.in_(_named_by(site, principal)))
    return [_record(row) for row in tx.execute(query.order_by(imaging_order.c.radiology_order_id).limit(limit))]


def is_named_by(tx: Connection, site: str, radiology_order_id: str, principal: str) -> bool:
    """Whether a session that is `principal`'s to go on with names the order."""
    named = _named_by(site, principal).where(session.c.radiology_order_id == radiology_order_id)
    return tx.execute(named.limit(1)).first() is not None


def _named_by(site: str, principal: str) -> Any:  # a Select of one text column
    return select(session.c.radiology_order_id).join(
        session_member, session_member.c.session_id == session.c.session_id).where(
        session.c.site == site, session_member.c.principal == principal,
        session.c.radiology_order_id.is_not(None))


def put(
    tx: Connection, site: str, radiology_order_id: str, *, visit_id: str | None, accession_number: str | None,
    verified: bool, attributes: dict[str, Any], numeric_ids: str = "",
) -> OrderRecord:
    """Insert the order, or replace what was known of it."""
    values = {"visit_id": visit_id, "accession_number": accession_number, "verified": verified,
              "attributes": attributes, "numeric_ids": numeric_ids, "updated_at": timestamp()}
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


def link(tx: Connection, site: str, image_id: int, radiology_order_id: str, linked_by: str) -> bool:
    """Link an image to an order; False, and no change, when it is linked, or a person undid that link."""
    known = _LINK.first(tx, wanted=image_id, wanted_order=radiology_order_id)
    if known is None:
        tx.execute(insert(image_order).values(
            site=site, image_id=image_id, radiology_order_id=radiology_order_id, linked_by=linked_by,
            linked_at=timestamp()))
        return True
    if known[1] is None or linked_by != BY_OPERATOR:
        return False
    tx.execute(_the_link(image_id, radiology_order_id).values(
        linked_by=linked_by, linked_at=timestamp(), undone_at=None))
    return True


def is_linked(tx: Connection, image_id: int, radiology_order_id: str) -> bool:
    """Whether an image is linked to an order."""
    known = _LINK.first(tx, wanted=image_id, wanted_order=radiology_order_id)
    return known is not None and known[1] is None


def unlink(tx: Connection, image_id: int, radiology_order_id: str) -> bool:
    """Undo a link, so that nothing but a person brings it back; False, and no change, when there is none."""
    undo = _the_link(image_id, radiology_order_id).where(image_order.c.undone_at.is_(None))
    return tx.execute(undo.values(undone_at=timestamp())).rowcount == 1


def _the_link(image_id: int, radiology_order_id: str) -> Any:  # an Update of the links
    return update(image_order).where(
        image_order.c.image_id == image_id, image_order.c.radiology_order_id == radiology_order_id)


def of_image(tx: Connection, image_id: int) -> list[OrderRecord]:
    """The orders that an image is linked to."""
    return [OrderRecord(*row) for row in _OF_IMAGE.rows(tx, wanted=image_id)]


def images(tx: Connection, site: str, radiology_order_id: str) -> list[ImageRecord]:
    """The images that are linked to an order and shown, in order of coming."""
    columns = [image.c[field.name] for field in fields(ImageRecord)]
    rows = tx.execute(select(*columns).join(image_order, image_order.c.image_id == image.c.id).where(
        *_linked(site, radiology_order_id), *_SHOWN).order_by(image.c.id))
    return [ImageRecord(**row._mapping) for row in rows]


def count_images(tx: Connection, site: str, radiology_order_id: str) -> tuple[int, int]:
    """The images that are linked to an order and shown: how many, and their bytes."""
    count, size_bytes = tx.execute(
        select(func.count(), func.coalesce(func.sum(image.c.size_bytes), 0))
        .join(image_order, image_order.c.image_id == image.c.id)
        .where(*_linked(site, radiology_order_id), *_SHOWN)).one()
    return int(count), int(size_bytes)


def has_links(tx: Connection, site: str, radiology_order_id: str) -> bool:
    """Whether any image is linked to an order, shown or not."""
    links = select(image_order.c.image_id).where(*_linked(site, radiology_order_id))
    return tx.execute(links.limit(1)).first() is not None


def _linked(site: str, radiology_order_id: str) -> tuple[Any, ...]:  # conditions on the links
    return (image_order.c.site == site, image_order.c.radiology_order_id == radiology_order_id,
            image_order.c.undone_at.is_(None))


def unlinked_images(
    tx: Connection, site: str, *, accession_number: str | None = None, principal: str | None = None,
    before_id: int | None = None, limit: int | None = None,
) -> list[ImageRecord]:
    """The images that are shown and linked to no order, the newest first; `principal`: those that he brought."""
    columns = [image.c[field.name] for field in fields(ImageRecord)]
    links = select(image_order.c.image_id).where(
        image_order.c.image_id == image.c.id, image_order.c.undone_at.is_(None))
    query = select(*columns).where(image.c.site == site, *_SHOWN, ~links.exists())
    if accession_number is not None:
        query = query.where(image.c.accession_number == accession_number)
    if principal is not None:
        query = query.where(image.c.id.in_(select(session.c.server_image_id).where(
            session.c.site == site, session.c.principal == principal, session.c.server_image_id.is_not(None))))
    if before_id is not None:
        query = query.where(image.c.id < before_id)
    return [ImageRecord(**row._mapping) for row in tx.execute(query.order_by(image.c.id.desc()).limit(limit))]
