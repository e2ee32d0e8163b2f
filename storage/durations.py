"""How long the medium takes, counted in this process for whoever asks: commits, and flushes of files.

Facts: there is one disk under a process, however many stores it opens; many threads flush at once, and `+=` on a
number is no single step.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Durations:
    """A histogram: how many took at most each of BOUNDS_S, the last place for all that took longer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """One took so long."""
        place = bisect_left(BOUNDS_S, seconds)
        with self._lock:
            self._counts[place] += 1
            self._sum_s += seconds

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What is done within is one, unless it fails."""
        began = time.perf_counter()
        yield
        self.add(time.perf_counter() - began)

    def told(self) -> tuple[list[int], float]:
        """(how many, by place, the sum in seconds)."""
        with self._lock:
            return list(self._counts), self._sum_s


COMMITS = Durations()
"""From asking for the writer's lock to the end of the commit, a group of units of work each."""
FLUSHES = Durations()
"""Each fdatasync of a file's bytes and each fsync of a directory."""
