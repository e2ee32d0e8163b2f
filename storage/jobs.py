"""The durable queue: one table with a lease and attempt fencing. Also deliveries, which jobs carry out.

Fact: a wall clock may be set back; a job that waits for a time further ahead than any pause is due.
"""

from dataclasses import fields
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, String, bindparam, cast, func, insert, or_, select, update

from storage.database.prepared import Prepared
from storage.errors import Conflict
from storage.records import DeliveryRecord, DeliveryState, JobRecord, JobState, now, rank, timestamp
from storage.tables import delivery, job

LONGEST_PAUSE = timedelta(minutes=15)
"""More than any caller of `later` asks for."""
_DELIVERY = [delivery.c[field.name] for field in fields(DeliveryRecord)]

_IS_DUE = Prepared(select(job.c.job_id).where(job.c.kind == bindparam("wanted"), or_(
    (job.c.state == "waiting") & (
        (job.c.run_after <= bindparam("moment")) | (job.c.run_after > bindparam("horizon"))),
    (job.c.state == "running") & (job.c.lease_until < bindparam("moment")))).limit(1))


def _job(row: Row[Any]) -> JobRecord:  # a row of the job table
    values = dict(row._mapping)
    values["state"] = JobState(values["state"])
    return JobRecord(**values)


def _delivery(row: Row[Any]) -> DeliveryRecord:  # a row of the delivery table
    values = dict(row._mapping)
    values["state"] = DeliveryState(values["state"])
    return DeliveryRecord(**values)


def enqueue(
    tx: Connection, site: str, kind: str, subject: str, lease_s: float = 0.0, priority: str | None = None
) -> JobRecord:
    """Queue work in the transaction that causes it; `lease_s` > 0 claims it at once for the caller.

    One row per (kind, subject): queueing again wakes a job that had ended. Its `priority` never falls.
    """
    lease = timestamp(now() + timedelta(seconds=lease_s)) if lease_s else None
    state = JobState.RUNNING if lease_s else JobState.WAITING
    values = {"state": state, "run_after": timestamp(), "lease_until": lease}
    row = tx.execute(select(job.c.job_id, job.c.priority).where(job.c.kind == kind, job.c.subject == subject)).first()
    if row is None:
        tx.execute(insert(job).values(site=site, kind=kind, subject=subject, attempt=1 if lease_s else 0,
                                      priority=rank(priority), **values))
    else:
        tx.execute(update(job).where(job.c.job_id == row.job_id).values(
            attempt=job.c.attempt + (1 if lease_s else 0), priority=max(row.priority, rank(priority)), **values))
    return _job(tx.execute(select(job).where(job.c.kind == kind, job.c.subject == subject)).one())


def is_held(tx: Connection, kind: str, subject: str) -> bool:
    """Whether somebody works on that job now, by a lease that has not run out."""
    held = select(job.c.job_id).where(job.c.kind == kind, job.c.subject == subject,
                                      job.c.state == JobState.RUNNING, job.c.lease_until >= timestamp())
    return tx.execute(held).first() is not None


def is_due(tx: Connection, kind: str) -> bool:
    """Whether a job of that kind waits to be claimed: asked before `claim`, for reading takes no lock."""
    moment = now()
    return _IS_DUE.first(
        tx, wanted=kind, moment=timestamp(moment), horizon=timestamp(moment + LONGEST_PAUSE)) is not None


def claim(tx: Connection, kinds: tuple[str, ...], lease_s: float) -> JobRecord | None:
    """Take the job of the highest priority, then the one that is due longest, or whose holder's lease ran out."""
    moment = now()
    due = (
        select(job.c.job_id).where(job.c.kind.in_(kinds))
        .where(or_(
            (job.c.state == JobState.WAITING) & (
                (job.c.run_after <= timestamp(moment)) | (job.c.run_after > timestamp(moment + LONGEST_PAUSE))),
            (job.c.state == JobState.RUNNING) & (job.c.lease_until < timestamp(moment))))
        .order_by(job.c.priority.desc(), job.c.run_after).limit(1)
    )
    row = tx.execute(due).first()
    if row is None:
        return None
    tx.execute(update(job).where(job.c.job_id == row.job_id).values(
        state=JobState.RUNNING, attempt=job.c.attempt + 1,
        lease_until=timestamp(moment + timedelta(seconds=lease_s))))
    return _job(tx.execute(select(job).where(job.c.job_id == row.job_id)).one())


def _end(tx: Connection, held: JobRecord, **values: Any) -> None:  # columns of any type
    changed = tx.execute(
        update(job).where(
            job.c.job_id == held.job_id, job.c.attempt == held.attempt, job.c.state == JobState.RUNNING)
        .values(lease_until=None, **values))
    if changed.rowcount != 1:
        raise Conflict("another worker has the job")


def done(tx: Connection, held: JobRecord) -> None:
    """The job is done. Conflict when its lease went to another."""
    _end(tx, held, state=JobState.DONE, last_error=None)


