"""When unfinished uploads expire (expiration extension), told by a clock that jumps do not fool. Deletes no bytes.

The sweeper keeps the latest moment that it believed in as a row. A clock behind that row expires nothing until
it has caught up. A clock more than an hour ahead of it pauses the sweep, with a warning, until it has run
steadily for an hour: so a server that was off for a week takes an hour to go on, and a wrong clock harms nobody.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from storage import clock, uploads
from storage.records import UploadRecord, now, timestamp
from storage.store import Store

log = structlog.get_logger()
JUMP = timedelta(hours=1)


class ExpirySweeper:
    """Ends what has expired. `wall` and `steady_s` are the clocks, `end` ends one upload."""

    def __init__(
        self, store: Store, end: Callable[[UploadRecord], Awaitable[None]], *,
        wall: Callable[[], datetime] = now, steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._end = end
        self._wall = wall
        self._steady_s = steady_s
        self._paused_since: tuple[datetime, float] | None = None

    async def sweep(self) -> int:
        """End every open upload whose time is over; gives how many."""
        moment = await self._believed()
        if moment is None:
            return 0
        expired = await self._store.read(lambda tx: uploads.expired(tx, moment))
        for upload in expired:
            await self._end(upload)
        return len(expired)

    async def _believed(self) -> str | None:
        """The moment to go by, kept as a row; None while the clock is not believed."""
        wall = self._wall()
        known = await self._store.read(clock.believed)
        if known is not None:
            ahead = wall - datetime.fromisoformat(known)
            if ahead < timedelta(0):
                self._paused_since = None
                return None
            if ahead > JUMP and not self._is_steady(wall):
                return None
        self._paused_since = None
        moment = timestamp(wall)
        await self._store.write(lambda tx: clock.believe(tx, moment))
        return moment

    def _is_steady(self, wall: datetime) -> bool:
        """Whether the clock that jumped ahead has run evenly for an hour since."""
        steady_s = self._steady_s()
        if self._paused_since is not None:
            began, began_s = self._paused_since
            drift_s = (wall - began).total_seconds() - (steady_s - began_s)
            if abs(drift_s) <= JUMP.total_seconds():
                return steady_s - began_s >= JUMP.total_seconds()
        log.warning("expiry.clock_jumped", paused_for_s=JUMP.total_seconds(), clock=timestamp(wall))
        self._paused_since = (wall, steady_s)
        return False
