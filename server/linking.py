"""Links images to orders, wherever a link comes from; tells where the two contradict each other. Re-labels nothing."""

from typing import Protocol

from sqlalchemy import Connection

from storage import audit, jobs, orders
from storage.records import AuditEntry, ImageRecord, OrderRecord

BY_SESSION, BY_ACCESSION, BY_OPERATOR = "session", "accession", orders.BY_OPERATOR
"""Who made a link: the session that named the order, the Accession Number, or a person."""


class Labelled(Protocol):
    """What an object itself says of its patient and its order."""

    @property
    def patient_id(self) -> str | None:
        """Patient ID (0010,0020)."""

    @property
    def issuer_of_patient_id(self) -> str | None:
        """Issuer of Patient ID (0010,0021)."""

    @property
    def accession_number(self) -> str | None:
        """Accession Number (0008,0050)."""


def contradictions(order: OrderRecord, labelled: Labelled) -> tuple[str, ...]:
    """The flags of an image under an order: where both say something, and not the same (contract §10).

    The same Patient ID of two issuers is two patients (PS3.3 §C.2.3).
    """
    known = order.attributes.get("patient_id"), order.attributes.get("issuer_of_patient_id")
    flags = []
    if _differ(known[0], labelled.patient_id) or (
            labelled.patient_id and known[0] and _differ(known[1], labelled.issuer_of_patient_id)):
        flags.append("patient_mismatch")
    if _differ(order.accession_number, labelled.accession_number):
        flags.append("accession_mismatch")
    return tuple(flags)


def _differ(expected: str | None, actual: str | None) -> bool:
    return bool(expected and actual and expected.strip() != actual.strip())


def flags_of(image: ImageRecord, linked: list[OrderRecord]) -> list[str]:
    """What is odd about an image: what it was stored with, and where it contradicts an order that it is linked to."""
    own = image.flags.split(",") if image.flags else []
    return list(dict.fromkeys([*own, *(flag for order in linked for flag in contradictions(order, image))]))


def order_of_accession(tx: Connection, site: str, accession_number: str | None) -> OrderRecord | None:
    """The one order of that number; None also where two have it, for a person must choose then."""
    found = orders.by_accession(tx, site, accession_number) if accession_number else []
    return found[0] if len(found) == 1 else None


def link(
    tx: Connection, image: ImageRecord, order: OrderRecord, linked_by: str, actor: str, peer: str | None = None,
    reason: str | None = None,
) -> bool:
    """Link once. Audited: the link of a person, a contradiction, and the order when it is complete by it.

    False, and nothing changes, when it is linked, or when a person undid this link and none makes it again.
    """
    if not orders.link(tx, image.site, image.id, order.radiology_order_id, linked_by):
        return False
    if linked_by != BY_SESSION:  # a session's own rows tell it
        audit.append(tx, AuditEntry(
            image.site, "image.linked", actor, f"image/{image.id}", peer,
            detail={"radiology_order_id": order.radiology_order_id, "linked_by": linked_by, "reason": reason}))
    note_contradictions(tx, image, order, contradictions(order, image))
    jobs.raise_deliveries(tx, image.site, image.id, order.priority)
    if image.is_shown:
        note_shown(tx, order, 1)
    return True


def note_contradictions(tx: Connection, image: ImageRecord, order: OrderRecord, flags: tuple[str, ...]) -> None:
    """Audit that an image contradicts its order."""
    if flags:
        audit.append(tx, AuditEntry(
            image.site, "image.flagged", subject=f"image/{image.id}", outcome="contradiction",
            detail={"radiology_order_id": order.radiology_order_id, "flags": list(flags)}))


def note_shown(tx: Connection, order: OrderRecord, more: int) -> None:
    """So many `more` of the order's images are shown than before: audit it where they make it complete."""
    if order.expected_images is None:
        return
    count, _ = orders.count_images(tx, order.site, order.radiology_order_id)
    if count - more < order.expected_images <= count:
        note_complete(tx, order, count)


def note_complete(tx: Connection, order: OrderRecord, count: int) -> None:
    """Audit that every image that the order expects is here."""
    audit.append(tx, AuditEntry(
        order.site, "order.complete", subject=f"order/{order.radiology_order_id}",
        detail={"images": count, "expected_images": order.expected_images}))
