"""Turns events into deliveries, and carries deliveries out: signed, repeated, never given up in silence.

Fact: the audit chain is written in the transaction of what it tells, so a place in it, kept as a row, is all that it
takes to tell everything once, also after a crash. Each receiver has a kind of job of its own, so that one that hangs
delays nobody else.
"""

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import aiohttp
from sqlalchemy import Connection

from server.auth import Principal, Role
from server.errors import RequestError
from server.event_rows import ACTIONS, KINDS, Event, events_of
from server.webhooks.signing import signed_headers
from server.worker import Done, Later
from storage import audit, jobs, webhooks
from storage.records import AuditEntry, DeliveryState, JobRecord, WebhookDeliveryRecord, now, timestamp
from storage.store import Store

BATCH_ROWS = 500
TIMEOUT_S = 15.0
GIVEN_UP_AFTER = timedelta(days=3)
GIVEN_UP_ATTEMPTS = 400
"""About what fits into that time. Both must be over, so that neither a clock that jumps nor a late resend gives up."""
NOT_CONFIGURED = "no such webhook is configured"
READER = "webhooks"
"""Whose place in the chain it is."""
TOLD = frozenset(KINDS) - {"session.status"}
"""What is told by webhooks: nobody is called for each step of a session."""
AT_ONCE = 2
"""Calls to one receiver at once."""
ANY = "webhook"
"""The kind of jobs whose receiver has no kind of its own: it is not configured any more."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver: where, the secret it shares with us, and what it wants to hear."""

    url: str
    secret: str
    events: tuple[str, ...]

    @property
    def job_kind(self) -> str:
        """The kind of the jobs that call it."""
        return f"{ANY}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"

    def wants(self, kind: str) -> bool:
        """Whether it asked for such events."""
        return kind in TOLD and ("*" in self.events or kind in self.events)


