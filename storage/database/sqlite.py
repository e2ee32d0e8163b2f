"""SQLite in WAL: one writer thread that commits in groups, and a few reader threads.

Facts: one commit of a group costs one fsync whatever its size, and while one group is on its way to the medium
the next one gathers by itself; waiting for company on top of that only costs time. With several processes
SQLite's own busy handler starves writers for seconds, a lock file taken first does not. Each unit has its
SAVEPOINT: a Conflict undoes one unit, not the group. Waking the loop is dear: once for a group, not for each unit.
"""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from storage.database.base import end_unit, forget
from storage.database.prepared import sqlite_failure
from storage.durations import COMMITS
from storage.errors import FlushFailed, StorageError, StorageIO

T = TypeVar("T")
GROUP_UNITS = 256
QUEUE_UNITS = 10_000
LOCK_WAIT_S = 30.0
READERS = 4
CHECKPOINT_PAGES = 8192
"""How long the log grows, 32 MiB, before its pages go to their places: a page that changes often goes there once."""
DURABLE = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF",
           f"wal_autocheckpoint={CHECKPOINT_PAGES}", "temp_store=MEMORY")  # savepoints keep old pages: not in a file
READING = ("query_only=ON", "trusted_schema=OFF")


def translate(error: Exception) -> Exception:
    """SQLite's errors in the storage's words; anything else as it is."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return sqlite_failure(cause) if isinstance(cause, sqlite3.Error) else error


def connect(path: Path, *, read_only: bool) -> Connection:
    """A connection whose transactions we begin and end ourselves, by statements of SQLite."""
    engine = create_engine(
        f"sqlite:///{path}", poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True,
        connect_args={"timeout": LOCK_WAIT_S, "check_same_thread": False, "cached_statements": 512})
    connection = engine.connect()
    pragmas = READING if read_only else DURABLE
    for pragma in pragmas:
        driver_of(connection).execute(f"PRAGMA {pragma}")
    return connection


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection beneath SQLAlchemy's."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection), "this is SQLite"
    return driver


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """The lock file that processes queue at before BEGIN IMMEDIATE.

    The wait has no limit of its own: who holds it runs one group and commits, waiting for SQLite LOCK_WAIT_S at most,
    or migrates at its start; and the kernel takes the lock from a process that dies.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Unit:
    """A unit of work on its way through the writer: its outcome goes to `future` in the loop that waits for it.

    It runs in its caller's context, so that what it logs tells of which request it is.
    """

    __slots__ = ("context", "failure", "future", "light", "loop", "result", "run")

    def __init__(self, run: Callable[[Connection], Any], light: bool) -> None:  # the result type is the caller's
        self.run = run
        self.light = light
        self.context = copy_context()
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.failure: Exception | None = None

    def tell(self) -> None:
        """Hand the outcome over; in the loop."""
        if self.future.done():
            return  # whoever waited has gone
        if self.failure is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.failure)


class SqliteDatabase:
    """The Database seam on one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._units: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._writer = connect(path, read_only=False)
        self._flushes = True
        self._readers = ThreadPoolExecutor(READERS, "sqlite-reader")
        self._reading = threading.local()
        self._opened: list[Connection] = []
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, unit: Callable[[Connection], T], *, light: bool = False) -> T:
        """Run `unit` in the next group; returns once the group's commit is on the medium, or all are light."""
        if self._units.qsize() >= QUEUE_UNITS:
            raise StorageIO("the database's writer has fallen behind")
        waiting = _Unit(unit, light)
        self._units.put(waiting)
        result: T = await waiting.future
        return result

    async def read(self, unit: Callable[[Connection], T]) -> T:
        """Run `unit` on a snapshot; a write in it is refused by SQLite."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, unit)

    def glance(self, unit: Callable[[Connection], T]) -> T:
        """Run `unit` here: three rows by key cost 60 µs, the way to a thread and back costs 150 µs."""
        return self._read(unit)

    def _read(self, unit: Callable[[Connection], T]) -> T:
        connection: Connection | None = getattr(self._reading, "connection", None)
        if connection is None:
            connection = self._reading.connection = connect(self._path, read_only=True)
            self._opened.append(connection)
        driver = driver_of(connection)
        try:
            driver.execute("BEGIN")
            try:
                result = unit(connection)
                end_unit(connection)
                return result
            finally:
                driver.execute("ROLLBACK")
                forget(connection)
        except (DBAPIError, sqlite3.Error) as error:
            raise translate(error) from error

    async def flush(self) -> None:
        """Flush the log: what had left it went to its place after a flush of its own."""
        await asyncio.to_thread(self._flush_log)

    def _flush_log(self) -> None:
        with suppress(FileNotFoundError):  # nothing was committed
            descriptor = os.open(self._path.with_name(self._path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise FlushFailed(f"the database's log could not be flushed: {error.strerror}") from error
            finally:
                os.close(descriptor)

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        if self._thread.is_alive():
            self._units.put(None)
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in (self._writer, *self._opened):
            connection.close()

    def _run(self) -> None:
        last = False
        while not last:
            first = self._units.get()
            if first is None:
                return
            group, last = self._gather(first)
            self._commit(group)

    def _gather(self, first: _Unit) -> tuple[list[_Unit], bool]:
        """`first` and what came since the last group; whether the writer ends with them."""
        group = [first]
        with suppress(queue.Empty):
            while len(group) < GROUP_UNITS:
                unit = self._units.get_nowait()
                if unit is None:
                    return group, True
                group.append(unit)
        return group, False

    def _commit(self, group: list[_Unit]) -> None:
        running = [unit for unit in group if not unit.future.cancelled()]
        driver = driver_of(self._writer)
        try:
            with COMMITS.measured(), writer_lock(self._path):
                forget(self._writer)
                self._flush_at_commit(driver, not all(unit.light for unit in running))
                driver.execute("BEGIN IMMEDIATE")
                for unit in running:
                    self._run_unit(driver, unit)
                driver.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the commit failed: nothing of the group is durable
            with suppress(sqlite3.Error):
                driver.execute("ROLLBACK")
            reason = translate(error)
            if not isinstance(reason, StorageError):
                reason = StorageIO(str(error))
            reason.__cause__ = error
            for unit in running:
                unit.failure = unit.failure or reason
        for loop in {unit.loop for unit in running}:
            with suppress(RuntimeError):  # a loop that was closed waits for nothing
                loop.call_soon_threadsafe(_tell, [unit for unit in running if unit.loop is loop])

    def _flush_at_commit(self, driver: sqlite3.Connection, wanted: bool) -> None:
        # NORMAL leaves the log to the next commit that is FULL, whose fsync covers all that lies before it
        if wanted != self._flushes:
            driver.execute(f"PRAGMA synchronous={'FULL' if wanted else 'NORMAL'}")
            self._flushes = wanted

    def _run_unit(self, driver: sqlite3.Connection, unit: _Unit) -> None:
        driver.execute("SAVEPOINT unit")
        try:
            unit.result = unit.context.run(unit.run, self._writer)
            unit.context.run(end_unit, self._writer)
        except Exception as error:  # noqa: BLE001 - the rim of the writer: each unit gets its own
            driver.execute("ROLLBACK TO unit")
            forget(self._writer)
            unit.failure = translate(error)
        driver.execute("RELEASE unit")


def _tell(units: list[_Unit]) -> None:
    for unit in units:
        unit.tell()
