"""A request's body as a source of bytes that keeps what arrived. Knows no upload.

Facts: when the client leaves, aiohttp raises out of the reader before it has given out what is already
buffered. Those bytes reached us, so they are drained first and the loss is told after. A long body is read past
aiohttp (wire.py), whose parser still waits for those bytes: it is given as many zeros, so that the connection can
go on; after a very long body it is closed.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator

from aiohttp import ClientConnectionError, web

from server.errors import AppError, RequestError
from server.tus.interim import invite_body
from server.tus.pace import Pace, Progress
from server.tus.wire import Wire

WHOLE_BYTES = 256 * 1024
"""A body of at most this size is taken into memory at once, if it comes within WHOLE_S."""
WHOLE_S = 1.0
LONG_BYTES = 1024 * 1024
CLOSING_BYTES = 32 * 1024 * 1024
"""From here on a new connection costs less than the zeros."""
ZEROS = bytes(256 * 1024)
SPOILED: web.RequestKey[bool] = web.RequestKey("spoiled", bool)
"""On a request whose connection can carry no further one."""
LEFT = (ConnectionResetError, ClientConnectionError, web.RequestPayloadError, RuntimeError, OSError)
"""How aiohttp says that the client has gone."""


class _Stopped(TimeoutError):
    """Somebody wants us to leave: `code` says why. A TimeoutError, on which aiohttp ends its reading quietly."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class UploadBody:
    """The body of one request, at most `limit` bytes of it. `bytes_read` counts what was given out.

    Read it once, by `chunks` or by `read` after `open_socket`. Both raise what ended the body early, after every
    byte that arrived was given: RequestError `upload_interrupted`, `upload_stopped`, `read_timeout`,
    `upload_size_exceeded`, `server_shutdown`.
    """

    def __init__(self, request: web.Request, pace: Pace, limit: int = 0) -> None:
        self._request = request
        self._content = request.content
        self._limit = limit
        self._early: list[bytes] = []
        self._invited = False
        self._progress = Progress(pace)
        self._received = pace.received
        self._told_bytes = 0
        self._lost: AppError | None = None
        self._begun = False
        self._told_to_leave: str | None = None
        self._wire: Wire | None = None
        self.bytes_read = 0
        self.ended = False

    @property
    def declared_bytes(self) -> int | None:
        """Content-Length; None for a chunked body."""
        return self._request.content_length

    def stop(self, code: str) -> None:
        """Make the reader leave now, with this code: a newcomer takes the upload over, or the server stops."""
        if self._wire is not None:
            self._wire.stop(code)
        elif not self._begun:
            self._told_to_leave = code  # what has reached the socket by then is still read, in whichever way
        elif not self.ended and self._lost is None:
            self._content.set_exception(_Stopped(code))

    def limit_to(self, size_bytes: int) -> None:
        """How much is taken of it; told before it is read."""
        self._limit = size_bytes

    def _tell(self) -> None:
        """Tell what was given out since the last time; what was given back is not told twice."""
        if self.bytes_read > self._told_bytes:
            self._received(self.bytes_read - self._told_bytes)
            self._told_bytes = self.bytes_read

    def _begin(self) -> None:
        """Reading through the loop begins; whoever wanted us to leave before is heeded now."""
        self._begun = True
        if self._told_to_leave is not None and not self.ended and self._lost is None:
            self._content.set_exception(_Stopped(self._told_to_leave))

    async def _invite(self) -> None:
        if not self._invited:
            self._invited = True
            await invite_body(self._request)

    # --- through the loop ---------------------------------------------------------------------------

    async def whole(self) -> bytes | None:
        """All of a short body that comes at once; else None, and it can still be read in another way."""
        declared = self.declared_bytes
        if declared is None or declared > min(WHOLE_BYTES, self._limit):
            return None
        self._begin()
        await self._invite()
        try:
            async with asyncio.timeout(WHOLE_S):
                while (missing := declared - sum(map(len, self._early))) > 0:
                    chunk = await self._content.readany()
                    if not chunk:
                        return None
                    self._progress.add(len(chunk))
                    self._early.append(chunk[:missing])
        except (TimeoutError, *LEFT):
            return None  # whatever it is, `chunks` meets it again, after what came
        content = self._early[0] if len(self._early) == 1 else b"".join(self._early)
        self._early = []
        self.bytes_read, self.ended = declared, True
        self._tell()
        return content

    def give_back(self, content: bytes) -> None:
        """What `whole` gave is to be read in another way after all."""
        self._early, self.bytes_read, self.ended = [content], 0, False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        self._begin()
        await self._invite()
        while chunk := await self._next():
            room = self._limit - self.bytes_read
            self.bytes_read += min(room, len(chunk))
            self._tell()
            if room:
                yield chunk[:room]
            if len(chunk) > room:
                raise RequestError("upload_size_exceeded")
        self.ended = True

    async def _next(self) -> bytes:
        if self._early:
            return self._early.pop(0)
        while self._lost is None:
            try:
                async with asyncio.timeout(max(0.0, self._progress.ends_at - time.monotonic())):
                    chunk = await self._content.readany()
            except _Stopped as stopped:
                self._lost = RequestError(stopped.code)
            except TimeoutError:
                try:
                    self._progress.check()
                except RequestError as error:
                    self._lost = error
            except LEFT:
                self._lost = RequestError("upload_interrupted")
            else:
                self._progress.add(len(chunk))
                return chunk
        # aiohttp has no public way to read what is buffered behind an exception
        rest: bytes = self._content._read_nowait(-1)
        if not rest:
            raise self._lost
        return rest

    # --- past the loop ------------------------------------------------------------------------------

    async def open_socket(self) -> bool:
        """Get ready for `read`, if this body is worth it: long, its length declared, on a plain TCP connection."""
        transport, declared = self._request.transport, self.declared_bytes
        if declared is None or declared < LONG_BYTES or declared > self._limit or transport is None or self._early:
            return False
        connection = transport.get_extra_info("socket")
        if connection is None or transport.get_extra_info("ssl_object") is not None or self._content.exception():
            return False
        await self._invite()
        if transport.is_closing():
            return False
        buffered = self._drain()
        if transport.is_reading():
            transport.pause_reading()
        descriptor = socket.socket(fileno=os.dup(connection.fileno()))
        self._wire = Wire(descriptor, buffered, declared - len(buffered), self._progress)
        if self._told_to_leave is not None:
            self._wire.stop(self._told_to_leave)
        return True

    def _drain(self) -> bytes:
        """All that aiohttp has received. Reading what is buffered makes its parser go on with what it held back."""
        came = []
        while chunk := self._content._read_nowait(-1):  # no public way to read without waiting
            came.append(chunk)
        return b"".join(came)

    def read(self, buffer: memoryview) -> int:
        """Fill `buffer` from the socket, waiting a moment in the caller's thread; 0 when nothing comes, or at the end.

        `ended` tells which; what does not come now is waited for by `flows`.
        """
        assert self._wire is not None, "open_socket() came first"
        count = self._wire.read(buffer)
        self.bytes_read += count
        self._tell()
        self.ended = self._wire.is_over
        return count

    async def flows(self, within_s: float) -> None:
        """Wait in the loop, `within_s` at most, until `read` has something to do. RequestError `read_timeout`."""
        assert self._wire is not None, "open_socket() came first"
        await self._wire.flows(within_s)

    def close_socket(self) -> None:
        """After the last `read`: the connection is for the answer only now."""
        assert self._wire is not None, "open_socket() came first"
        self._wire.close()
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        if self.ended and self._wire.passed_by >= CLOSING_BYTES:
            self._content.feed_eof()  # the parser has not seen the end, and must not wait for it
            self._request[SPOILED] = True
            return
        if self.ended:
            for start in range(0, self._wire.passed_by, len(ZEROS)):
                self._request.protocol.data_received(ZEROS[: self._wire.passed_by - start])
                self._drain()
        if not transport.is_reading():
            transport.resume_reading()  # the rest is read and thrown away, so that the client gets to read the answer
