"""Reads one blob from its medium, alone over all processes, and notes what that found. Answers nobody's request.

Facts: who reads a blob holds its lock, so that readings are noted in the order in which they were made: an alarm is
never closed by a reading that began before it. A scrub may take hours over a large blob at its slow pace, so it
leaves as soon as anybody asks; whoever waits to tell a sender reads at full speed, and is not disturbed.
"""

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from enum import StrEnum
from typing import Protocol

from sqlalchemy import Connection

from server.errors import RequestError
from storage import audit, blob_rows, integrity
from storage.blobs.base import BlobKey, sealed
from storage.errors import NotAFile, NotFound, StorageError
from storage.moments import moment
from storage.records import AuditEntry, Sha256
from storage.store import Store

OF_THIS_PROCESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
"""What the system says when we lack something: no word about the bytes."""
SHORT_WAIT_S = 0.01


class Asks(StrEnum):
    """On whose behalf a blob is read."""

    ACKNOWLEDGE = "acknowledge"
    RECEIPT = "receipt"
    QUARANTINE = "quarantine"
    FSCK = "fsck"
    BACKUP = "backup"
    SCRUB = "scrub"


class BlobLocks(Protocol):
    """Who works on what, over all processes; leaving the context lets go."""

    async def take(self, name: str, stop: Callable[[str], None] | None, /) -> AbstractAsyncContextManager[object]:
        """Hold `name`, its holder asked to leave. RequestError `upload_locked` when it has not left within a second."""
        ...

    async def take_free(
        self, name: str, stop: Callable[[str], None] | None, /
    ) -> AbstractAsyncContextManager[object] | None:
        """Hold `name` where nobody does, else None. `stop` is called when somebody wants it."""
        ...


class ReadingEnded(Exception):
    """A reading was ended before its end: it found nothing."""


class Pace:
    """How fast several readings go together, in bytes a second."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._due_s = 0.0

    def wait_s(self, count: int) -> float:
        """For how long to wait after `count` bytes."""
        moment = time.monotonic()
        self._due_s = max(self._due_s, moment) + count / self._bytes_per_s
        return self._due_s - moment


class Watch:
    """Hears of each piece of one reading in the thread that reads: slows it down, and ends it when told."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace
        self._ended = threading.Event()

    def end(self) -> None:
        """End the reading with its next piece."""
        self._ended.set()

    def __call__(self, count: int) -> None:
        """ReadingEnded."""
        wait_s = self._pace.wait_s(count) if self._pace is not None else 0.0
        if self._ended.wait(wait_s) if wait_s > SHORT_WAIT_S else self._ended.is_set():
            raise ReadingEnded


class Checker:
    """Reads blobs, one at a time each."""

    def __init__(self, store: Store, locks: BlobLocks) -> None:
        self._store = store
        self._locks = locks

    @asynccontextmanager
    async def alone(self, site: str, sha256: str) -> AsyncIterator[None]:
        """Be the only one to read this blob, once whoever does so has left."""
        while True:  # no limit: a holder reads a file to its end, leaves when asked, or dies, and so lets go
            try:
                held = await self._locks.take(_lock_name(site, sha256), None)
                break
            except RequestError as error:
                if error.code != "upload_locked":
                    raise
        async with held:
            yield

    async def check(self, site: str, sha256: str, asks: Asks) -> bool:
        """Whether the medium gives the right bytes; noted, with an alarm if it does not. Waits for its turn."""
        async with self.alone(site, sha256):
            return await self.read(site, sha256, asks, Watch())

    async def check_if_free(self, site: str, sha256: str, asks: Asks, pace: Pace) -> bool | None:
        """Like `check`, at a pace; None, nothing noted, where somebody else reads it or came to do so."""
        watch = Watch(pace)
        held = await self._locks.take_free(_lock_name(site, sha256), lambda _code: watch.end())
        if held is None:
            return None
        async with held:
            with suppress(ReadingEnded):
                return await self.read(site, sha256, asks, watch)
        return None

    async def read(self, site: str, sha256: str, asks: Asks, watch: Watch) -> bool:
        """Like `check`, for who is `alone` already. ReadingEnded; StorageError where nothing can be said."""
        began = moment()
        damage = await self._damage(sealed(site, sha256), watch)
        is_scrub = asks is Asks.SCRUB

        def unit(tx: Connection) -> None:
            integrity.note_read(tx, site, sha256, began, damage, asks)
            if not is_scrub:  # a scrub reads all there is: only what it finds is a row
                audit.append(tx, AuditEntry(
                    site, "blob.readback", subject=integrity.subject_of(sha256),
                    outcome="damaged" if damage else "ok", detail={"asks": asks}))

        await self._store.write(unit, light=is_scrub and damage is None)
        return damage is None

    async def _damage(self, key: BlobKey, watch: Watch) -> str | None:
        """What is wrong with the bytes, in words; None when they are right."""
        try:
            if await self._digest(key, watch) == key.name:
                return None
            there = await self._store.blobs.size(key)
        except NotAFile as error:
            return f"the bytes are gone: {error}"
        except NotFound:
            return "the bytes are gone"
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in OF_THIS_PROCESS:
                raise
            return f"the bytes could not be read: {error}"
        known = await self._store.read(lambda tx: blob_rows.find(tx, key.site, key.name))
        if known is not None and known.size_bytes != there:
            return f"there are {there} bytes, {known.size_bytes} were stored"
        return "the bytes are not those that were stored"

    async def _digest(self, key: BlobKey, watch: Watch) -> Sha256:
        reading = asyncio.ensure_future(self._store.blobs.digest(key, watch))  # ends with its caller, see below
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            watch.end()
            with suppress(ReadingEnded, StorageError):
                await reading
            raise


def _lock_name(site: str, sha256: str) -> str:
    return f"blob/{site}/{sha256}"
