"""Units of work: what a session, images, a study or an order belong to, so that it is known who may hear of them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select

from storage.tables import image, image_order, imaging_order, session, session_member

Place = tuple[str | None, str | None]
"""An order and the visit that it belongs to."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The ids that something belongs to; `principals` brought it, or may go on with it.

    `places`: each order with its visit, None where there is none.
    """

    sessions: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()
    studies: frozenset[str] = frozenset()
    principals: frozenset[str] = frozenset()

    @property
    def orders(self) -> frozenset[str]:
        """The orders alone."""
        return frozenset(order for order, _ in self.places if order is not None)

    def __or__(self, other: "Scope") -> "Scope":
        return Scope(self.sessions | other.sessions, self.places | other.places, self.studies | other.studies,
                     self.principals | other.principals)


def of_session(tx: Connection, site: str, session_id: str) -> Scope:
    """Its order, its visit, the study of its image, and who may go on with it."""
    found = tx.execute(
        select(session.c.radiology_order_id, session.c.visit_id, image.c.study_instance_uid)
        .outerjoin(image, image.c.id == session.c.server_image_id)
        .where(session.c.site == site, session.c.session_id == session_id)).first()
    if found is None:
        return Scope()
    members = _set(tx, select(session_member.c.principal).where(session_member.c.session_id == session_id))
    return Scope(frozenset({session_id}), frozenset({(found[0], found[1])}), _given(found[2]), members)


def of_images(tx: Connection, site: str, image_ids: list[int]) -> Scope:
    """Their studies, orders and visits, and who brought them: who was only answered with one knows a hash (§6)."""
    return _of_images(tx, site, image.c.id.in_(image_ids))


def of_study(tx: Connection, site: str, study_instance_uid: str) -> Scope:
    """That of its images."""
    return _of_images(tx, site, image.c.study_instance_uid == study_instance_uid)


def of_order(tx: Connection, site: str, radiology_order_id: str) -> Scope:
    """That of its images, and its own visit and sessions."""
    linked = select(image_order.c.image_id).where(
        image_order.c.site == site, image_order.c.radiology_order_id == radiology_order_id,
        image_order.c.undone_at.is_(None))
    mine = session.c.site == site, session.c.radiology_order_id == radiology_order_id
    return _of_images(tx, site, image.c.id.in_(linked)) | Scope(
        sessions=_set(tx, select(session.c.session_id).where(*mine)),
        places=_places(tx, site, frozenset({radiology_order_id})),
        principals=_set(tx, select(session.c.principal).where(*mine)))


def _of_images(tx: Connection, site: str, which: ColumnElement[bool]) -> Scope:
    those = image.c.site == site, which
    orders = _set(tx, select(image_order.c.radiology_order_id).join(
        image, image.c.id == image_order.c.image_id).where(*those, image_order.c.undone_at.is_(None)))
    brought = session.join(image, image.c.id == session.c.server_image_id)
    return Scope(
        _set(tx, select(session.c.session_id).select_from(brought).where(*those)), _places(tx, site, orders),
        _set(tx, select(image.c.study_instance_uid).where(*those)),
        _set(tx, select(session.c.principal).select_from(brought).where(*those)))


def _places(tx: Connection, site: str, orders: frozenset[str]) -> frozenset[Place]:
    known = tx.execute(select(imaging_order.c.radiology_order_id, imaging_order.c.visit_id).where(
        imaging_order.c.site == site, imaging_order.c.radiology_order_id.in_(orders)))
    visits = {row.radiology_order_id: row.visit_id for row in known}
    return frozenset((order, visits.get(order)) for order in orders)


def _set(tx: Connection, query: Select[Any]) -> frozenset[str]:  # of one column
    return frozenset(value for value in tx.execute(query.distinct()).scalars() if value is not None)


def _given(value: str | None) -> frozenset[str]:
    return frozenset({value}) if value is not None else frozenset()
