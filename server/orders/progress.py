"""How far an order's images are: expected, on their way, there; and when they will be. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from server.identifiers import shown
from storage import audit, orders, sessions, uploads
from storage.records import OrderRecord, SessionRecord, Status, UploadRecord, now, timestamp
from storage.store import Store

RECENT = timedelta(seconds=60)
"""The rate is that of the last minute, or since a sender last came."""
WAITING = (Status.QUEUED, Status.METADATA_UPLOADING, Status.METADATA_UPLOADED)
ACTIVE = (*WAITING, Status.BINARY_UPLOADING)


@dataclass(frozen=True, slots=True)
class Coming:
    """A session on its way, its live upload if it has one, and a moment and offset that its rate counts from."""

    session: SessionRecord
    upload: UploadRecord | None
    since: datetime
    since_bytes: int


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows say of an order, in one look."""

    sessions: Sequence[SessionRecord]
    coming: Sequence[Coming]
    images: int
    stored_bytes: int


class Progress:
    """Asks the rows, and the bytes of what is on its way."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of_order(self, order: OrderRecord) -> dict[str, Any]:
        """The order's status as JSON; sizes in bytes."""
        moment = now()
        rows = await self._store.read(lambda tx: _rows(tx, order, moment))
        received_bytes, rate = 0, 0.0
        for coming in rows.coming:
            held = 0
            if coming.upload is not None:  # it may end between the two looks: then its row is right
                held = max(coming.upload.offset_bytes, await self._store.held_bytes(coming.upload))
            received_bytes += held
            elapsed_s = max((moment - coming.since).total_seconds(), 0.001)
            rate += max(0, held - coming.since_bytes) / elapsed_s
        announced_bytes = sum(coming.session.file_size or 0 for coming in rows.coming)
        missing_bytes = max(0, announced_bytes - received_bytes)
        state = _state(order, rows)
        total_bytes = _total_bytes(order, rows, announced_bytes)
        percent = 100 if state == "there" else 0
        if state == "on_its_way" and total_bytes:
            percent = min(99, 100 * (rows.stored_bytes + received_bytes) // total_bytes)
        left_s = round(missing_bytes / rate) if rate >= 1 and missing_bytes else None
        return {
            "radiology_order_id": shown(order, "radiology_order_id"), "state": state, "percent": percent,
            "expected_images": order.expected_images, "images": rows.images,
            "sessions": _counts(rows.sessions),
            "bytes_received": rows.stored_bytes + received_bytes,
            "bytes_announced": rows.stored_bytes + announced_bytes,
            "bytes_per_s": round(rate), "estimated_left_s": left_s,
            "estimated_at": timestamp(moment + timedelta(seconds=left_s)) if left_s is not None else None}


def _rows(tx: Connection, order: OrderRecord, moment: datetime) -> Rows:
    of_order = sessions.of_order(tx, order.site, order.radiology_order_id)
    coming = [_coming(tx, session, moment) for session in of_order if session.status in ACTIVE]
    count, stored_bytes = orders.count_images(tx, order.site, order.radiology_order_id)
    return Rows(of_order, coming, count, stored_bytes)


def _coming(tx: Connection, session: SessionRecord, moment: datetime) -> Coming:
    """The rate counts from the oldest transfer that ended within the last minute, else from the newest before it."""
    upload = uploads.live(tx, session.session_id) if session.status not in WAITING else None
    begun = datetime.fromisoformat(upload.created_at if upload else session.created_at)
    since, since_bytes = begun, 0
    if upload is not None and moment - begun > RECENT:
        for row in audit.of_subject(tx, session.session_id):
            if row["action"] != "upload.transfer" or row["detail"].get("upload_id") != upload.upload_id:
                continue
            if moment - since <= RECENT:
                break
            since, since_bytes = datetime.fromisoformat(row["at"]), int(row["detail"]["offset_after"])
    return Coming(session, upload, since, since_bytes)


def _state(order: OrderRecord, rows: Rows) -> str:
    """`there` when every expected image is; where no number was told, when there are images and no more are coming."""
    expected = order.expected_images
    if rows.images >= expected if expected is not None else rows.images > 0 and not rows.coming:
        return "there"
    return "on_its_way" if rows.images or rows.coming else "expected"


def _total_bytes(order: OrderRecord, rows: Rows, announced_bytes: int) -> int:
    """All that will come: what is expected beyond what was announced is taken to be of the same size."""
    known, count = rows.stored_bytes + announced_bytes, rows.images + len(rows.coming)
    return known * max(count, order.expected_images or 0) // count if count else 0


def _counts(of_order: Sequence[SessionRecord]) -> dict[str, int]:
    """The sessions by what people read of them."""
    counts = {"waiting": 0, "sending": 0, "stored": 0, "failed": 0}
    names = {Status.BINARY_UPLOADING: "sending", Status.FAILED: "failed", **dict.fromkeys(WAITING, "waiting")}
    for session in of_order:
        counts[names.get(session.status, "stored")] += 1
    return counts
