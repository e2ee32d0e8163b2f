"""How slow a body may be, and the account of one that flows. Reads nothing itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import RequestError


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a body may be: at least `floor_bytes_per_s` over each `window_s`.

    `received` is told of the bytes that a body brought, as they come, in any thread.
    """

    floor_bytes_per_s: int = 256
    window_s: float = 60.0
    received: Callable[[int], object] = int


class Progress:
    """Keeps account of one window after another."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.ends_at = time.monotonic() + pace.window_s
        self._bytes = 0

    def add(self, count: int) -> None:
        """So many bytes came."""
        self._bytes += count

    def check(self) -> None:
        """At the end of a window: RequestError `read_timeout` when too little came in it."""
        if time.monotonic() < self.ends_at:
            return
        if self._bytes < self._pace.floor_bytes_per_s * self._pace.window_s or not self._bytes:
            raise RequestError("read_timeout")
        self.ends_at, self._bytes = time.monotonic() + self._pace.window_s, 0
