"""Reads the audit chain on while somebody listens, once for all who do, and keeps the last events at hand.

Fact: rows come from any process, so the newest one is asked for again and again; that is one row by its key. Who goes
on from further back than what is at hand reads the chain himself, page by page.
"""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from sqlalchemy import Connection

from server.auth import ANONYMOUS, Principal
from server.errors import RequestError
from server.event_rows import ACTIONS, Event, events_of
from server.settings import Events
from storage import audit
from storage.errors import StorageError
from storage.store import Store

log = structlog.get_logger()
POLL_S = 0.2
PAGE_ROWS = 500
KEPT_EVENTS = 5000


class Feed:
    """Events in order; `stopping` once the server stops."""

    def __init__(self, store: Store, limits: Events) -> None:
        self._store = store
        self._limits = limits
        self._listeners: Counter[str] = Counter()
        self._kept: list[Event] = []
        self._begin = self._end = 0
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()
        self.stopping = False

    def newest(self) -> int:
        """The seq of the last audit row."""
        return self._store.glance(audit.newest).seq

    @asynccontextmanager
    async def listening(self, who: Principal) -> AsyncIterator[None]:
        """Listen as long as the context lasts. RequestError `too_many_streams`: of this principal, or of all."""
        most, most_of_one = self._limits.max_streams, self._limits.max_streams_per_principal
        if self._listeners.total() >= most:
            raise RequestError("too_many_streams", f"{most} listen already", retry_after_s=5)
        if self._listeners[who.name] >= most_of_one and who != ANONYMOUS:  # who is everybody, on loopback only
            raise RequestError("too_many_streams", f"{most_of_one} of this token listen already", retry_after_s=5)
        if not self._listeners:
            self._kept, self._begin = [], self.newest()
            self._end = self._begin
        self._listeners[who.name] += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._listeners[who.name] -= 1
            self._listeners += Counter()  # without those that are at nought
            if not self._listeners:
                self._wanted.clear()

    async def after(self, seq: int) -> tuple[list[Event], int]:
        """Events after `seq` in order, and how far that goes: as far as `seq` when nothing is known beyond it."""
        if self._listeners and seq >= self._begin:
            return self._kept[bisect_right(self._kept, seq, key=lambda event: event.seq):], max(seq, self._end)
        return await self.page(seq)

    async def page(self, seq: int) -> tuple[list[Event], int]:
        """Like `after`, from the chain itself."""

        def read(tx: Connection) -> tuple[list[Event], int]:
            rows = audit.after(tx, seq, PAGE_ROWS, ACTIONS)
            end = rows[-1]["seq"] if len(rows) == PAGE_ROWS else max(seq, audit.newest(tx).seq)
            return events_of(tx, rows), end

        return await self._store.read(read)

    async def wait(self, seq: int, timeout_s: float) -> None:
        """Until something is known beyond `seq`, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._end <= seq and not self.stopping:
                    await self._news.wait()

    async def run(self) -> None:
        """Read on, for ever; in a task of its own."""
        while True:
            await self._wanted.wait()
            try:
                if self.newest() > self._end:
                    await self._read_on()
            except StorageError as error:
                log.warning("events.storage", reason=str(error))
            await asyncio.sleep(POLL_S)

    async def _read_on(self) -> None:
        begin = self._end
        events, end = await self.page(begin)
        if self._end != begin:
            return  # everybody left and others came meanwhile: they began anew
        self._kept += events
        if len(self._kept) > KEPT_EVENTS:
            dropped = self._kept[:-KEPT_EVENTS]
            self._kept, self._begin = self._kept[-KEPT_EVENTS:], dropped[-1].seq
        self._end = end
        self._wake()

    def stop(self) -> None:
        """End every stream: its client comes again, elsewhere or later, and goes on where it was."""
        self.stopping = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