async def post(session: aiohttp.ClientSession, webhook: Webhook, event_id: str, body: bytes) -> int:
    """One signed call: the status. Redirects are not followed, for the signature names no address. OSError."""
    headers = {"Content-Type": "application/json", "User-Agent": "packhorse",
               **signed_headers(webhook.secret, event_id, int(time.time()), body)}
    async with session.post(webhook.url, data=body, headers=headers, allow_redirects=False,
                            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as answer:
        return answer.status


class Webhooks:
    """The use cases."""

    def __init__(self, store: Store, receivers: tuple[Webhook, ...], public_url: str = "") -> None:
        self._store = store
        self._public_url = public_url.rstrip("/")
        self._receivers = {one.url: one for one in receivers}

    def job_kinds(self) -> dict[str, int]:
        """The kinds of jobs that `run_job` is for, and how many of each may run at once."""
        return {ANY: AT_ONCE, **{one.job_kind: AT_ONCE for one in self._receivers.values()}}

    def _job_kind(self, url: str) -> str:
        return self._receivers[url].job_kind if url in self._receivers else ANY

    async def begin(self) -> None:
        """Before anything happens: what is told begins here, unless it began at an earlier start.

        What waits for a receiver that is configured no more is parked: nobody would look for its jobs.
        """
        await self._store.write(lambda tx: webhooks.park_all_but(tx, list(self._receivers), NOT_CONFIGURED))
        if self._receivers:
            await self._store.write(lambda tx: audit.place(tx, READER))

    async def gather(self) -> set[str]:
        """Read the audit chain on from where it was left, and queue what receivers want to hear.

        Gives the kinds of the jobs.
        """
        queued: set[str] = set()
        if not self._receivers:
            return queued
        while True:
            seq, last, events = await self._store.read(_news)
            if last == seq:
                return queued
            wanted = [(event, one) for event in events for one in self._receivers.values() if one.wants(event.kind)]
            await self._store.write(partial(self._queue, seq, last, wanted))
            queued |= {one.job_kind for _event, one in wanted}

    def _queue(self, seq: int, last: int, wanted: list[tuple[Event, Webhook]], tx: Connection) -> None:
        audit.advance(tx, READER, seq, last)
        for event, receiver in wanted:
            body = json.dumps(event.body(self._public_url), separators=(",", ":"))
            delivery_id = webhooks.add(tx, event.site, receiver.url, event.event_id, event.kind, body)
            jobs.enqueue(tx, event.site, receiver.job_kind, str(delivery_id))

    async def run_job(self, job: JobRecord) -> Done | Later:
        """Send one delivery; a receiver that answers 410 wants no more of it."""
        delivery = await self._store.read(lambda tx: webhooks.find(tx, int(job.subject)))
        if delivery is None or delivery.state is not DeliveryState.WAITING:
            await self._store.write(lambda tx: jobs.done(tx, job))
            return Done()
        receiver = self._receivers.get(delivery.webhook)
        status, error = (None, NOT_CONFIGURED) if receiver is None else await self._send(
            receiver, delivery)
        state = DeliveryState.WAITING
        if status is not None and 200 <= status < 300:
            state = DeliveryState.DELIVERED
        elif status == 410 or receiver is None or _is_hopeless(delivery):
            state = DeliveryState.PARKED

        def unit(tx: Connection) -> None:
            webhooks.end_attempt(tx, delivery.delivery_id, state, status, error)
            if state is not DeliveryState.WAITING:
                jobs.done(tx, job)

        await self._store.write(unit)
        if state is not DeliveryState.WAITING:
            return Done()
        return Later(error or f"answered {status}", failures=delivery.attempts + 1)

    async def _send(self, receiver: Webhook, delivery: WebhookDeliveryRecord) -> tuple[int | None, str | None]:
        await self._store.write(lambda tx: webhooks.begin_attempt(tx, delivery.delivery_id))
        try:
            async with aiohttp.ClientSession() as session:
                status = await post(session, receiver, delivery.event_id, delivery.body.encode())
        except TimeoutError:
            return None, f"no answer within {TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            return None, type(error).__name__
        return status, None if 200 <= status < 300 else f"answered {status}"

    async def listing(
        self, who: Principal, status: str | None, webhook: str | None, limit: int
    ) -> list[WebhookDeliveryRecord]:
        """Deliveries of the caller's site, the newest first."""
        who.require(Role.OPERATOR)
        if status is not None and status not in set(DeliveryState):
            raise RequestError("invalid_field", f"status: one of {', '.join(DeliveryState)}", field="status")
        return await self._store.read(lambda tx: webhooks.listing(tx, who.site, status, webhook, limit))

    async def resend(self, delivery_id: int, reason: str, who: Principal, peer: str | None) -> WebhookDeliveryRecord:
        """Send a delivery again, under the same event id."""
        who.require(Role.OPERATOR)

        def unit(tx: Connection) -> WebhookDeliveryRecord:
            found = webhooks.find(tx, delivery_id)
            if found is None or found.site != who.site:
                raise RequestError("not_found", "there is no such delivery")
            webhooks.begin_again(tx, delivery_id)
            jobs.enqueue(tx, found.site, self._job_kind(found.webhook), str(delivery_id))
            audit.append(tx, AuditEntry(who.site, "webhook.resent", who.name, f"webhook/{delivery_id}", peer,
                                        detail={"reason": reason, "event_id": found.event_id}))
            return webhooks.get(tx, delivery_id)

        return await self._store.write(unit)


def _is_hopeless(delivery: WebhookDeliveryRecord) -> bool:
    """Whether the call that just failed was the last one; its row is as it was before that call."""
    return (delivery.attempts + 1 >= GIVEN_UP_ATTEMPTS
            and delivery.created_at < timestamp(now() - GIVEN_UP_AFTER))


def _news(tx: Connection) -> tuple[int, int, list[Event]]:
    """(how far was read, how far this goes, the events in between)."""
    seq, last = audit.place(tx, READER), audit.newest(tx).seq
    rows = audit.after(tx, seq, BATCH_ROWS, ACTIONS)
    return seq, rows[-1]["seq"] if len(rows) == BATCH_ROWS else last, events_of(tx, rows)
