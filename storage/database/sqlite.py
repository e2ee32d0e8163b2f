"""SQLite in WAL: one writer thread that commits in groups, readers through aiosqlite.

Facts: one commit of a group costs one fsync whatever its size, so waiting 2 ms for company multiplies the
throughput; with several processes SQLite's own busy handler starves writers for seconds, a lock file taken
first does not. Each unit has its SAVEPOINT: a Conflict undoes one unit, not the group.
"""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage.errors import NoSpace, Refused, StorageError, StorageIO

T = TypeVar("T")
GROUP_UNITS = 256
GROUP_WAIT_S = 0.002
QUEUE_UNITS = 10_000
LOCK_WAIT_S = 30.0
READERS = 8


def translate(error: Exception) -> Exception:
    """SQLite's errors in the storage's words; anything else as it is."""
    if isinstance(error, IntegrityError):
        return Refused(str(error.orig))
    if isinstance(error, OperationalError):
        reason = str(error.orig)
        return NoSpace(reason) if "full" in reason else StorageIO(reason)
    return error


def writer_engine(path: Path) -> Engine:
    """An engine whose connections write durably; the caller emits BEGIN IMMEDIATE by `begin`."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": LOCK_WAIT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def durable(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # pysqlite would begin and commit on its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def immediately(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _reader_engine(path: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=READERS, max_overflow=0)

    @event.listens_for(engine.sync_engine, "connect")
    def read_only(connection: Any, _record: object) -> None:  # SQLAlchemy's adapter over aiosqlite
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    return engine


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """The lock file that processes queue at before BEGIN IMMEDIATE."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Unit:
    """A unit of work on its way through the writer."""

    __slots__ = ("future", "run")

    def __init__(self, run: Callable[[Connection], Any]) -> None:  # the result type is the caller's
        self.run = run
        self.future: Future[Any] = Future()


class SqliteDatabase:
    """The Database seam on one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._units: queue.Queue[_Unit | None] = queue.Queue(QUEUE_UNITS)
        self._writer = writer_engine(path)
        self._reader = _reader_engine(path)
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, unit: Callable[[Connection], T]) -> T:
        """Run `unit` in the next group; returns once the group's commit is on the medium."""
        waiting = _Unit(unit)
        try:
            self._units.put_nowait(waiting)
        except queue.Full:
            raise StorageIO("the database's writer has fallen behind") from None
        result: T = await asyncio.wrap_future(waiting.future)
        return result

    async def read(self, unit: Callable[[Connection], T]) -> T:
        """Run `unit` on a snapshot; a write in it is refused by SQLite."""
        try:
            async with self._reader.connect() as connection:
                return await connection.run_sync(unit)
        except (IntegrityError, OperationalError) as error:
            raise translate(error) from error

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        if self._thread.is_alive():
            await asyncio.to_thread(self._units.put, None)
            await asyncio.to_thread(self._thread.join)
        self._writer.dispose()
        await self._reader.dispose()

    def _run(self) -> None:
        last = False
        while not last:
            first = self._units.get()
            if first is None:
                return
            group, last = self._gather(first)
            self._commit(group)

    def _gather(self, first: _Unit) -> tuple[list[_Unit], bool]:
        group, deadline = [first], time.monotonic() + GROUP_WAIT_S
        while len(group) < GROUP_UNITS:
            try:
                unit = self._units.get_nowait()
            except queue.Empty:
                if len(group) == 1 or time.monotonic() >= deadline:
                    return group, False  # nobody else waits: one alone is not held back
                time.sleep(0.0002)
                continue
            if unit is None:
                return group, True
            group.append(unit)
        return group, False

    def _commit(self, group: list[_Unit]) -> None:
        done: list[tuple[_Unit, Any]] = []  # the result types are the callers'
        failed: list[tuple[_Unit, BaseException]] = []
        try:
            with writer_lock(self._path), self._writer.begin() as connection:
                for unit in group:
                    if not unit.future.set_running_or_notify_cancel():
                        continue
                    try:
                        with connection.begin_nested():
                            done.append((unit, unit.run(connection)))
                    except Exception as error:  # noqa: BLE001 - the rim of the writer: each unit gets its own
                        failed.append((unit, translate(error)))
        except Exception as error:  # noqa: BLE001 - the commit failed: nothing of the group is durable
            reason = translate(error)
            if not isinstance(reason, StorageError):
                reason = StorageIO(str(error))
            failed.extend((unit, reason) for unit in group if unit not in [f for f, _ in failed])
            done = []
        for unit, result in done:
            unit.future.set_result(result)
        for unit, failure in failed:
            if unit.future.running() or (not unit.future.done() and unit.future.set_running_or_notify_cancel()):
                unit.future.set_exception(failure)
