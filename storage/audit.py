"""The audit table: appends rows to the hash chain, reads them, walks the chain. Never changes a row."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from storage import chain
from storage.chain import Anchor, ChainReport
from storage.database.base import at_unit_end, learned
from storage.database.prepared import Prepared, inserting
from storage.errors import Conflict, Refused
from storage.records import DEFAULT_SITE, AuditEntry, AuditPosition, timestamp
from storage.tables import audit, chain_cursor

_HEAD = Prepared(select(audit.c.seq, audit.c.row_hash).order_by(audit.c.seq.desc()).limit(1))
_HASH = Prepared(select(audit.c.row_hash).where(audit.c.seq == bindparam("wanted")))
_APPEND = inserting(audit)
LOOKED_AT = 100
_LATEST = Prepared(
    select(audit.c.at, audit.c.site, audit.c.action, audit.c.actor, audit.c.outcome)
    .where(audit.c.subject == bindparam("wanted")).order_by(audit.c.seq.desc()).limit(LOOKED_AT))
_HEAD_KEY, _MOMENT_KEY, _WAITING_KEY = "audit head", "audit moment", "audit rows"
MOST_AT_ONCE = 16
WINDOW = 10_000
# made once: json.dumps() makes an encoder for every call that wants other than the defaults
_sorted = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
_EACH = Prepared(select(*(audit.c[name] for name in chain.COLUMNS)).order_by(audit.c.seq).where(
    audit.c.seq.between(bindparam("first"), bindparam("last"))))
LEAST, MOST = -(2**63), 2**63 - 1
"""Every number that a seq may be, also where somebody else put it there."""


def append(tx: Connection, entry: AuditEntry) -> AuditPosition:
    """Append `entry` at the end of the chain. The writer lock of `tx` makes `seq` the order of commits.

    The rows of one unit are written together at its end; rows of one transaction tell one time.
    """
    known = learned(tx)
    seq, previous = known.get(_HEAD_KEY) or _HEAD.first(tx) or (0, chain.GENESIS)
    moment = known.get(_MOMENT_KEY)
    if moment is None:
        moment = known[_MOMENT_KEY] = timestamp()
    detail = _sorted(entry.detail) if entry.detail else "{}"
    values: dict[str, Any] = {
        "seq": seq + 1, "site": entry.site, "at": moment, "action": entry.action, "actor": entry.actor,
        "subject": entry.subject, "peer": entry.peer, "outcome": entry.outcome, "detail": detail,
        "previous_hash": previous,
    }
    row_hash = values["row_hash"] = chain.row_hash(**values)
    known[_HEAD_KEY] = seq + 1, row_hash
    waiting = known.get(_WAITING_KEY)
    if waiting is None:
        waiting = known[_WAITING_KEY] = []
        at_unit_end(tx, _write)
    waiting.append(values)
    return AuditPosition(seq + 1, row_hash)


def _write(tx: Connection) -> None:
    rows = learned(tx).pop(_WAITING_KEY, [])
    for start in range(0, len(rows), MOST_AT_ONCE):
        part = rows[start : start + MOST_AT_ONCE]
        if _APPEND.insert_all(tx, part) != len(part):  # a foreign trigger may say RAISE(IGNORE)
            raise Refused("the database kept rows of the audit out: look at its triggers with packhorse doctor")


def newest(tx: Connection) -> AuditPosition:
    """The last row; (0, GENESIS) where there is none."""
    _write(tx)
    return AuditPosition(*(_HEAD.first(tx) or (0, chain.GENESIS)))


def hash_of(tx: Connection, seq: int) -> str | None:
    """The hash of a row; None where there is none."""
    found = _HASH.first(tx, wanted=seq)
    return found[0] if found else None


def of_subject(tx: Connection, subject: str) -> list[dict[str, Any]]:
    """The rows of one subject in order, `detail` as an object."""
    _write(tx)
    rows = tx.execute(select(audit).where(audit.c.subject == subject).order_by(audit.c.seq))
    return [{**row._mapping, "detail": json.loads(row.detail)} for row in rows]


def latest(tx: Connection, like: AuditEntry, since: str) -> str | None:
    """When the newest row since then was written that has action, actor, outcome and subject of `like`.

    Looks at the subject's last LOOKED_AT rows only, so that it costs the same however long its history is.
    """
    _write(tx)
    wanted = (like.site, like.action, like.actor, like.outcome)
    rows = _LATEST.rows(tx, wanted=like.subject)
    return next((at for at, *found in rows if at > since and tuple(found) == wanted), None)


def verify(
    tx: Connection, anchors: Iterable[Anchor] = (), end: Anchor | None = None, part: tuple[int, int | None] = (0, None)
) -> ChainReport:
    """Walk the chain, and compare it with what is known of it elsewhere. Stops at the first fault; see chain.walk.

    `part`: only the rows behind one seq and up to another, all of which must be there; None: to the end.
    """
    _write(tx)
    after, until = part
    before = list(_readable(_EACH.each(tx, first=after, last=after), after - 1)) if after else []
    rows = _EACH.each(tx, first=after + 1 if after else LEAST, last=MOST if until is None else until)
    start = (after, before[0][-1] if before else chain.GENESIS)
    return chain.walk(_readable(rows, after), lambda seq: _around(tx, seq), anchors, end, start=start, until=until)


def _readable(rows: Iterator[chain.Row], after: int) -> Iterator[chain.Row]:
    """The rows behind `after`; in the place of one whose text is no text, a row of nothing, which is the last."""
    seq = after
    try:
        for row in rows:
            yield row
            seq = row[0]
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
        yield (seq + 1, *[None] * 10)


def _around(tx: Connection, seq: int) -> list[chain.Row]:
    return list(_readable(_EACH.each(tx, first=seq - 2, last=seq + 1), seq))


def of_site(tx: Connection, site: str, seq: int, limit: int) -> tuple[list[dict[str, Any]], int, bool]:
    """Up to `limit` rows of a site behind `seq`, in order; up to where that looked, and whether there is more behind.

    Looks at WINDOW rows of the chain at most, whosever they are.
    """
    end, last = seq + WINDOW, newest(tx).seq
    found = tx.execute(
        select(audit).where(audit.c.seq > seq, audit.c.seq <= end, audit.c.site == site)
        .order_by(audit.c.seq).limit(limit))
    rows = [dict(row._mapping) for row in found]
    up_to = rows[-1]["seq"] if len(rows) == limit else max(seq, min(end, last))
    return rows, up_to, up_to < last


def after(tx: Connection, seq: int, limit: int, actions: Collection[str] = ()) -> list[dict[str, Any]]:
    """Up to `limit` rows after `seq`, in order; of these actions only, if some are named."""
    _write(tx)
    query = select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(limit)
    if actions:
        query = query.where(audit.c.action.in_(actions))
    return [dict(row._mapping) for row in tx.execute(query)]


def place(tx: Connection, reader: str) -> int:
    """The row up to which `reader` has read; at first the newest one, for history is told to nobody."""
    seq = tx.execute(select(chain_cursor.c.seq).where(chain_cursor.c.name == reader)).scalar()
    if seq is None:
        seq = newest(tx).seq
        tx.execute(insert(chain_cursor).values(name=reader, site=DEFAULT_SITE, seq=seq))
    return int(seq)


def advance(tx: Connection, reader: str, expected: int, seq: int) -> None:
    """Everything up to `seq` was read. Conflict when another process did that."""
    changed = tx.execute(update(chain_cursor).where(
        chain_cursor.c.name == reader, chain_cursor.c.seq == expected).values(seq=seq))
    if changed.rowcount != 1:
        raise Conflict("another process reads the chain")
