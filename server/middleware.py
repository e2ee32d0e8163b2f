"""The rim of every HTTP request: request id, failures as problems, route and verb. Knows no feature."""

import uuid
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from server.errors import AppError
from server.problems import as_app_error, problem

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

METHOD_OVERRIDE = "X-HTTP-Method-Override"


@web.middleware
async def request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every request an id, every response an `X-Request-Id`, every failure a problem body."""
    name = str(uuid.uuid4())
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=name)
    try:
        response = await handler(request)
    except Exception as error:
        if isinstance(error, web.HTTPException) and error.status < 400:
            raise
        known = as_app_error(error)
        if known.status >= 500 and not isinstance(error, AppError):
            log.error("request.failed", method=request.method, route=route_of(request), exc_info=error)
        response = problem(known)
    if not response.prepared:
        response.headers["X-Request-Id"] = name
    return response


def route_of(request: web.Request) -> str:
    """The route's pattern, so that logs and keys name no ids."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"


def verb_of(request: web.Request) -> str:
    """The method that counts: on `/files` another may stand in a field, for clients that cannot send it.

    MUST be read as the request's method, its own ignored (tus, X-HTTP-Method-Override): also by whoever lets it in.
    """
    if request.path.startswith("/files"):
        return request.headers.get(METHOD_OVERRIDE, request.method).upper()
    return request.method