def later(tx: Connection, held: JobRecord, delay_s: float, error: str) -> None:
    """Try again after `delay_s`, at most LONGEST_PAUSE. Conflict when the lease went to another."""
    _end(tx, held, state=JobState.WAITING, last_error=error,
         run_after=timestamp(now() + timedelta(seconds=delay_s)))


def failed(tx: Connection, held: JobRecord, error: str) -> None:
    """Give up for good; a person may queue it again. Conflict when the lease went to another."""
    _end(tx, held, state=JobState.FAILED, last_error=error)


def extend(tx: Connection, held: JobRecord, lease_s: float) -> None:
    """Hold the job for longer. Conflict when the lease went to another."""
    changed = tx.execute(
        update(job).where(
            job.c.job_id == held.job_id, job.c.attempt == held.attempt, job.c.state == JobState.RUNNING)
        .values(lease_until=timestamp(now() + timedelta(seconds=lease_s))))
    if changed.rowcount != 1:
        raise Conflict("another worker has the job")


def release_all(tx: Connection) -> None:
    """At start, when no other process works on this database: what a crash held is due again."""
    tx.execute(update(job).where(job.c.state == JobState.RUNNING).values(
        state=JobState.WAITING, lease_until=None, run_after=timestamp()))


def backlog(tx: Connection) -> dict[str, int]:
    """Waiting and running jobs by kind."""
    rows = tx.execute(
        select(job.c.kind, func.count()).where(job.c.state.in_([JobState.WAITING, JobState.RUNNING]))
        .group_by(job.c.kind))
    return {row[0]: row[1] for row in rows}


def add_delivery(tx: Connection, site: str, image_id: int, destination: str, priority: str | None = None) -> None:
    """Note that an image must reach a destination, and queue the sending; twice is no change."""
    there = select(delivery.c.delivery_id).where(
        delivery.c.image_id == image_id, delivery.c.destination == destination)
    if tx.execute(there).first() is not None:
        return
    moment = timestamp()
    tx.execute(insert(delivery).values(
        site=site, image_id=image_id, destination=destination, state=DeliveryState.WAITING, attempts=0,
        created_at=moment, updated_at=moment))
    enqueue(tx, site, "forward", str(tx.execute(there).scalar_one()), priority=priority)


def find_delivery(tx: Connection, delivery_id: int) -> DeliveryRecord | None:
    """The delivery of that id."""
    row = tx.execute(select(*_DELIVERY).where(delivery.c.delivery_id == delivery_id)).first()
    return _delivery(row) if row else None


def deliveries(tx: Connection, site: str, image_id: int | None = None) -> list[DeliveryRecord]:
    """Deliveries of a site, or of one image."""
    query = select(*_DELIVERY).where(delivery.c.site == site).order_by(delivery.c.delivery_id)
    if image_id is not None:
        query = query.where(delivery.c.image_id == image_id)
    return [_delivery(row) for row in tx.execute(query)]


def raise_deliveries(tx: Connection, site: str, image_id: int, priority: str) -> None:
    """Let what waits of an image go out before what is less urgent; nothing falls behind by it."""
    if not rank(priority):
        return
    waiting = select(cast(delivery.c.delivery_id, String)).where(
        delivery.c.site == site, delivery.c.image_id == image_id, delivery.c.state != DeliveryState.DELIVERED)
    tx.execute(update(job).where(
        job.c.kind == "forward", job.c.subject.in_(waiting), job.c.priority < rank(priority)
    ).values(priority=rank(priority)))


def hold_delivery(tx: Connection, delivery_id: int) -> None:
    """Its image is hidden: it waits for the image's return."""
    tx.execute(update(delivery).where(delivery.c.delivery_id == delivery_id).values(
        state=DeliveryState.HELD, updated_at=timestamp()))


def release_deliveries(tx: Connection, site: str, image_id: int) -> None:
    """The image is shown again: what was held of it is queued."""
    held = select(delivery.c.delivery_id).where(
        delivery.c.site == site, delivery.c.image_id == image_id, delivery.c.state == DeliveryState.HELD)
    for delivery_id in list(tx.execute(held).scalars()):
        tx.execute(update(delivery).where(delivery.c.delivery_id == delivery_id).values(
            state=DeliveryState.WAITING, updated_at=timestamp()))
        enqueue(tx, site, "forward", str(delivery_id))


def begin_attempt(tx: Connection, delivery_id: int) -> None:
    """Count a send before it is begun: a crash in it must not hide it."""
    tx.execute(update(delivery).where(delivery.c.delivery_id == delivery_id).values(
        attempts=delivery.c.attempts + 1, updated_at=timestamp()))


def end_attempt(
    tx: Connection, delivery_id: int, state: DeliveryState, status: str | None, error: str | None
) -> None:
    """Keep what a send came to."""
    moment = timestamp()
    tx.execute(update(delivery).where(delivery.c.delivery_id == delivery_id).values(
        state=state, last_status=status, last_error=error, updated_at=moment,
        delivered_at=moment if state is DeliveryState.DELIVERED else None))
