"""What happened in this process: numbers that only grow, by metric and labels. Writes nothing anywhere.

Facts: one event costs some 0.3 µs here; the counters of prometheus_client cost five times that, and their way to share
between processes kills a process whose disk is full (ADR 25). Bytes are counted from threads too.
"""

import threading
import time
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from server.middleware import Handler, route_of, verb_of
from storage.durations import COMMITS, FLUSHES, Durations

Labels = tuple[str, ...]
Counted = dict[str, dict[Labels, int]]
Took = dict[str, dict[Labels, tuple[list[int], float]]]
REQUESTS, REQUEST_S = "packhorse_http_requests", "packhorse_http_request_seconds"
RECEIVED, INGEST_S = "packhorse_received_bytes", "packhorse_ingest_seconds"
COMMIT_S, FLUSH_S = "packhorse_commit_seconds", "packhorse_fsync_seconds"
ABORTED = "aborted"
"""In place of a status: the client had gone, or the server stopped."""


class Counts:
    """Counters and durations of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counted = {}
        self._took: dict[str, dict[Labels, Durations]] = {COMMIT_S: {(): COMMITS}, FLUSH_S: {(): FLUSHES}}

    def add(self, metric: str, labels: Labels, amount: int = 1) -> None:
        """So many more."""
        with self._lock:
            counted = self._counted.setdefault(metric, {})
            counted[labels] = counted.get(labels, 0) + amount

    def took(self, metric: str, labels: Labels, seconds: float) -> None:
        """One more, which took so long."""
        found = self._took.get(metric, {}).get(labels)
        if found is None:
            with self._lock:
                found = self._took.setdefault(metric, {}).setdefault(labels, Durations())
        found.add(seconds)

    def received(self, door: str) -> Callable[[int], None]:
        """What is told of each piece that comes in by that door, in bytes."""
        return lambda count: self.add(RECEIVED, (door,), count)

    def told(self) -> tuple[Counted, Took]:
        """All of it, as it is now."""
        with self._lock:
            counted = {metric: dict(values) for metric, values in self._counted.items()}
            took = {metric: dict(values) for metric, values in self._took.items()}
        return counted, {metric: {labels: one.told() for labels, one in values.items()}
                         for metric, values in took.items()}


def counting(counts: Counts) -> Middleware:
    """A middleware, the outermost: every answer by route, method and status, and how long it took."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        began, status = time.perf_counter(), ABORTED
        try:
            response = await handler(request)
            status = str(response.status)
            return response
        finally:
            # what a client makes up, as a method or a path, makes no series of its own
            verb = verb_of(request)
            labels = (route_of(request).rstrip("/"), verb if verb in hdrs.METH_ALL else "other")
            counts.add(REQUESTS, (*labels, status))
            counts.took(REQUEST_S, labels, time.perf_counter() - began)

    return count
