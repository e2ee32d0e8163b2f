"""When tokens were used last: gathered in memory, noted in rows at most once a minute for each token."""

import time
from datetime import timedelta

from storage import tokens
from storage.records import now, timestamp
from storage.store import Store

NOTED_S = 60.0
MOST_KNOWN = 10_000


class TokenUses:
    """Remembers, in this process, what it noted within the last minute."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[str, float] = {}
        self._waiting: dict[str, str] = {}

    def note(self, token_id: str) -> None:
        """The token is used now."""
        moment = time.monotonic()
        if moment - self._noted.get(token_id, -NOTED_S) < NOTED_S:
            return
        if len(self._noted) > MOST_KNOWN:
            self._noted.clear()  # forgetting means at most one write more than needed
        self._noted[token_id] = moment
        self._waiting[token_id] = timestamp()

    async def flush(self) -> None:
        """Write what was gathered; other processes may have noted the same minute."""
        uses, self._waiting = self._waiting, {}
        if uses:
            unless_after = timestamp(now() - timedelta(seconds=NOTED_S))
            await self._store.write(lambda tx: tokens.note_uses(tx, uses, unless_after), light=True)
