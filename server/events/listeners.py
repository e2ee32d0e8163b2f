"""Who may hear of what: the caller's site, visit and role, and what it asked for. Pure."""

from dataclasses import dataclass, replace

from server.auth import Principal, Role
from server.event_rows import Event


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listener asked for; None: everything that it may hear of."""

    session_id: str | None = None
    radiology_order_id: str | None = None
    study_instance_uid: str | None = None

    def has(self, event: Event) -> bool:
        """Whether the event is of what was asked for."""
        asked = ((self.session_id, event.scope.sessions), (self.radiology_order_id, event.scope.orders),
                 (self.study_instance_uid, event.scope.studies))
        return all(value is None or value in known for value, known in asked)


def may_hear(event: Event, who: Principal) -> bool:
    """As for the session or the image itself: of its site; of a token's visit; an uploader of what it brought."""
    if event.site != who.site:
        return False
    if who.is_narrowed:
        return any(who.sees_order(order, visit) for order, visit in event.scope.places)
    return who.may(Role.VIEWER, Role.OPERATOR, Role.AUDITOR) or who.name in event.scope.principals


def as_heard(event: Event, who: Principal) -> Event:
    """The event as it is told to `who`: to a narrowed token without the orders that it does not see."""
    if not who.is_narrowed or "orders" not in event.data:
        return event
    seen = {order for order, visit in event.scope.places if who.sees_order(order, visit)}
    return replace(event, data={**event.data, "orders": [order for order in event.data["orders"] if order in seen]})
