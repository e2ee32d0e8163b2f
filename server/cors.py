"""CORS for browsers (Fetch standard): which origins may call, what they may send and read. Knows no feature.

Fact: a browser sends some requests of any page anywhere without asking first; only their answers are kept from the
page. Where a token is needed that is harmless. Where none is, the page's origin and the name that it called must be
looked at: a name of the page's own may have been pointed at this machine (DNS rebinding).
"""

import re
from urllib.parse import urlsplit

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from server.errors import RequestError
from server.middleware import Handler
from server.settings import is_loopback

log = structlog.get_logger()
MOST_TOLD = 100
ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,200}")
PATHS = ("/files", "/api/", "/dicom-web")
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
ALLOWED = ", ".join((
    "Authorization", "Content-Type", "Content-Disposition", "Content-Digest", "Content-Encoding", "Idempotency-Key",
    "If-None-Match", "Last-Event-ID", "Range", "Repr-Digest", "Tus-Resumable", "Upload-Checksum", "Upload-Complete",
    "Upload-Concat", "Upload-Defer-Length", "Upload-Draft-Interop-Version", "Upload-Length", "Upload-Metadata",
    "Upload-Offset", "X-HTTP-Method-Override", "X-Request-ID", "X-Requested-With"))
"""What a browser may send: the contract's fields and the protocols' own (contract §5)."""
EXPOSED = ", ".join((
    "Location", "Content-Disposition", "ETag", "Packhorse-Status", "Retry-After", "Tus-Checksum-Algorithm",
    "Tus-Extension", "Tus-Max-Size", "Tus-Resumable", "Tus-Version", "Upload-Complete", "Upload-Concat",
    "Upload-Defer-Length", "Upload-Expires", "Upload-Length", "Upload-Limit", "Upload-Metadata", "Upload-Offset",
    "X-Request-Id"))
"""What a page may read of an answer."""


class CrossOrigin:
    """Lets pages of `origins` call; `*` lets all of them, whose requests carry no cookies."""

    def __init__(self, origins: list[str]) -> None:
        self._origins = frozenset(origins)
        self._refused: set[str] = set()

    def _allowed(self, request: web.BaseRequest) -> str | None:
        """The origin that may read the answer to `request`, None when there is none."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or not request.path.startswith(PATHS):
            return None
        if origin in self._origins or "*" in self._origins:
            return origin
        if request.headers.get("Sec-Fetch-Site") == "same-origin":  # a page of our own, under whatever name
            return None
        if origin not in self._refused and ORIGIN.fullmatch(origin) and len(self._refused) < MOST_TOLD:
            self._refused.add(origin)
            log.warning("cors.refused", origin=origin, add=f'[http] cors_origins = ["{origin}"]')
        return None

    @web.middleware
    async def preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer what a browser asks before it sends the request itself (Fetch §3.3.3)."""
        asked = request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asked or self._allowed(request) is None:
            return await handler(request)
        return web.Response(status=204, headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS, hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED,
            hdrs.ACCESS_CONTROL_MAX_AGE: "86400"})

    async def sign(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Mark every answer, failures too, as readable by the page that asked (Fetch §3.3.2)."""
        origin = self._allowed(request)
        if origin is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
        if self._origins:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)


def of_this_machine_only(public_url: str, origins: list[str]) -> Middleware:
    """A middleware for `auth.mode = "none"`: 403 to other sites' pages, but those of `origins`, and to foreign names.

    Names of our own are loopback's, and that of `public_url`.
    """
    public = urlsplit(public_url).netloc.lower()
    allowed = frozenset(origins)

    @web.middleware
    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        host, origin = request.headers.get(hdrs.HOST, "").lower(), request.headers.get(hdrs.ORIGIN)
        if host and host != public and not is_loopback(_name_of(host)):
            raise RequestError("foreign_page", "without tokens only loopback and http.public_url may be called")
        is_listed = origin is None or origin in allowed or "*" in allowed
        if not is_listed and str(origin).lower().partition("://")[2] not in {host, public} - {""}:
            raise RequestError("foreign_page", "without tokens other sites' pages may not call: see http.cors_origins")
        return await handler(request)

    return look


def _name_of(host: str) -> str:
    """A Host without its port (RFC 9110 §7.2)."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
