"""One writer per upload on this machine; a newcomer asks the holder to leave (contract §5). No 423 loop.

Facts: a Unix socket bound to an abstract address is a lock that the kernel gives to one process only and takes
back when that process dies, and it carries the newcomer's request to its holder. Addresses live in the
network namespace, so every process of one server sees them and no file is left behind.
"""

import asyncio
import errno
import hashlib
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from server.errors import RequestError

TAKEOVER_S = 1.0
LOOK_S = 0.005
ASK_S = 0.1
Stop = Callable[[str], None]
"""Makes a holder leave soon, its bytes kept; takes the code to tell its client, and may be called more than once."""


class Held(Protocol):
    """An upload that is held; leaving the context lets go of it."""

    async def __aenter__(self) -> object:
        """Held already."""
        ...

    async def __aexit__(self, *_failure: object) -> None:
        """Let go."""
        ...


class UploadLocks(Protocol):
    """Who writes to which upload. Another implementation may reach over machines."""

    async def take(self, upload_id: str, stop: Stop | None) -> Held:
        """Hold the upload, its holder asked to leave; whoever comes next calls `stop`.

        `stop` is None for who holds it a moment only. RequestError `upload_locked` when the present holder has not
        left within a second.
        """
        ...

    async def take_free(self, upload_id: str, stop: Stop | None) -> Held | None:
        """Like `take` where nobody holds the upload; None, nobody asked, where somebody does."""
        ...

    def is_held(self, upload_id: str) -> bool:
        """Whether somebody writes to the upload now."""
        ...

    def stop_all(self) -> None:
        """Ask every holder in this process to leave, and whoever takes a lock later: it is stopping."""
        ...


@dataclass(slots=True)
class _Holders:
    """The holders of one process: how each is made to leave, and whether all are."""

    stops: set[Stop] = field(default_factory=set)
    stopping: bool = False


class _Address:
    """A bound address: Held."""

    __slots__ = ("_bound", "_holders", "_listens", "_stop")

    def __init__(self, bound: socket.socket, stop: Stop | None, holders: _Holders) -> None:
        self._bound = bound
        self._stop = stop
        self._holders = holders
        self._listens = False

    async def __aenter__(self) -> None:
        if self._stop is not None:
            self._holders.stops.add(self._stop)
            asyncio.get_running_loop().add_reader(self._bound, self._asked)
            self._listens = True
            if self._holders.stopping:  # it was on its way here when all were asked
                self._stop("server_shutdown")

    def _asked(self) -> None:
        with suppress(BlockingIOError):
            self._bound.recv(16)
        if self._stop is not None:
            self._stop("upload_stopped")

    async def __aexit__(self, *_failure: object) -> None:
        if self._listens and self._stop is not None:
            asyncio.get_running_loop().remove_reader(self._bound)
            self._holders.stops.discard(self._stop)
        self._bound.close()


class MachineLocks:
    """UploadLocks for the processes of one machine. `namespace` tells one server's uploads from another's."""

    def __init__(self, namespace: Path) -> None:
        self._prefix = b"\0packhorse/" + hashlib.sha256(str(namespace.resolve()).encode()).digest()[:16].hex().encode()
        self._holders = _Holders()

    def _address(self, upload_id: str) -> bytes:
        return self._prefix + b"/" + upload_id.encode()

    def is_held(self, upload_id: str) -> bool:
        """Whether the address is taken."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            try:
                asking.connect(self._address(upload_id))
            except ConnectionRefusedError:
                return False
            return True

    async def take_free(self, upload_id: str, stop: Stop | None) -> Held | None:
        """Bind the address, if it is free."""
        mine = _unbound()
        if not _bind(mine, self._address(upload_id)):
            mine.close()
            return None
        return _Address(mine, stop, self._holders)

    async def take(self, upload_id: str, stop: Stop | None) -> Held:
        """Bind the address, asking its holder to leave for as long as it is taken."""
        loop = asyncio.get_running_loop()
        deadline, ask_at = loop.time() + TAKEOVER_S, 0.0
        address, mine = self._address(upload_id), _unbound()
        try:
            while not _bind(mine, address):
                if loop.time() >= deadline:
                    raise RequestError("upload_locked", retry_after_s=1)
                if loop.time() >= ask_at:
                    ask_at = loop.time() + ASK_S
                    with suppress(OSError):  # it has left meanwhile, or has been asked often enough
                        mine.sendto(b"leave", address)
                await asyncio.sleep(LOOK_S)
        except BaseException:
            mine.close()
            raise
        return _Address(mine, stop, self._holders)

    def stop_all(self) -> None:
        """Ask every holder of this process to leave, those that are still to come too."""
        self._holders.stopping = True
        for stop in list(self._holders.stops):
            stop("server_shutdown")


def _unbound() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _bind(mine: socket.socket, address: bytes) -> bool:
    """Whether the address is ours now."""
    try:
        mine.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
