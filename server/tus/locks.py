"""One writer per upload within this process; a newcomer asks the holder to leave (contract §5). No 423 loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server.errors import RequestError

TAKEOVER_S = 1.0


@dataclass(slots=True)
class _Holder:
    stop: Callable[[], None]
    released: asyncio.Event = field(default_factory=asyncio.Event)


class UploadLocks:
    """Who holds which upload."""

    def __init__(self) -> None:
        self._holders: dict[str, _Holder] = {}

    def is_held(self, upload_id: str) -> bool:
        """Whether somebody writes to the upload now."""
        return upload_id in self._holders

    @asynccontextmanager
    async def take(self, upload_id: str, stop: Callable[[], None]) -> AsyncIterator[None]:
        """Hold the upload. `stop` must make its holder leave soon, its bytes kept.

        RequestError `upload_locked` when the present holder has not left within a second.
        """
        deadline = asyncio.get_running_loop().time() + TAKEOVER_S
        while (holder := self._holders.get(upload_id)) is not None:
            holder.stop()
            try:
                async with asyncio.timeout_at(deadline):
                    await holder.released.wait()
            except TimeoutError:
                raise RequestError("upload_locked", retry_after_s=1) from None
        mine = _Holder(stop)
        self._holders[upload_id] = mine
        try:
            yield
        finally:
            del self._holders[upload_id]
            mine.released.set()

    def stop_all(self) -> None:
        """Ask every holder to leave: the server is stopping."""
        for holder in list(self._holders.values()):
            holder.stop()
