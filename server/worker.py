"""Runs what was queued: the durable jobs, periodic sweeps, and tasks that outlive a request. Knows no feature."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import structlog

from server.errors import AppError
from storage import jobs
from storage.errors import StorageError
from storage.records import JobRecord
from storage.store import Store

log = structlog.get_logger()
T = TypeVar("T")


class Tasks:
    """The one task group of the process; a task's failure goes to whoever awaits it, never to its siblings."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Tasks":
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup:
            if error is not None:
                raise error from None  # tasks never fail here, so the group holds only what the body raised
            raise

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Future[T]":
        """Run `work` in the group; the future has its result or its failure."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def guarded() -> None:
            try:
                result = await work
            except asyncio.CancelledError:
                future.cancel()
                raise
            except Exception as error:  # the rim of the task: its failure is its awaiter's
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # nobody may be waiting any more
                if not isinstance(error, AppError | StorageError):
                    log.exception("task.failed", name=name)
            else:
                if not future.done():
                    future.set_result(result)

        task = self._group.create_task(guarded(), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return future

    def cancel(self) -> None:
        """End what still runs: what it was about is in rows, and goes on at the next start."""
        for task in self._running:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff in seconds, with jitter so that many waiters do not come back at once."""

    first_s: float = 5.0
    most_s: float = 600.0

    def delay_s(self, attempt: int) -> float:
        """How long to wait after the `attempt`-th failure, counted from 1."""
        full = min(self.most_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return full * (0.75 + random.random() / 4)  # noqa: S311 - jitter, no secret


class Done:
    """A job's handler has ended its job itself, in the transaction that its work was."""


@dataclass(frozen=True, slots=True)
class Later:
    """A job's handler could not do it now. `failures`: how many it counts, where that is not every attempt ever."""

    reason: str
    failures: int | None = None


Handler = Callable[[JobRecord], Awaitable[Done | Later]]


class Worker:
    """Claims due jobs and runs their handlers, `per_kind` of each kind at once but where `at_once` says otherwise."""

    LEASE_S = 60.0
    POLL_S = 1.0

    def __init__(
        self, store: Store, handlers: Mapping[str, Handler], *, per_kind: int = 4,
        at_once: Mapping[str, int] | None = None, backoff: Backoff | None = None,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._at_once = dict.fromkeys(handlers, per_kind) | dict(at_once or {})
        self._backoff = backoff or Backoff()
        self._wake = {kind: asyncio.Event() for kind in handlers}
        self._stopping = False

    def wake(self, kind: str) -> None:
        """Work of that kind was just queued: look now rather than at the next poll."""
        self._wake[kind].set()

    def start(self, tasks: Tasks) -> None:
        """Begin in `tasks`."""
        for kind in self._handlers:
            for number in range(self._at_once[kind]):
                tasks.spawn(self._run(kind), f"worker-{kind}-{number}")

    def stop(self) -> None:
        """Claim nothing more; what runs is finished."""
        self._stopping = True
        for event in self._wake.values():
            event.set()

    async def _run(self, kind: str) -> None:
        while not self._stopping:
            try:
                held = None
                if await self._store.read(lambda tx: jobs.is_due(tx, kind)):
                    held = await self._store.write(lambda tx: jobs.claim(tx, (kind,), self.LEASE_S))
            except StorageError as error:
                log.warning("worker.storage", kind=kind, reason=str(error))
                held = None
            if held is None:
                await self._rest(kind)
            else:
                await self._carry_out(held)

    async def _rest(self, kind: str) -> None:
        event = self._wake[kind]
        try:
            async with asyncio.timeout(self.POLL_S):
                await event.wait()
        except TimeoutError:
            return
        if not self._stopping:
            event.clear()

    async def _carry_out(self, held: JobRecord) -> None:
        try:
            outcome = await leased(self._store, held, self._handlers[held.kind](held))
        except StorageError as error:
            outcome = Later(str(error))
        except Exception:
            log.exception("worker.failed", kind=held.kind, job_id=held.job_id)
            outcome = Later("it failed on our side")
        if isinstance(outcome, Later):
            delay_s, reason = self._backoff.delay_s(outcome.failures or held.attempt), outcome.reason
            try:
                await self._store.write(lambda tx: jobs.later(tx, held, delay_s, reason))
            except StorageError as error:
                log.warning("worker.lost_lease", kind=held.kind, job_id=held.job_id, reason=str(error))


async def leased(store: Store, held: JobRecord, work: Awaitable[T], lease_s: float = Worker.LEASE_S) -> T:
    """`work` while its job's lease is renewed; Conflict, the work cancelled, when another worker has the job."""
    working = asyncio.ensure_future(work)
    try:
        while True:
            finished, _ = await asyncio.wait([working], timeout=lease_s / 3)
            if finished:
                return working.result()
            await store.write(lambda tx: jobs.extend(tx, held, lease_s))  # Conflict: another worker has it
    finally:
        working.cancel()


async def every(period_s: float, name: str, sweep: Callable[[], Awaitable[object]]) -> None:
    """Run `sweep` again and again; a failing one is logged and comes again."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await sweep()
        except Exception:
            log.exception("sweep.failed", name=name)
