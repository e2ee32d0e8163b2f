"""One writer per upload on this machine; a newcomer asks the holder to leave (contract §5). No 423 loop.

Facts: a Unix socket bound to an abstract address is a lock that the kernel gives to one process only and takes
back when that process dies, and it carries the newcomer's request to its holder. Addresses live in the
network namespace, so every process of one server sees them and no file is left behind.

Every local user can bind an address and send to one. So addresses are made with a secret of the data folder:
nobody else can tell one beforehand; and who asks is told by the kernel: a request counts only from our own user.
What remains: /proc/net/unix shows addresses that are held, so another local user may bind one after its holder
has left, and keep that one upload from being written (503) for as long.
"""

import asyncio
import errno
import hmac
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from server.errors import RequestError
from server.privacy import secret_at

TAKEOVER_S = 1.0
LOOK_S = 0.005
ASK_S = 0.1
CREDENTIALS = struct.Struct("3i")
"""struct ucred (unix(7)): pid, uid, gid of the sender, as the kernel knows them."""
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


def addresses_in(namespace: Path) -> Callable[[str], bytes]:
    """Names the abstract address of each thing in the folder `namespace`, which keeps the secret that they need."""
    # the path too, for a copy of the folder brings the secret along
    key = hmac.digest(secret_at(namespace / "locks.secret"), str(namespace.resolve()).encode(), "sha256")
    return lambda name: b"\0packhorse/" + hmac.digest(key, name.encode(), "sha256")[:16].hex().encode()


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
            # not before it is bound: a socket that is told its senders may bind to no name after it has sent
            self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            asyncio.get_running_loop().add_reader(self._bound, self._asked)
            self._listens = True
            if self._holders.stopping:  # it was on its way here when all were asked
                self._stop("server_shutdown")

    def _asked(self) -> None:
        try:
            _, said, _, _ = self._bound.recvmsg(16, socket.CMSG_SPACE(CREDENTIALS.size))
        except BlockingIOError:
            return
        if self._stop is not None and sender_of(said) in (0, os.getuid()):
            self._stop("upload_stopped")

    async def __aexit__(self, *_failure: object) -> None:
        if self._listens and self._stop is not None:
            asyncio.get_running_loop().remove_reader(self._bound)
            self._holders.stops.discard(self._stop)
        self._bound.close()


class MachineLocks:
    """UploadLocks for the processes of one machine that work on the folder `namespace`, which keeps their secret."""

    def __init__(self, namespace: Path) -> None:
        self._address = addresses_in(namespace)
        self._holders = _Holders()

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
        mine = unbound()
        if not bind(mine, self._address(upload_id)):
            mine.close()
            return None
        return _Address(mine, stop, self._holders)

    async def take(self, upload_id: str, stop: Stop | None) -> Held:
        """Bind the address, asking its holder to leave for as long as it is taken."""
        loop = asyncio.get_running_loop()
        deadline, ask_at = loop.time() + TAKEOVER_S, 0.0
        address, mine = self._address(upload_id), unbound()
        try:
            while not bind(mine, address):
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


def sender_of(said: list[tuple[int, int, bytes]]) -> int | None:
    """The user that sent a datagram; None for one that came before the kernel was asked to tell."""
    for level, kind, content in said:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(content) >= CREDENTIALS.size:
            pid, uid, _gid = CREDENTIALS.unpack_from(content)
            return int(uid) if pid else None
    return None


def unbound() -> socket.socket:
    """A datagram socket without a name."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def bind(mine: socket.socket, address: bytes) -> bool:
    """Whether the address is ours now."""
    try:
        mine.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
