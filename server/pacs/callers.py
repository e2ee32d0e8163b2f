"""Notes in the audit chain whose associations the listener refused (contract §9, §12). Refuses nobody itself."""

import time

from storage import audit
from storage.records import DEFAULT_SITE, AuditEntry
from storage.store import Store

NOTED_S = 60.0
MOST_KNOWN = 10_000


class RefusedCallers:
    """One row per AE title, address and minute, so that knocking fills no disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[tuple[str, str], float] = {}

    async def note(self, ae_title: str, address: str) -> None:
        """An unknown `ae_title` at `address` was refused."""
        key, moment = (ae_title, address), time.monotonic()
        if moment - self._noted.get(key, -NOTED_S) < NOTED_S:
            return
        if len(self._noted) > MOST_KNOWN:
            self._noted.clear()
        self._noted[key] = moment
        entry = AuditEntry(DEFAULT_SITE, "association.refused", f"ae:{ae_title}", peer=address, outcome="unknown_peer")
        await self._store.write(lambda tx: audit.append(tx, entry))
