"""Rows of the audit for what may come often: one for each principal, action, subject and minute (contract §9).

Facts: each process remembers what it noted, so that what comes again costs nothing; a row that has a subject is
looked for in the chain too, in the unit that would write it, so that several processes leave one. Memory is bounded:
forgetting means at most one look, or where there is no subject one row, more than needed.
"""

import time
from datetime import datetime, timedelta

from sqlalchemy import Connection

from storage import audit
from storage.records import AuditEntry, now, timestamp
from storage.store import Store

NOTED_S = 60.0
MEANWHILE_S = 2.0
"""What another process notes while this one looks is not in the future."""
MOST_KNOWN = 10_000
Key = tuple[object, ...]


class Seldom:
    """What this process noted within the minute."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[Key, float] = {}

    async def note(self, entry: AuditEntry, *also: object) -> None:
        """Append `entry`, unless one of the same kind came within a minute: `also` is what else tells two kinds apart.

        Raises what the store raises; then it was not noted.
        """
        key, moment = (entry.site, entry.action, entry.actor, entry.subject, *also), time.monotonic()
        if moment - self._noted.get(key, -NOTED_S) < NOTED_S:
            return
        if len(self._noted) >= MOST_KNOWN:
            self._noted.clear()
        self._noted[key] = moment  # before the row: what comes meanwhile does not wait for it
        try:
            age_s = await self._store.write(lambda tx: _append(tx, entry))
        except BaseException:
            self._noted.pop(key, None)
            raise
        self._noted[key] = moment - age_s


def _append(tx: Connection, entry: AuditEntry) -> float:
    """How many seconds ago such a row came: 0 where it comes now."""
    if entry.subject is not None:
        moment = now()
        at = audit.latest(tx, entry, timestamp(moment - timedelta(seconds=NOTED_S)))
        age_s = (moment - datetime.fromisoformat(at)).total_seconds() if at is not None else -NOTED_S
        if age_s > -MEANWHILE_S:  # one from further ahead is of a clock that was wrong, and would keep all rows out
            return max(0.0, age_s)
    audit.append(tx, entry)
    return 0.0
