"""Units of work on what is known of stored bytes: when they were read, whether they are doubted, who waits for a read.

An alarm opens when a full reading finds other bytes than were stored. It closes when a later one finds the right bytes,
or when the same bytes are sealed anew; each is an audit row that names what refers to the blob. Touches no byte.
What came first is told by moments (storage.moments): a clock that was set right leaves times in the future behind.
"""

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from storage import audit
from storage.moments import Moment, is_after, moment, passed_ns
from storage.records import AuditEntry, BlobRecord, now, timestamp
from storage.tables import arrival, blob, image, quarantine, readback_wait, session

ALARM, REPAIRED = "integrity.alarm", "integrity.repaired"
MOST_NAMED = 100
"""Of each kind of a blob's owners, in an audit row."""
SHOWN = 5
"""Of each kind, in words for people."""
MEANWHILE = timedelta(seconds=2)
"""What another process notes while a unit looks is not in the future."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """An object that came by a door without sessions: from whom, which, and the image that it is, or is the same as."""

    calling: str | None
    peer: str | None
    sop_instance_uid: str | None
    image_id: int | None


@dataclass(frozen=True, slots=True)
class Owners:
    """What refers to a blob, at most MOST_NAMED of each: ids and AE titles, nothing of patients."""

    images: list[int]
    sessions: list[str]
    arrivals: list[Arrived]
    quarantined: list[int]

    def detail(self) -> dict[str, Any]:
        """As an audit row tells it: whom an event concerns always, the others where there are some."""
        arrivals = [asdict(one) for one in self.arrivals]
        others = {"arrivals": arrivals, "quarantine_ids": self.quarantined}
        return {"image_ids": self.images, "session_ids": self.sessions,
                **{name: found for name, found in others.items() if found}}

    def __str__(self) -> str:
        named = [_named("image", self.images), _named("session", self.sessions), _named("quarantine", self.quarantined),
                 _named("arrival of", list(map(_arrived, self.arrivals)))]
        return ", ".join(filter(None, named)) or "nothing refers to it"


def _named(kind: str, found: list[Any]) -> str:
    """As many as a line can hold that is to be read."""
    others = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return ", ".join([*(f"{kind} {one}" for one in found[:SHOWN]), *others])


def _arrived(one: Arrived) -> str:
    is_image = f" as image {one.image_id}" if one.image_id is not None else ""
    return f"{one.sop_instance_uid}{is_image} from {one.calling}" + (f" at {one.peer}" if one.peer else "")


def subject_of(sha256: str) -> str:
    """How the audit names a blob."""
    return f"blob/{sha256}"


def note_read(tx: Connection, site: str, sha256: str, began: Moment, damage: str | None, found_by: str) -> None:
    """Keep what a reading to the end found, which began at `began`: the right bytes, or `damage` in words.

    Whoever calls reads this blob alone: readings are noted in the order in which they were made.
    """
    values = {"read_at": timestamp(), "read_moment": moment()}
    if not damage:
        values |= {"verified_at": values["read_at"], "verified_moment": began}
    tx.execute(update(blob).where(*_is(site, sha256)).values(**values))
    if damage:
        _open(tx, site, sha256, damage, found_by)
    else:
        _close(tx, site, sha256, "read again")


def note_sealed_again(tx: Connection, known: BlobRecord, looked_at: Moment | None, replaced: bool) -> None:
    """The bytes of a known blob were sealed once more: at `looked_at` its address held the right ones.

    `replaced`: it had held others, or none. An alarm stays open where a reading found damage after `looked_at`.
    """
    if known.alarm is not None:
        # while it is open, the last reading was one that found damage
        if passed_ns(known.read_moment) is None or is_after(looked_at, known.read_moment):
            _close(tx, known.site, known.sha256, "sent again")
    elif replaced:
        _note(tx, REPAIRED, known.site, known.sha256, "ok", how="sent again")  # damage that nobody had found yet


def _open(tx: Connection, site: str, sha256: str, damage: str, found_by: str) -> None:
    fresh = update(blob).where(*_is(site, sha256), blob.c.alarm.is_(None))
    if tx.execute(fresh.values(alarm=damage, alarm_at=timestamp())).rowcount == 1:
        _note(tx, ALARM, site, sha256, "damaged", damage=damage, found_by=found_by)


def _close(tx: Connection, site: str, sha256: str, how: str) -> None:
    closed = update(blob).where(*_is(site, sha256), blob.c.alarm.is_not(None)).values(alarm=None, alarm_at=None)
    if tx.execute(closed).rowcount == 1:
        _note(tx, REPAIRED, site, sha256, "ok", how=how)


def _note(tx: Connection, action: str, site: str, sha256: str, outcome: str, **detail: str) -> None:
    audit.append(tx, AuditEntry(site, action, subject=subject_of(sha256), outcome=outcome, detail={
        "sha256": sha256, **owners(tx, site, sha256).detail(), **detail}))


def owners(tx: Connection, site: str, sha256: str) -> Owners:
    """What refers to a blob, so that its damage concerns somebody."""
    def of(column: Any) -> list[Any]:  # a column of any type, of a table whose rows name a blob
        table = column.table
        return list(tx.execute(select(column).where(
            table.c.site == site, table.c.blob_sha256 == sha256).order_by(column).limit(MOST_NAMED)).scalars())

    arrivals = tx.execute(
        select(arrival.c.calling, arrival.c.peer, arrival.c.sop_instance_uid, arrival.c.image_id).distinct()
        .where(arrival.c.site == site, arrival.c.blob_sha256 == sha256)
        .order_by(arrival.c.calling, arrival.c.sop_instance_uid, arrival.c.image_id).limit(MOST_NAMED))
    return Owners(of(image.c.id), of(session.c.session_id), [Arrived(*row) for row in arrivals], of(quarantine.c.id))


def alarms(tx: Connection) -> list[BlobRecord]:
    """The blobs that are doubted now, the oldest alarm first."""
    rows = tx.execute(select(blob).where(blob.c.alarm.is_not(None)).order_by(blob.c.alarm_at, blob.c.sha256))
    return [BlobRecord(*row) for row in rows]


def unread_since(tx: Connection, since: str, limit: int) -> list[BlobRecord]:
    """Blobs that nobody read to their end, nor sealed, since that time; those left alone longest first.

    A time in the future says that the clock was ahead, and nothing of when they were read: they are among them.
    """
    rows = tx.execute(select(blob).where(_untouched(since)).order_by(_touched(), blob.c.sha256).limit(limit))
    return [BlobRecord(*row) for row in rows]


def count_unread_since(tx: Connection, since: str) -> int:
    """How many `unread_since` would give without a limit."""
    return int(tx.execute(select(func.count()).select_from(blob).where(_untouched(since))).scalar_one())


def _untouched(since: str) -> Any:  # a condition
    return (_touched() < since) | (_touched() > timestamp(now() + MEANWHILE))


def _touched() -> Any:  # an expression of SQLAlchemy
    return func.coalesce(blob.c.read_at, blob.c.sealed_at)


def wait(tx: Connection, site: str, sha256: str, asker: str, asked: Moment, forget_before: str) -> None:
    """Note that `asker` waits since `asked` for a read that takes longer than an answer may.

    Rows of others, from before `forget_before`, are dropped.
    """
    tx.execute(delete(readback_wait).where(readback_wait.c.asked_at < forget_before))
    stop_waiting(tx, sha256, asker)
    tx.execute(insert(readback_wait).values(
        asker=asker, site=site, sha256=sha256, asked_at=timestamp(), asked_moment=asked))


def waits_since(tx: Connection, sha256: str, asker: str) -> Moment | None:
    """Since when `asker` waits for a read of that blob; None when it does not."""
    return tx.execute(select(readback_wait.c.asked_moment).where(*_waits(sha256, asker))).scalar()


def stop_waiting(tx: Connection, sha256: str, asker: str) -> None:
    """`asker` has its answer."""
    tx.execute(delete(readback_wait).where(*_waits(sha256, asker)))


def _waits(sha256: str, asker: str) -> tuple[Any, ...]:  # conditions
    return readback_wait.c.asker == asker, readback_wait.c.sha256 == sha256


def _is(site: str, sha256: str) -> tuple[Any, ...]:  # conditions
    return blob.c.site == site, blob.c.sha256 == sha256
