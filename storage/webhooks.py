"""Units of work on webhooks: what is told to whom."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, String, cast, insert, select, update

from storage.errors import NotFound
from storage.records import DeliveryState, JobState, WebhookDeliveryRecord, timestamp
from storage.tables import job, webhook_delivery

_COLUMNS = [webhook_delivery.c[field.name] for field in fields(WebhookDeliveryRecord)]


def _record(row: Row[Any]) -> WebhookDeliveryRecord:  # a row of the webhook_delivery table
    values = dict(row._mapping)
    values["state"] = DeliveryState(values["state"])
    return WebhookDeliveryRecord(**values)


def add(tx: Connection, site: str, webhook: str, event_id: str, event: str, body: str) -> int:
    """Note that `webhook` must hear of an event; gives the delivery's id."""
    moment = timestamp()
    done = tx.execute(insert(webhook_delivery).values(
        site=site, webhook=webhook, event_id=event_id, event=event, body=body, state=DeliveryState.WAITING, attempts=0,
        created_at=moment, updated_at=moment))
    assert done.inserted_primary_key is not None, "the table has a primary key"
    return int(done.inserted_primary_key[0])


def find(tx: Connection, delivery_id: int) -> WebhookDeliveryRecord | None:
    """The delivery of that id."""
    row = tx.execute(select(*_COLUMNS).where(webhook_delivery.c.delivery_id == delivery_id)).first()
    return _record(row) if row else None


def get(tx: Connection, delivery_id: int) -> WebhookDeliveryRecord:
    """Like `find`; NotFound when there is none."""
    found = find(tx, delivery_id)
    if found is None:
        raise NotFound("no such delivery")
    return found


def listing(
    tx: Connection, site: str, state: str | None, webhook: str | None, limit: int
) -> list[WebhookDeliveryRecord]:
    """Deliveries of a site, the newest first."""
    query = select(*_COLUMNS).where(webhook_delivery.c.site == site)
    if state is not None:
        query = query.where(webhook_delivery.c.state == state)
    if webhook is not None:
        query = query.where(webhook_delivery.c.webhook == webhook)
    return [_record(row) for row in tx.execute(query.order_by(webhook_delivery.c.delivery_id.desc()).limit(limit))]


def begin_attempt(tx: Connection, delivery_id: int) -> None:
    """Count a call before it is made: a crash in it must not hide it."""
    tx.execute(update(webhook_delivery).where(webhook_delivery.c.delivery_id == delivery_id).values(
        attempts=webhook_delivery.c.attempts + 1, updated_at=timestamp()))


def end_attempt(
    tx: Connection, delivery_id: int, state: DeliveryState, status: int | None, error: str | None
) -> None:
    """Keep what a call came to."""
    moment = timestamp()
    tx.execute(update(webhook_delivery).where(webhook_delivery.c.delivery_id == delivery_id).values(
        state=state, last_status=status, last_error=error, updated_at=moment,
        delivered_at=moment if state is DeliveryState.DELIVERED else None))


def begin_again(tx: Connection, delivery_id: int) -> None:
    """A person wants it told again: attempts are counted from here."""
    tx.execute(update(webhook_delivery).where(webhook_delivery.c.delivery_id == delivery_id).values(
        state=DeliveryState.WAITING, attempts=0, last_status=None, last_error=None, delivered_at=None,
        updated_at=timestamp()))


def park_all_but(tx: Connection, known: list[str], error: str) -> None:
    """Give up what waits for other receivers than `known`, and end its jobs."""
    others = (webhook_delivery.c.state == DeliveryState.WAITING) & webhook_delivery.c.webhook.not_in(known)
    tx.execute(update(job).where(
        job.c.kind.startswith("webhook"), job.c.state == JobState.WAITING,
        job.c.subject.in_(select(cast(webhook_delivery.c.delivery_id, String)).where(others))
    ).values(state=JobState.DONE))
    tx.execute(update(webhook_delivery).where(others).values(
        state=DeliveryState.PARKED, last_error=error, updated_at=timestamp()))
