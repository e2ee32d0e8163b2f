"""Refuses query parameters that a call does not know: a filter with a typo would answer as if there were none.

What a call knows is what its table says (describing.py). Only calls of the API that answer JSON are held to it: what
pages and viewers add to a picture's or a file's URL, as against caches, does no harm there.
"""

import re

from aiohttp import web

from server.access import access_of
from server.describing import JSON, described_by
from server.errors import RequestError
from server.identity.signatures import PARAMETER
from server.middleware import Handler, route_of

READS = ("GET", "HEAD")
WORD = re.compile(r"[a-z_]{1,40}")


@web.middleware
async def known_parameters(request: web.Request, handler: Handler) -> web.StreamResponse:
    """RequestError `invalid_field` naming the first parameter that is not known."""
    if request.query and request.method in READS and request.path.startswith("/api/v1"):
        known = _known(request)
        unknown = next((name for name in request.query if known is not None and name not in known), None)
        if unknown is not None:
            told = unknown if WORD.fullmatch(unknown) else "query"  # whatever else was typed there is not repeated
            raise RequestError("invalid_field", f"{told}: this call does not know it", field=told)
    return await handler(request)


def _known(request: web.Request) -> frozenset[str] | None:
    """The names that the call takes, None where it may be asked with any."""
    described = described_by("GET", route_of(request).rstrip("/"), request.match_info.handler)
    if described is None or not any(JSON in answer.content for answer in described.answers.values() if answer.shape):
        return None
    names = {one.name for one in described.parameters if one.place == "query"}
    return frozenset(names | {PARAMETER} if access_of(request.match_info, "GET").by_url else names)
