"""What is told: audit rows become events. Pure."""

import json
from dataclasses import dataclass
from typing import Any

_BY_STATUS = {"SYNCED": "session.synced", "FAILED": "session.failed"}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to tell: `event_id` is the same for every attempt and every receiver."""

    event_id: str
    kind: str
    site: str
    body: str


def event_of(row: dict[str, Any]) -> Event | None:
    """The event that an audit row stands for; None for most. It holds ids and digests, never a name."""
    detail = json.loads(row["detail"])
    kind = {"image.stored": "image.stored"}.get(row["action"])
    if row["action"] == "session.status":
        kind = _BY_STATUS.get(detail.get("to"))
    if kind is None:
        return None
    subject = {"session_id": row["subject"]} if kind.startswith("session.") else {
        "image_id": int(row["subject"].removeprefix("image/"))}
    known = ("session_id", "error_code", "sha256", "sop_instance_uid", "door")
    data = {"site": row["site"], **subject, **{name: detail[name] for name in known if detail.get(name) is not None},
            "seq": row["seq"], "links": {name: f"/api/v1/{path}" for name, path in _links(subject).items()}}
    body = json.dumps({"type": kind, "timestamp": row["at"], "data": data}, separators=(",", ":"))
    return Event(f"evt_{row['seq']}_{row['row_hash'][:16]}", kind, row["site"], body)


def _links(subject: dict[str, Any]) -> dict[str, str]:
    if "session_id" in subject:
        return {"session": f"upload-sessions/{subject['session_id']}/"}
    return {"image": f"images/{subject['image_id']}/"}
