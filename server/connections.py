"""Watches connections while they bring no request: a header that does not come in time ends them. Knows no feature.

Fact: aiohttp has no limit on how long a request's header takes, so a client that sends half of one stays for good.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from server.errors import RequestError
from server.middleware import Handler

MOST_HEADER_FIELDS = 100
MOST_WAITING_BYTES = 2 * 1024 * 1024
"""Headers themselves are bounded line by line; this bounds what may come before a handler takes a request up."""


class _Watched(asyncio.Protocol):
    """One connection: hands everything on to aiohttp's protocol, and holds the clock while no request is handled."""

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclasses
        self._inner.connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._on_lost()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._handled == 0:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > MOST_WAITING_BYTES:
                self._end()
                return
            if self._timer is None:
                self._start()
        self._inner.data_received(data)

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
        self._stop()

    def ended(self) -> None:
        """The request was answered; an idle connection is aiohttp's to close."""
        self._handled -= 1

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._stop()
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

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._watched)

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
                watched.ended()
