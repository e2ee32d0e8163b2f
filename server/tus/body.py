"""A request's body as a stream that keeps what arrived. Knows no upload.

Fact: when the client leaves, aiohttp raises out of the reader before it has given out what is already
buffered. Those bytes reached us, so they are drained first and the loss is told after.
"""

import asyncio
from collections.abc import AsyncGenerator

from aiohttp import ClientConnectionError, StreamReader, web

from server.errors import RequestError

FLOOR_BYTES_PER_S = 256
WINDOW_S = 60.0
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_S = 5.0


class _Stopped(TimeoutError):
    """A newer request took the upload over. A TimeoutError, on which aiohttp ends its reading of the rest quietly."""


class UploadBody:
    """The body of one PATCH or POST, at most `limit` bytes of it. `bytes_read` counts what was given out."""

    def __init__(self, content: StreamReader, limit: int, *, window_s: float = WINDOW_S) -> None:
        self._content = content
        self._limit = limit
        self._window_s = window_s
        self._loop = asyncio.get_running_loop()
        self._window_ends = self._loop.time() + window_s
        self._window_bytes = 0
        self._lost: BaseException | None = None
        self.bytes_read = 0
        self.ended = False

    def stop(self) -> None:
        """Make the reader leave now: a newcomer has taken the upload over."""
        if not self.ended and self._lost is None:
            self._content.set_exception(_Stopped())

    async def segment(self) -> AsyncGenerator[bytes, None]:
        """Chunks up to the next point at which bytes must be made durable (contract §2), or the body's end.

        Raises what ended the body early, after every byte that arrived was given: RequestError
        `upload_interrupted`, `upload_stopped`, `read_timeout`, `upload_size_exceeded`.
        """
        started, given = self._loop.time(), 0
        while given < SEGMENT_BYTES and self._loop.time() - started < SEGMENT_S:
            chunk = await self._next()
            if not chunk:
                self.ended = True
                return
            room = self._limit - self.bytes_read
            self.bytes_read += min(room, len(chunk))
            given += len(chunk)
            if room:
                yield chunk[:room]
            if len(chunk) > room:
                raise RequestError("upload_size_exceeded")

    async def _next(self) -> bytes:
        if self._lost is not None:
            raise self._lost
        try:
            async with asyncio.timeout_at(self._window_ends):
                chunk = await self._content.readany()
        except _Stopped:
            self._lost = RequestError("upload_stopped")
        except TimeoutError:
            if self._window_bytes < FLOOR_BYTES_PER_S * self._window_s:
                self._lost = RequestError("read_timeout")
            self._window_ends, self._window_bytes = self._loop.time() + self._window_s, 0
            return await self._next()
        except (ConnectionResetError, ClientConnectionError, web.RequestPayloadError, RuntimeError, OSError):
            self._lost = RequestError("upload_interrupted")
        else:
            self._window_bytes += len(chunk)
            return chunk
        # aiohttp has no public way to read what is buffered behind an exception
        rest: bytes = self._content._read_nowait(-1)
        return rest or await self._next()
