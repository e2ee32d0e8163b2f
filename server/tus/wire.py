"""Reads the rest of a long body straight from its socket, in a thread while it flows. Knows no request, no upload.

Facts: this is twice as fast as through the loop. A thread is worth it while bytes flow only, so a slow or silent
line is waited for in the loop. Whoever wants the reader to leave rings a bell, which is waited for with the socket.
"""

import asyncio
import os
import select
import socket
import time
from array import array
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD

from server.errors import RequestError
from server.tus.pace import Progress

LOW_WATER_BYTES = 256 * 1024
MOMENT_MS = 50
READ_S = 0.25
SLOW_BYTES = 32 * 1024
"""A line that brings less within READ_S is waited for in the loop, not in a thread."""
LOOK_S = 1.0
DRAIN_S = 0.1
"""How long whoever is to leave goes on reading what comes without a pause; a newcomer waits for it."""
PAUSE_MS = 5
"""The rest may lie in the sender's kernel until we have made room for it: on one machine it comes at once."""


class Wire:
    """The rest of a body on its socket. `read` runs in one thread, `stop` may come from another."""

    def __init__(self, connection: socket.socket, buffered: bytes, remaining: int, progress: Progress) -> None:
        self._socket = connection
        self._buffered = memoryview(buffered)
        self._remaining = self.passed_by = remaining
        self._progress = progress
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._lost: RequestError | None = None
        self._stop_code = "upload_stopped"
        self._drained_until: float | None = None
        self._left_after_stop: int | None = None
        self._is_slow = False
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN | select.POLLRDHUP)
        self._poll.register(self._bell, select.POLLIN)

    @property
    def is_over(self) -> bool:
        """Whether all of the body was read."""
        return self._remaining == 0 and not self._buffered

    def stop(self, code: str) -> None:
        """What comes without a pause, for DRAIN_S at most, is still read, and what lies in the socket then."""
        if not self._closed:
            self._stop_code = code
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Let go of the descriptors; the connection itself is aiohttp's."""
        if not self._closed:
            self._closed = True
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._socket.close()
            os.close(self._bell)

    def read(self, buffer: memoryview) -> int:
        """As much as comes within READ_S; 0 when nothing does for a moment, or the body is over."""
        if self._buffered:
            count = min(len(buffer), len(self._buffered))
            buffer[:count], self._buffered = self._buffered[:count], self._buffered[count:]
            return count
        # a slow line is never waited for below, so the bell is looked at first
        self._heed(self._is_slow and self._drained_until is None and self._bell in dict(self._poll.poll(0)))
        count, ends_at = 0, time.monotonic() + READ_S
        while count < len(buffer) and self._lost is None:
            wanted = min(len(buffer) - count, self._wanted())
            if wanted == 0:
                break
            try:
                got = self._socket.recv_into(buffer[count:], wanted, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self._drained_until is not None:
                    if not self._comes_at_once():
                        self._lost = RequestError(self._stop_code)
                    continue
                if self._is_slow or time.monotonic() >= ends_at or not self._wait(wanted):
                    break
                continue
            except OSError:
                got = 0
            if got == 0:
                self._lost = RequestError("upload_interrupted")
                break
            count += got
            self._took(got)
        self._is_slow = count < SLOW_BYTES
        if count == 0 and self._lost is not None:
            raise self._lost
        return count

    def _wanted(self) -> int:
        if self._left_after_stop is None:
            if self._drained_until is None or time.monotonic() < self._drained_until:
                return self._remaining
            self._left_after_stop = self._waiting_bytes()
        if self._left_after_stop == 0 and self._remaining:
            self._lost = RequestError(self._stop_code)
        return min(self._left_after_stop, self._remaining)

    def _took(self, count: int) -> None:
        self._remaining -= count
        self._progress.add(count)
        if self._left_after_stop is not None:
            self._left_after_stop -= count

    def _wait(self, wanted: int) -> bool:
        """Whether there is something to do within a moment."""
        self._mark(wanted)
        found = dict(self._poll.poll(MOMENT_MS))
        self._heed(self._bell in found)
        # a slow line never reaches the low water mark: what it brought is looked for
        return bool(found) or self._has_bytes()

    def _mark(self, wanted: int) -> None:
        """Wake whoever waits only for as much as is worth it."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(LOW_WATER_BYTES, wanted))

    def _heed(self, rung: bool) -> None:
        if rung and self._drained_until is None:
            self._drained_until = time.monotonic() + DRAIN_S
            self._poll.unregister(self._bell)

    def _comes_at_once(self) -> bool:
        self._mark(1)
        return bool(self._poll.poll(PAUSE_MS))

    async def flows(self, within_s: float) -> None:
        """Until there is something to read or to heed, or `within_s` is over. RequestError `read_timeout`."""
        if self._buffered or self._drained_until is not None:
            return
        self._mark(self._remaining)
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        descriptors = (self._socket.fileno(), self._bell)
        for descriptor in descriptors:
            loop.add_reader(descriptor, woken.set)
        try:
            async with asyncio.timeout(within_s):
                while not self._has_bytes() and not woken.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await woken.wait()
                    self._progress.check()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):  # a slow line: what comes in the meantime is read together
                        await woken.wait()
        except TimeoutError:
            return
        finally:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)

    def _has_bytes(self) -> bool:
        return self._waiting_bytes() > 0

    def _waiting_bytes(self) -> int:
        waiting = array("i", [0])
        ioctl(self._socket, FIONREAD, waiting)
        return waiting[0]
