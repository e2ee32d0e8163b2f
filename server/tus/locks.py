"""One writer per upload on this machine; a newcomer asks the holder to leave (contract §5). No 423 loop.

Facts: a Unix socket bound to an abstract address is a lock that the kernel gives to one process only and takes
back when that process dies, and it carries the newcomer's request to its holder. Addresses live in the
network namespace, so every process of one server sees them and no file is left behind.
"""

import asyncio
import errno
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from server.errors import RequestError

TAKEOVER_S = 1.0
LOOK_S = 0.005
ASK_S = 0.1
Stop = Callable[[str], None]
"""Makes a holder leave soon, its bytes kept; takes the code to tell its client, and may be called more than once."""


class UploadLocks(Protocol):
    """Who writes to which upload. Another implementation may reach over machines."""

    def take(self, upload_id: str, stop: Stop) -> AbstractAsyncContextManager[None]:
        """Hold the upload, until `stop` is called at the latest.

        RequestError `upload_locked` when the present holder has not left within a second.
        """
        ...

    def is_held(self, upload_id: str) -> bool:
        """Whether somebody writes to the upload now."""
        ...

    def stop_all(self) -> None:
        """Ask every holder in this process to leave: it is stopping."""
        ...


class MachineLocks:
    """UploadLocks for the processes of one machine. `namespace` tells one server's uploads from another's."""

    def __init__(self, namespace: Path) -> None:
        self._prefix = b"\0packhorse/" + hashlib.sha256(str(namespace.resolve()).encode()).digest()[:16].hex().encode()
        self._stops: dict[str, Stop] = {}

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

    @asynccontextmanager
    async def take(self, upload_id: str, stop: Stop) -> AsyncIterator[None]:
        """Bind the address, asking its holder to leave for as long as it is taken."""
        held = await self._bind(upload_id)
        loop = asyncio.get_running_loop()

        def asked() -> None:
            with suppress(BlockingIOError):
                held.recv(16)
            stop("upload_stopped")

        self._stops[upload_id] = stop
        loop.add_reader(held, asked)
        try:
            yield
        finally:
            loop.remove_reader(held)
            del self._stops[upload_id]
            held.close()

    async def _bind(self, upload_id: str) -> socket.socket:
        loop = asyncio.get_running_loop()
        deadline, ask_at = loop.time() + TAKEOVER_S, 0.0
        mine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            while True:
                try:
                    mine.bind(self._address(upload_id))
                    return mine
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                if loop.time() >= deadline:
                    raise RequestError("upload_locked", retry_after_s=1)
                if loop.time() >= ask_at:
                    ask_at = loop.time() + ASK_S
                    with suppress(OSError):  # it has left meanwhile, or has been asked often enough
                        mine.sendto(b"leave", self._address(upload_id))
                await asyncio.sleep(LOOK_S)
        except BaseException:
            mine.close()
            raise

    def stop_all(self) -> None:
        """Ask every holder of this process to leave."""
        for stop in list(self._stops.values()):
            stop("server_shutdown")
