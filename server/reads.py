"""Notes who read which image in the audit chain (contract §9): one row per principal, subject and minute."""

import time

from server.auth import Principal
from storage import audit
from storage.records import AuditEntry
from storage.store import Store

NOTED_S = 60.0
MOST_KNOWN = 10_000


class Reads:
    """Remembers, in this process, what it noted within the last minute."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[tuple[str, str], float] = {}

    async def note(self, who: Principal, subject: str, peer: str | None) -> None:
        """`who` reads `subject`: a Study Instance UID, or an id of ours."""
        key, moment = (who.name, subject), time.monotonic()
        if moment - self._noted.get(key, -NOTED_S) < NOTED_S:
            return
        if len(self._noted) > MOST_KNOWN:
            self._noted.clear()  # forgetting means at most one row more than needed
        self._noted[key] = moment
        entry = AuditEntry(who.site, "image.read", who.name, subject, peer)
        await self._store.write(lambda tx: audit.append(tx, entry))
