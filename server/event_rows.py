"""What is told: audit rows become events, the same for webhooks and for streams. Ids and digests only, never a name."""

import json
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from server.identifiers import shown
from storage import instances, orders, scopes, sessions
from storage.scopes import Scope

Detail = dict[str, Any]  # an audit row's JSON
_BY_STATUS = {"SYNCED": "session.synced", "FAILED": "session.failed"}
_BY_OUTCOME = {"delivered": "forward.delivered", "parked": "forward.parked"}
ACTIONS = ("session.status", "image.stored", "delivery.attempt", "integrity.alarm", "study.stable", "order.complete")
"""The audit rows that are events."""
KINDS = ("session.status", *_BY_STATUS.values(), "image.stored", "study.stable", "order.complete",
         *_BY_OUTCOME.values(), "integrity.alarm")
"""Every event's name; `session.status` stands for every other status."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to tell; `seq` is its audit row, `event_id` the same however often it is told.

    `links`: paths below the server's address, by name. `scope`: what it belongs to.
    """

    seq: int
    event_id: str
    kind: str
    site: str
    at: str
    data: dict[str, Any]
    links: dict[str, str]
    scope: Scope

    def body(self, base_url: str) -> dict[str, Any]:
        """As JSON, its links below `base_url`."""
        return {"type": self.kind, "timestamp": self.at, "data": {
            "site": self.site, **self.data, "seq": self.seq,
            "links": {name: f"{base_url}{path}" for name, path in self.links.items()}}}


def events_of(tx: Connection, rows: list[dict[str, Any]]) -> list[Event]:
    """A unit of work: the events that audit rows stand for; most rows stand for none."""
    return [event for row in rows if (event := _event_of(tx, row)) is not None]


def _event_of(tx: Connection, row: dict[str, Any]) -> Event | None:
    kind = row["action"]
    detail: Detail = json.loads(row["detail"]) if kind in ACTIONS else {}
    if kind == "session.status":
        kind = _BY_STATUS.get(detail["to"], kind)
        data, links, scope = _session(tx, row, detail)
    elif kind == "delivery.attempt":
        kind = _BY_OUTCOME.get(row["outcome"])
        if kind is None:
            return None
        data, links, scope = _image(tx, row, detail, ("destination", "attempt", "status"))
    elif kind == "image.stored":
        data, links, scope = _image(tx, row, detail, ("sha256", "door", "session_id"))
    elif kind == "integrity.alarm":
        data, links, scope = _alarm(tx, row, detail)
    elif kind == "study.stable":
        data, links, scope = _study(tx, row, detail)
    elif kind == "order.complete":
        data, links, scope = _order(tx, row, detail)
    else:
        return None
    event_id = f"evt_{row['seq']}_{row['row_hash'][:16]}"
    return Event(row["seq"], event_id, kind, row["site"], row["at"], data, links, scope)


Told = tuple[dict[str, Any], dict[str, str], Scope]


def _session(tx: Connection, row: dict[str, Any], detail: Detail) -> Told:
    session_id = row["subject"]
    data = {"session_id": session_id, "status": detail["to"], "previous_status": detail["from"],
            **_some(detail, ("error_code",))}
    record = sessions.find(tx, row["site"], session_id)
    if record is not None:
        data |= {name: shown(record, name) for name in ("visit_id", "radiology_order_id")}
    return data, {"session": f"/api/v1/upload-sessions/{session_id}/"}, scopes.of_session(tx, row["site"], session_id)


def _image(tx: Connection, row: dict[str, Any], detail: Detail, names: tuple[str, ...]) -> Told:
    image_id = int(row["subject"].removeprefix("image/"))
    scope = scopes.of_images(tx, row["site"], [image_id])
    image = instances.find(tx, row["site"], image_id)
    links = {"image": f"/api/v1/images/{image_id}/"}
    data: dict[str, Any] = {"image_id": image_id, **_some(detail, names), "orders": _shown(tx, row, scope.orders)}
    if image is not None and image.study_instance_uid is not None:
        data |= {"sop_instance_uid": image.sop_instance_uid, "study_instance_uid": image.study_instance_uid}
        links["study"] = f"/api/v1/studies/{image.study_instance_uid}/"
    return data, links, scope


def _alarm(tx: Connection, row: dict[str, Any], detail: Detail) -> Told:
    image_ids = detail.get("image_ids", [])
    scope = scopes.of_images(tx, row["site"], image_ids)
    for session_id in detail.get("session_ids", []):  # whoever may go on with it must not delete its copy
        scope |= scopes.of_session(tx, row["site"], session_id)
    links = {"image": f"/api/v1/images/{image_ids[0]}/"} if image_ids else {}
    return _some(detail, ("sha256", "image_ids", "session_ids")), links, scope


def _study(tx: Connection, row: dict[str, Any], detail: Detail) -> Told:
    uid, scope = row["subject"], scopes.of_study(tx, row["site"], row["subject"])
    data = {"study_instance_uid": uid, **_some(detail, ("images",)), "orders": _shown(tx, row, scope.orders)}
    return data, {"study": f"/api/v1/studies/{uid}/"}, scope


def _order(tx: Connection, row: dict[str, Any], detail: Detail) -> Told:
    order_id = row["subject"].removeprefix("order/")
    data = {"radiology_order_id": _shown(tx, row, {order_id})[0], **_some(detail, ("images", "expected_images"))}
    return data, {"order": f"/api/v1/orders/{order_id}/"}, scopes.of_order(tx, row["site"], order_id)


def _shown(tx: Connection, row: dict[str, Any], order_ids: Set[str]) -> list[int | str | None]:
    """Ids of orders, each in the form first received."""
    known = {one: orders.find(tx, row["site"], one) for one in sorted(order_ids)}
    return [shown(order, "radiology_order_id") if order is not None else one for one, order in known.items()]


def _some(detail: Detail, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: detail[name] for name in names if detail.get(name) is not None}
