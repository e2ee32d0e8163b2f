"""Watches connections while they bring no request: a header that does not come in time ends them. Knows no feature.

Fact: aiohttp has no limit on how long a request's header takes, so a client that sends half of one stays for good;
nor does it tell whether half of one waits behind the request that is handled.
"""

import asyncio
from collections.abc import Callable

from aiohttp import hdrs, web

from server.errors import RequestError
from server.middleware import Handler

MOST_HEADER_FIELDS = 100
MOST_WAITING_BYTES = 2 * 1024 * 1024
"""Headers themselves are bounded line by line; this bounds what may come before a handler takes a request up."""
HEADER_END = b"\r\n\r\n"


class _Counted:
    """Counts a connection's bytes since its last quiet moment, to tell whether any came beside one request's own."""

    def __init__(self) -> None:
        self._bytes = 0
        self._header_bytes: int | None = None
        self._last = b""

    def add(self, data: bytes) -> None:
        """These came."""
        if self._header_bytes is None and (at := (self._last + data).find(HEADER_END)) >= 0:
            self._header_bytes = self._bytes - len(self._last) + at + len(HEADER_END)
        self._bytes += len(data)
        self._last = (self._last + data[-len(HEADER_END):])[-len(HEADER_END):]

    def were_for(self, request: web.Request) -> bool:
        """Whether all that came was `request`. False also where that cannot be told: it was pipelined.

        Less than the request came here where its body was read straight from the socket, up to its end and no further.
        """
        if request.headers.get(hdrs.TRANSFER_ENCODING):
            return self._last == HEADER_END
        return self._header_bytes is not None and self._bytes <= self._header_bytes + (request.content_length or 0)


class _Watched(asyncio.Protocol):
    """One connection: hands everything on to aiohttp's protocol, and holds the clock while a header is to come.

    It is quiet when no request is handled and nothing of a next one has come; being quiet is aiohttp's to limit. While
    the rest of a refused body is thrown away no header can come, so neither clock nor count goes on: that too is
    aiohttp's to limit.
    """

    def __init__(
        self, inner: web.RequestHandler, timeout_s: float, on_lost: Callable[[], object]
    ) -> None:
        self._inner = inner
        self._on_lost = on_lost
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handled = 0
        self._waiting_bytes = 0
        self._drained: web.Request | None = None
        self._counted: _Counted | None = _Counted()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclasses
        self._inner.connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._drained = None
        self._on_lost()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._counted is not None:
            self._counted.add(data)
        if self._handled == 0 and self._drained is None:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > MOST_WAITING_BYTES:
                self._end()
                return
            if self._timer is None:
                self._start()
        self._inner.data_received(data)
        if self._drained is not None and self._drained.content.is_eof():
            self._settle(self._drained)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def began(self) -> None:
        """A request is handled now: its body has a clock of its own."""
        self._handled += 1
        self._waiting_bytes = 0
        self._drained = None
        self._stop()

    def ended(self, request: web.Request) -> None:
        """The request was answered; of its body the rest may still come."""
        self._handled -= 1
        if request.content.is_eof():
            self._settle(request)
        else:
            self._drained = request

    def _settle(self, request: web.Request) -> None:
        """All of the request has come: the clock runs if more than that has, for it is a next one's header."""
        self._drained = None
        if self._counted is not None and self._counted.were_for(request):
            self._counted = _Counted()
            return
        self._counted = None  # where this client's requests begin cannot be told from here on
        if self._timer is None:
            self._start()

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._stop()
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._start()  # it still reads the last answer
            return
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """Every connection of one process, and the middleware that tells when a request is handled."""

    def __init__(self, header_timeout_s: float) -> None:
        self._header_timeout_s = header_timeout_s
        self._watched: dict[object, _Watched] = {}

    def protocol(self, server: web.Server) -> asyncio.Protocol:
        """A protocol for a new connection."""
        inner = server()
        self._watched[inner] = _Watched(inner, self._header_timeout_s, lambda: self._watched.pop(inner, None))
        return self._watched[inner]

    @web.middleware
    async def watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Stop the clock while a request is handled; refuse headers without end."""
        watched = self._watched.get(request.protocol)
        if watched is not None:
            watched.began()
        try:
            if len(request.headers) > MOST_HEADER_FIELDS:
                raise RequestError("headers_too_large", f"at most {MOST_HEADER_FIELDS} fields are taken")
            return await handler(request)
        finally:
            if watched is not None:
                watched.ended(request)
