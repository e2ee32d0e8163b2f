"""Units of work on what an order is: named by a sender, announced by the EMR, reconciled with what came before."""

from typing import Any

from sqlalchemy import Connection

from server.auth import Principal
from server.errors import RequestError
from server.identifiers import OutsideId
from server.linking import BY_ACCESSION, contradictions, link, note_complete, note_contradictions, order_of_accession
from storage import audit, jobs, orders, sessions
from storage.records import AuditEntry, OrderRecord, Status, rank

STORED = (Status.SYNCED, Status.ACK_RECEIVED)


def name_order(
    tx: Connection, who: Principal, order_id: OutsideId, visit: OutsideId | None
) -> OrderRecord:
    """A sender named an order: keep it, unverified, if it is new. Gives what is known of it.

    RequestError `order_visit_mismatch` when it belongs to another visit (contract §1); `forbidden` where a narrowed
    token would bring an order that it does not see, with what is in it, into its own visit.
    """
    site = who.site
    known = orders.find(tx, site, order_id.text)
    if known is None:
        return orders.put(
            tx, site, order_id.text, visit_id=visit.text if visit else None, accession_number=None, verified=False,
            attributes={}, numeric_ids=_numeric_ids(None, order_id, visit))
    if visit is None or known.visit_id == visit.text:
        return known
    _check_visit(known, visit.text)
    if who.is_narrowed and _holds_more(tx, known, who):
        raise RequestError("forbidden", "the order has no visit yet: who announced it, or a wider token, names it")
    record = orders.put(
        tx, site, order_id.text, visit_id=visit.text, accession_number=known.accession_number, verified=known.verified,
        attributes=known.attributes, numeric_ids=_numeric_ids(known, order_id, visit))
    _tell_visit(tx, record, "server", None)
    return record


def announce(
    tx: Connection, site: str, order_id: OutsideId, *, visit: OutsideId | None, attributes: dict[str, Any],
    actor: str, peer: str | None, quarantines: bool,
) -> tuple[bool, OrderRecord]:
    """The EMR's word replaces what was known, but for the visit: (whether the order is new, the order).

    The same word again changes nothing. What came before is reconciled: images of the accession number are linked,
    contradictions noted, sessions get their visit, what waits is raised. RequestError `order_visit_mismatch`.
    """
    radiology_order_id, visit_id = order_id.text, visit.text if visit else None
    known = orders.find(tx, site, radiology_order_id)
    accession = attributes.get("accession_number")
    if known is not None:
        if visit_id is not None:
            _check_visit(known, visit_id)
        visit_id = visit_id or known.visit_id
        said = (known.verified, known.visit_id, known.accession_number, known.attributes)
        if said == (True, visit_id, accession, attributes):
            return False, known
    record = orders.put(tx, site, radiology_order_id, visit_id=visit_id, accession_number=accession, verified=True,
                        attributes=attributes, numeric_ids=_numeric_ids(known, order_id, visit))
    changed = sorted(name for name, value in attributes.items() if known and known.attributes.get(name) != value)
    audit.append(tx, AuditEntry(site, "order.announced", actor, f"order/{radiology_order_id}", peer,
                                detail={"changed": changed} if known else None))
    if known is not None:
        if known.visit_id is None and visit_id is not None:
            _tell_visit(tx, record, actor, peer)
        _compare(tx, known, record)
        _raise(tx, record, actor, peer)
    _link_by_accession(tx, record, actor, peer, quarantines)
    return known is None, record


def _holds_more(tx: Connection, order: OrderRecord, who: Principal) -> bool:
    """Whether there is more to an order than what the caller himself made under its name."""
    site, order_id = order.site, order.radiology_order_id
    return order.verified or orders.has_links(tx, site, order_id) or any(
        session.principal != who.name for session in sessions.of_order(tx, site, order_id))


def _numeric_ids(known: OrderRecord | None, order_id: OutsideId, visit: OutsideId | None) -> str:
    """The ids that JSON shows as numbers: each has the form first received (contract §1)."""
    if known is not None:
        numeric = set(known.numeric_ids.split(",")) - {""}
    else:
        numeric = {"radiology_order_id"} if order_id.numeric else set()
    if (known is None or known.visit_id is None) and visit is not None and visit.numeric:
        numeric.add("visit_id")
    return ",".join(sorted(numeric))


def _check_visit(known: OrderRecord, visit_id: str) -> None:
    if known.visit_id not in (None, visit_id):
        raise RequestError("order_visit_mismatch", "the order belongs to another visit")


def _tell_visit(tx: Connection, order: OrderRecord, actor: str, peer: str | None) -> None:
    """Sessions that named the order before its visit was known belong to it now."""
    assert order.visit_id is not None, "it is known now"
    position = audit.append(tx, AuditEntry(
        order.site, "order.visit", actor, f"order/{order.radiology_order_id}", peer,
        detail={"visit_id": order.visit_id}))
    sessions.give_visit(tx, order.site, order.radiology_order_id, order.visit_id, position.seq,
                        is_number="visit_id" in order.numeric_ids.split(","))


def _compare(tx: Connection, before: OrderRecord, order: OrderRecord) -> None:
    """What was linked before is held against the new word: contradictions that are new, an order complete by it."""
    images = orders.images(tx, order.site, order.radiology_order_id)
    for image in images:
        new = set(contradictions(order, image)) - set(contradictions(before, image))
        note_contradictions(tx, image, order, tuple(sorted(new)))
    if images and order.expected_images is not None and len(images) >= order.expected_images and (
            before.expected_images is None or len(images) < before.expected_images):
        note_complete(tx, order, len(images))


def _raise(tx: Connection, order: OrderRecord, actor: str, peer: str | None) -> None:
    """What waits of the order is as urgent as the order, or more; nothing falls (contract §4)."""
    if not rank(order.priority):
        return
    for session in sessions.of_order(tx, order.site, order.radiology_order_id):
        if session.status not in STORED and rank(session.priority) < rank(order.priority):
            position = audit.append(tx, AuditEntry(
                order.site, "session.priority", actor, session.session_id, peer,
                detail={"from": session.priority, "to": order.priority,
                        "radiology_order_id": order.radiology_order_id}))
            sessions.prioritise(tx, session.session_id, order.priority, position.seq)
    for image in orders.images(tx, order.site, order.radiology_order_id):
        jobs.raise_deliveries(tx, order.site, image.id, order.priority)


def _link_by_accession(
    tx: Connection, order: OrderRecord, actor: str, peer: str | None, quarantines: bool
) -> None:
    """Images that came before their order, and belong to none, are its own if no other order has that number.

    Where contradictions are quarantined, one of another patient stays in the inbox, for a person to decide.
    """
    if order_of_accession(tx, order.site, order.accession_number) != order:
        return
    for image in orders.unlinked_images(tx, order.site, accession_number=order.accession_number):
        if not (quarantines and contradictions(order, image)):
            link(tx, image, order, BY_ACCESSION, actor, peer)
