"""Answers that a client may keep and ask for again: entity tags, and what one is told who has the version already."""

import hashlib
import json

from aiohttp import web

CACHED = {"Cache-Control": "private, no-cache"}


def is_known(request: web.Request, tag: str) -> bool:
    """Whether If-None-Match names this version, weakly or not, or any (RFC 9110 §13.1.2)."""
    known = request.if_none_match
    return known is not None and any(one.value in (tag, "*") for one in known)


def cached(request: web.Request, response: web.Response, tag: str) -> web.Response:
    """`response`, or 304 where the client has this version."""
    response.headers.update(CACHED)
    response.headers["ETag"] = f'"{tag}"'
    if is_known(request, tag):
        return web.Response(status=304, headers={**CACHED, "ETag": f'"{tag}"'})
    return response


def cached_json(request: web.Request, body: object) -> web.Response:
    """JSON with an ETag of its content: lists and images (contract §4)."""
    text = json.dumps(body)
    tag = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cached(request, web.Response(text=text, content_type="application/json"), tag)
