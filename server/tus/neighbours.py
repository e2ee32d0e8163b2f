"""Asks the other processes of this server to tell now what they know of an upload. Knows no row and no byte.

Facts: each process that keeps accounts back (flushing.py) holds one of few abstract addresses, made as those of the
locks are; an address that nobody holds refuses at once, so a process that died is waited for by nobody. Whom a
question reaches answers it, also when it has nothing to tell. A neighbour that hangs costs the asker ANSWER_S.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from server.tus.locks import CREDENTIALS, addresses_in, bind, sender_of, unbound
from server.worker import Tasks

MOST = 64
"""Processes that listen."""
ANSWER_S = 1.0
QUESTION_BYTES = 64


class Neighbours:
    """One in each process that works on the folder `namespace`."""

    def __init__(self, namespace: Path, tasks: Tasks) -> None:
        names = addresses_in(namespace)
        self._addresses = [names(f"accounts/{number}") for number in range(MOST)]
        self._tasks = tasks
        self._mine: socket.socket | None = None
        self._place = -1

    def listen(self, tell: Callable[[str], Awaitable[None]]) -> None:
        """From now on others may ask: `tell` tells what this process knows of an upload. Again: no change."""
        if self._mine is not None:
            return
        mine = unbound()
        self._place = next((place for place, address in enumerate(self._addresses) if bind(mine, address)), -1)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(mine, self._asked, mine, tell)
        self._mine = mine

    def _asked(self, mine: socket.socket, tell: Callable[[str], Awaitable[None]]) -> None:
        question, whence = _received(mine)
        if question and whence:
            self._tasks.spawn(self._answer(mine, question, whence, tell), f"tell-{question}")

    async def _answer(
        self, mine: socket.socket, question: str, whence: bytes, tell: Callable[[str], Awaitable[None]]
    ) -> None:
        try:
            await tell(question)
        finally:
            with suppress(OSError):  # who asked waits no more
                mine.sendto(b"told", whence)

    async def ask(self, upload_id: str) -> None:
        """Return once every other process has told what it knows of the upload, or ANSWER_S is over."""
        mine, answered = unbound(), asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            mine.bind("")  # an address that the kernel chooses (unix(7), autobind)
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            waiting = sum(self._reaches(mine, place, upload_id) for place in range(MOST))
            loop.add_reader(mine, answered.set)
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    while waiting:
                        await answered.wait()
                        answered.clear()
                        waiting -= _received(mine)[0] is not None
        finally:
            loop.remove_reader(mine)
            mine.close()

    def _reaches(self, mine: socket.socket, place: int, upload_id: str) -> bool:
        """Whether somebody is there who will answer."""
        if place == self._place:
            return False
        try:
            mine.sendto(upload_id.encode(), self._addresses[place])
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Nobody is answered any more."""
        if self._mine is not None:
            asyncio.get_running_loop().remove_reader(self._mine)
            self._mine.close()
            self._mine = None


def _received(mine: socket.socket) -> tuple[str | None, bytes | None]:
    """A datagram of our own user, and who sent it; (None, None) for another one, and where there is none."""
    try:
        text, said, _, whence = mine.recvmsg(QUESTION_BYTES, socket.CMSG_SPACE(CREDENTIALS.size))
    except OSError:
        return None, None
    return (text.decode(errors="replace"), whence) if sender_of(said) in (0, os.getuid()) else (None, None)
