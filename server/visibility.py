"""Which images and orders a principal may see: its site, its scopes, what its role covers (contract §11)."""

from sqlalchemy import Connection

from server.auth import Principal, Role
from storage import orders, sessions
from storage.records import ImageRecord, OrderRecord


def may_see_image(tx: Connection, image: ImageRecord, who: Principal) -> bool:
    """A narrowed token: an image of an order that it covers; an uploader: what its own sessions brought.

    A rejected image is there for those only who may restore it, and for auditors.
    """
    if image.site != who.site or (image.rejected_at is not None and not who.may(Role.OPERATOR, Role.AUDITOR)):
        return False
    if who.is_narrowed:
        return any(who.sees_order(order.radiology_order_id, order.visit_id) for order in orders.of_image(tx, image.id))
    if who.may(Role.VIEWER, Role.AUDITOR):
        return True
    return sessions.brought(tx, image.id, who.name)


def only_names_orders(who: Principal) -> bool:
    """Whether the caller sees orders because its sessions name them, which anybody's may: it is told no patient."""
    return not who.is_narrowed and not who.may(Role.VIEWER)


def may_see_order(tx: Connection, order: OrderRecord, who: Principal) -> bool:
    """A narrowed token: the orders that it covers; an uploader: those that its sessions name."""
    if order.site != who.site or not who.sees_order(order.radiology_order_id, order.visit_id):
        return False
    if not only_names_orders(who):
        return True
    return orders.is_named_by(tx, order.site, order.radiology_order_id, who.name)
