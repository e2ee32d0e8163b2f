"""What operators count: sessions by status, uploads, jobs and their age, alarms. Reads only, over all sites."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from storage.records import JobState, Status, UploadState, now
from storage.tables import blob, job, session, upload


@dataclass(frozen=True, slots=True)
class Queue:
    """The jobs of one kind. `oldest_s`: for how long the one that is due longest has been so, in seconds."""

    waiting: int
    running: int
    failed: int
    oldest_s: float


def sessions_by_status(tx: Connection) -> dict[Status, int]:
    """How many sessions have each status, also none."""
    found = dict.fromkeys(Status, 0)
    # by site too, for so it is a walk along the index
    for row in tx.execute(
            select(session.c.site, session.c.status, func.count()).group_by(session.c.site, session.c.status)):
        found[Status(row[1])] += row[2]
    return found


def open_uploads(tx: Connection) -> int:
    """How many uploads wait for bytes."""
    return tx.execute(select(func.count()).where(upload.c.state == UploadState.OPEN)).scalar_one()


def alarms(tx: Connection) -> int:
    """On how many blobs an integrity alarm is open."""
    return tx.execute(select(func.count()).select_from(blob).where(blob.c.alarm.is_not(None))).scalar_one()


def queues(tx: Connection) -> dict[str, Queue]:
    """The jobs by kind: those that wait, run, or were given up."""
    moment = now()
    live = (JobState.WAITING, JobState.RUNNING, JobState.FAILED)
    rows = tx.execute(
        select(job.c.kind, job.c.state, func.count(), func.min(job.c.run_after).label("run_after"),
               func.min(job.c.lease_until).label("lease_until"))
        .where(job.c.state.in_(live)).group_by(job.c.kind, job.c.state)).all()
    found = {}
    for kind in sorted({row[0] for row in rows}):
        counts = {row[1]: row[2] for row in rows if row[0] == kind}
        overdue_s = [_overdue_s(row, moment) for row in rows if row[0] == kind]
        waiting, running, failed = (counts.get(state, 0) for state in live)
        found[kind] = Queue(waiting, running, failed, max(overdue_s))
    return found


def _overdue_s(row: Row[Any], moment: datetime) -> float:  # of `queues`
    """How long waiting jobs have been due, and running ones without a lease."""
    since = {JobState.WAITING: row.run_after, JobState.RUNNING: row.lease_until}.get(row.state)
    return max(0.0, (moment - datetime.fromisoformat(since)).total_seconds()) if since else 0.0
