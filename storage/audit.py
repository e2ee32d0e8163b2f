"""The audit table: appends rows to the hash chain, reads them, walks the chain. Never changes a row."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from storage.database.base import at_unit_end, learned
from storage.database.prepared import Prepared, inserting
from storage.records import AuditEntry, AuditPosition, timestamp
from storage.tables import audit

GENESIS = "0" * 64
"""`previous_hash` of the first row."""
_HEAD = Prepared(select(audit.c.seq, audit.c.row_hash).order_by(audit.c.seq.desc()).limit(1))
_APPEND = inserting(audit)


_HASHED = ("seq", "site", "at", "action", "actor", "subject", "peer", "outcome", "detail", "previous_hash")
_HEAD_KEY, _MOMENT_KEY, _WAITING_KEY = "audit head", "audit moment", "audit rows"
MOST_AT_ONCE = 16
# made once: json.dumps() makes an encoder for every call that wants other than the defaults
_canonical = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_sorted = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical([values[name] for name in _HASHED]).encode()).hexdigest()


def append(tx: Connection, entry: AuditEntry) -> AuditPosition:
    """Append `entry` at the end of the chain. The writer lock of `tx` makes `seq` the order of commits.

    The rows of one unit are written together at its end; rows of one transaction tell one time.
    """
    known = learned(tx)
    seq, previous = known.get(_HEAD_KEY) or _HEAD.first(tx) or (0, GENESIS)
    moment = known.get(_MOMENT_KEY)
    if moment is None:
        moment = known[_MOMENT_KEY] = timestamp()
    detail = _sorted(entry.detail) if entry.detail else "{}"
    values: dict[str, Any] = {
        "seq": seq + 1, "site": entry.site, "at": moment, "action": entry.action, "actor": entry.actor,
        "subject": entry.subject, "peer": entry.peer, "outcome": entry.outcome, "detail": detail,
        "previous_hash": previous,
    }
    row_hash = values["row_hash"] = _hash(values)
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
        _APPEND.insert_all(tx, rows[start : start + MOST_AT_ONCE])


def of_subject(tx: Connection, subject: str) -> list[dict[str, Any]]:
    """The rows of one subject in order, `detail` as an object."""
    _write(tx)
    rows = tx.execute(select(audit).where(audit.c.subject == subject).order_by(audit.c.seq))
    return [{**row._mapping, "detail": json.loads(row.detail)} for row in rows]


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk of the chain found: how many rows are good, and the first fault in words."""

    rows: int
    fault: str | None


def verify(tx: Connection, expected: dict[int, str] | None = None) -> ChainReport:
    """Walk the chain; `expected` gives row hashes by seq that receipts name. Stops at the first fault."""
    _write(tx)
    rows = tx.execute(select(audit).order_by(audit.c.seq).execution_options(yield_per=1000))
    count, previous, wanted = 0, GENESIS, dict(expected or {})
    for row in rows:
        fault = _fault(row, count + 1, previous)
        if fault is None and wanted.pop(row.seq, row.row_hash) != row.row_hash:
            fault = f"row {row.seq} is not the one that a receipt names"
        if fault:
            return ChainReport(count, fault)
        count, previous = count + 1, row.row_hash
    if wanted:
        return ChainReport(count, f"row {min(wanted)}, which a receipt names, is missing")
    return ChainReport(count, None)


def _fault(row: Row[Any], seq: int, previous: str) -> str | None:  # a row of the audit table
    if row.seq != seq:
        return f"row {seq} is missing"
    if row.previous_hash != previous:
        return f"row {seq} does not follow the row before it"
    if _hash(dict(row._mapping)) != row.row_hash:
        return f"row {seq} was changed"
    return None


def after(tx: Connection, seq: int, limit: int) -> Iterator[dict[str, Any]]:
    """Up to `limit` rows after `seq`, in order."""
    _write(tx)
    for row in tx.execute(select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(limit)):
        yield dict(row._mapping)
