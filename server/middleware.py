"""The rim of every HTTP request: request id, who calls, failures as problems. Knows no feature."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from server.auth import PRINCIPAL, Authenticator
from server.errors import AppError, RequestError
from server.problems import as_app_error, problem

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

METHOD_OVERRIDE = "X-HTTP-Method-Override"
OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/.well-known/jwks.json"})
"""Paths that need no token here (contract §8, §11); who may read `/metrics` is looked at there."""


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


def authenticated(authenticator: Authenticator) -> Middleware:
    """A middleware that lets in who has a token, and puts the Principal on the request."""

    @web.middleware
    async def who_calls(request: web.Request, handler: Handler) -> web.StreamResponse:
        # OPTIONS is asked before a token is at hand: CORS preflights, tus discovery (contract §5)
        if request.path in OPEN or request.path.startswith("/problems/") or verb_of(request) == "OPTIONS":
            return await handler(request)
        try:
            bearer = await authenticator.identify(request.headers.get("Authorization"))
            if bearer.expired and not tolerates_expiry(request):
                raise RequestError("unauthorized", "the token has expired")
        except RequestError as refusal:
            await authenticator.note_refusal(request.remote, refusal.detail)
            raise
        request[PRINCIPAL] = replace(bearer.principal, expired=True) if bearer.expired else bearer.principal
        return await handler(request)

    return who_calls


def tolerates_expiry(request: web.Request) -> bool:
    """HEAD of an upload by its owner is answered with an expired but genuine token (contract §5)."""
    return verb_of(request) == "HEAD" and request.path.startswith("/files/")
