"""`/api/v1/events`: what happens, as a stream of server-sent events (WHATWG HTML §9.2) or as plain JSON for pollers."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from server.access import ANYBODY, allows
from server.auth import Principal, principal_of
from server.errors import RequestError
from server.event_rows import Event
from server.events.described import DESCRIBED
from server.events.feed import Feed
from server.events.listeners import Wanted, as_heard, may_hear
from server.identifiers import parse_text_id
from server.queries import limit_of, number

log = structlog.get_logger()
HEARTBEAT_S = 15.0
RECHECK_S = 1.0
"""How long a stream may outlive its token."""
SLOW_S = 10.0
"""How long a reader may leave us waiting to be rid of what it asked for."""
MOST_PAGES = 20
"""Of the chain, read for one poll; `more` says that there is more."""
FILTERS = ("session_id", "radiology_order_id", "study_instance_uid")
"""A signed URL is good for these as they were signed: without them the stream would tell more."""
FIRST = b"retry: 2000\n\n"
STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
Recheck = Callable[[web.Request], Awaitable[bool]]
"""Whether who began to listen may still do so."""


class EventHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(self, feed: Feed, base_url: Callable[[web.Request], str], recheck: Recheck) -> None:
        self._feed = feed
        self._base_url = base_url
        self._recheck = recheck

    def routes(self) -> list[web.RouteDef]:
        """The route, with and without the trailing slash."""
        return [web.get(path, self.events) for path in ("/api/v1/events", "/api/v1/events/")]

    @allows(*ANYBODY, heeds_scope=True, by_url=True, covers=FILTERS)
    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happens from a place on, or from now on: a stream; JSON where that is accepted, or `after` is given."""
        who, wanted = principal_of(request), _wanted(request)
        if not _is_stream(request):
            return await self._listing(request, who, wanted)
        if request.method == "HEAD":  # nothing would ever follow
            return web.Response(headers=STREAM)
        async with self._feed.listening(who):
            return await self._stream(request, who, wanted)

    async def _listing(self, request: web.Request, who: Principal, wanted: Wanted) -> web.Response:
        limit = limit_of(request)
        newest = self._feed.newest()
        place, found = self._place(request, newest), list[Event]()
        for _ in range(MOST_PAGES):
            events, end = await self._feed.page(place)
            found += _heard(events, who, wanted)
            place = end
            if len(found) >= limit or place >= newest:
                break
        if len(found) > limit:
            found, place = found[:limit], found[limit - 1].seq
        base_url = self._base_url(request)
        return web.json_response({
            "results": [event.body(base_url) for event in found], "next_after": place, "more": place < newest},
            headers={"Cache-Control": "no-store"})

    async def _stream(self, request: web.Request, who: Principal, wanted: Wanted) -> web.StreamResponse:
        response = web.StreamResponse(headers={
            **STREAM, "X-Request-Id": str(structlog.contextvars.get_contextvars().get("request_id", ""))})
        place, base_url = self._place(request, self._feed.newest()), self._base_url(request)
        await response.prepare(request)
        try:
            await _write(response, FIRST)
            written = time.monotonic()
            while not self._feed.stopping and await self._recheck(request):
                events, place = await self._feed.after(place)
                mine = [_block(event, base_url) for event in _heard(events, who, wanted)]
                if mine or time.monotonic() - written >= HEARTBEAT_S:
                    # a block without data is no event, and yet its id is where the client goes on
                    await _write(response, b"".join(mine) or f": all is well\nid: {place}\n\n".encode())
                    written = time.monotonic()
                await self._feed.wait(place, RECHECK_S)
            await response.write_eof()
        except TimeoutError:
            log.info("events.slow_reader", principal=who.name)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # it left, which is normal; it comes again with the last id that it saw
        return response

    def _place(self, request: web.Request, newest: int) -> int:
        """The row after which to begin. Beyond the last one, which only a power cut can do, is from now on."""
        if (last := request.headers.get("Last-Event-ID")) is not None and _is_stream(request):
            return min(number(last, "Last-Event-ID"), newest)  # a browser that comes again sends its first URL too
        if (after := request.query.get("after")) is not None:
            return min(number(after, "after"), newest)
        return newest


def _is_stream(request: web.Request) -> bool:
    accepted = request.headers.get("Accept", "")
    return "text/event-stream" in accepted or ("application/json" not in accepted and "after" not in request.query)


def _heard(events: list[Event], who: Principal, wanted: Wanted) -> list[Event]:
    return [as_heard(event, who) for event in events if wanted.has(event) and may_hear(event, who)]


async def _write(response: web.StreamResponse, text: bytes) -> None:
    async with asyncio.timeout(SLOW_S):
        await response.write(text)


def _block(event: Event, base_url: str) -> bytes:
    data = json.dumps(event.body(base_url), separators=(",", ":"))
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _wanted(request: web.Request) -> Wanted:
    query = request.query
    session_id, order_id, uid = (query.get(name) for name in FILTERS)
    if uid is not None and not re.fullmatch(r"[0-9.]{1,64}", uid):
        raise RequestError("invalid_field", "study_instance_uid must be a UID", field="study_instance_uid")
    return Wanted(
        parse_text_id(session_id, "session_id").text if session_id is not None else None,
        parse_text_id(order_id, "radiology_order_id").text if order_id is not None else None, uid)
