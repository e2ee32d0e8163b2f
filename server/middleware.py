"""The rim of every HTTP request: request id, who calls, errors as RFC 9457 problems. Knows no feature."""

import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from server.auth import PRINCIPAL, Authenticator
from server.errors import AppError, RequestError
from storage import errors as storage_errors

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

METHOD_OVERRIDE = "X-HTTP-Method-Override"
OPEN = frozenset({"/healthz", "/readyz", "/.well-known/jwks.json"})
"""Paths that need no token (contract §8, §11)."""

STORAGE: tuple[tuple[type[storage_errors.StorageError], str], ...] = (
    (storage_errors.NotFound, "not_found"),
    (storage_errors.NoSpace, "insufficient_storage"),
    (storage_errors.Conflict, "invalid_transition"),
    (storage_errors.StorageError, "storage_unavailable"),
)
"""The one table from the storage's errors to the codes of this door; the first that fits."""

AIOHTTP = {404: "not_found", 413: "body_too_large", 400: "bad_request"}


def as_app_error(error: Exception) -> AppError:
    """Any failure as one of ours; unknown ones become `internal_error` without a word of their own."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, web.HTTPMethodNotAllowed):
        return method_not_allowed(error.allowed_methods)
    if isinstance(error, web.HTTPException):
        return RequestError(AIOHTTP.get(error.status, "bad_request"))
    if isinstance(error, UnicodeEncodeError):
        # header fields may hold any byte (RFC 9110 §5.5); what is no UTF-8 can be neither stored nor looked up
        return RequestError("bad_request", "the request holds bytes that are no text")
    for kind, code in STORAGE:
        if isinstance(error, kind):
            return RequestError(code)
    return RequestError("internal_error")


def method_not_allowed(allowed: Iterable[str]) -> RequestError:
    """The refusal of a method; MUST tell which ones are taken (RFC 9110 §15.5.6)."""
    return RequestError("method_not_allowed", allow=", ".join(sorted(allowed)))


def problem_body(error: AppError) -> dict[str, object]:
    """The members of a problem (RFC 9457 §3.1) and ours (contract §4)."""
    return {
        "type": f"/problems/{error.code}", "title": error.title, "status": error.status, "code": error.code,
        "detail": error.detail, "retryable": error.retryable, **error.members,
    }


def problem(
    error: AppError, headers: dict[str, str] | None = None, *, status: int | None = None, **members: object
) -> web.Response:
    """An error as application/problem+json (RFC 9457 §3); `status` and `members` where a protocol has its own."""
    status = status or error.status
    response = web.json_response(
        {**problem_body(error), "status": status, **members}, status=status, content_type="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503 or "retry_after_s" in error.members:
        response.headers["Retry-After"] = str(error.members.get("retry_after_s", 1))
    if "allow" in error.members:
        response.headers["Allow"] = str(error.members["allow"])
    response.headers.update(headers or {})
    return response


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


CACHED = {"Cache-Control": "private, no-cache"}


def cached(request: web.Request, response: web.Response, tag: str) -> web.Response:
    """Answer 304 where the client has this version (RFC 9110 §13.1.2)."""
    response.headers.update(CACHED)
    response.headers["ETag"] = f'"{tag}"'
    if f'"{tag}"' in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers={**CACHED, "ETag": f'"{tag}"'})
    return response


def cached_json(request: web.Request, body: object) -> web.Response:
    """JSON with an ETag of its content: lists and images (contract §4)."""
    text = json.dumps(body)
    tag = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cached(request, web.Response(text=text, content_type="application/json"), tag)
