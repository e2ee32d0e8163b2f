"""The gate before every route: takes what a request proves, and lets in whom the route's declaration allows.

What counts is, in this order: an Authorization header; a URL's signature, where the route takes one; a cookie.
"""

from dataclasses import replace
from urllib.parse import urlencode

import structlog
from aiohttp import hdrs, web

from server.access import Access, access_of
from server.auth import FORBIDDEN, PRINCIPAL, Principal, note_forbidden
from server.errors import RequestError
from server.identity import cookies
from server.identity.authenticator import Authenticator, Bearer
from server.identity.signatures import PARAMETER
from server.middleware import Handler, route_of, verb_of
from server.problems import problem
from server.seldom import Seldom
from storage.errors import StorageError
from storage.records import AuditEntry

log = structlog.get_logger()
NOTED = frozenset({"unauthorized", "csrf_refused", "too_many_attempts"})


class Gate:
    """A middleware that puts the Principal on the request."""

    def __init__(self, authenticator: Authenticator, base_url: cookies.BaseUrl, seldom: Seldom) -> None:
        self._authenticator = authenticator
        self._base_url = base_url
        self._seldom = seldom

    @web.middleware
    async def pass_through(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may; RequestError `unauthorized`, `forbidden`, `csrf_refused`, `too_many_attempts`."""
        verb = verb_of(request)
        access = access_of(request.match_info, verb)
        # OPTIONS is asked before a token is at hand: CORS preflights, tus discovery (contract §5)
        if access.open or verb == "OPTIONS":
            return await handler(request)
        try:
            who = await self.identify(request, access)
        except RequestError as refusal:
            if refusal.code == "too_many_attempts" and request.path.startswith("/files"):
                return problem(refusal, status=503)  # tus clients give up on other 4xx (contract §5)
            raise
        try:
            check(access, who)
            request[PRINCIPAL] = who
            response = await handler(request)
        except RequestError as refusal:
            note_forbidden(request, refusal)
            raise
        finally:
            if FORBIDDEN in request:
                await self._note(request, verb, who)
        return response

    async def identify(self, request: web.Request, access: Access) -> Principal:
        """Who calls, whatever he may; a refused proof is noted. RequestError as `pass_through`, but `forbidden`."""
        try:
            bearer = await self._proof(request, verb_of(request), access)
            if bearer.expired and not tolerates_expiry(request):
                raise RequestError("unauthorized", "the token has expired")
        except RequestError as refusal:
            if refusal.code in NOTED:
                await self._authenticator.note_refusal(request.remote, refusal.detail)
            raise
        return replace(bearer.principal, expired=True) if bearer.expired else bearer.principal

    async def _note(self, request: web.Request, verb: str, who: Principal) -> None:
        """Audit a 403 (contract §9): one row per principal, route, code and minute; ids and free text are not in it."""
        route, code = route_of(request), request[FORBIDDEN]
        entry = AuditEntry(who.site, "access.refused", who.name, None, request.remote, code,
                           {"method": verb, "route": route, "role": who.role})
        try:
            await self._seldom.note(entry, verb, route, code)
        except StorageError as error:
            log.warning("access.refusal_not_noted", route=route, code=error.code)  # it is refused all the same

    async def still_lets_in(self, request: web.Request) -> bool:
        """Whether who was let in still would be: for an answer that goes on for long."""
        access = access_of(request.match_info, verb_of(request))
        try:
            bearer = await self._proof(request, verb_of(request), access, goes_on=True)
            check(access, bearer.principal)
        except RequestError:
            return False
        return not bearer.expired

    async def _proof(self, request: web.Request, verb: str, access: Access, *, goes_on: bool = False) -> Bearer:
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        if authorization is None and not self._authenticator.lets_everybody_in:
            if access.by_url and verb in cookies.SAFE and PARAMETER in request.query:
                query = [(name, value) for name in access.covers for value in request.query.getall(name, [])]
                return self._authenticator.of_url(
                    request.path, urlencode(query), request.query[PARAMETER], request.remote, goes_on=goes_on)
            base_url = self._base_url(request)
            cookie = cookies.cookie_of(request, base_url) if hdrs.COOKIE in request.headers else None
            if cookie is not None:
                cookies.check_own_page(request, base_url)
                if not {verb, request.method} <= cookies.SAFE:
                    cookies.check_intent(request, base_url, cookie)
                return self._authenticator.of_browser(cookie, request.remote)
        return await self._authenticator.identify(authorization, request.remote)


def check(access: Access, who: Principal) -> None:
    """RequestError `forbidden` unless the declaration allows the caller."""
    if not who.may(*access.roles):
        who.require(*sorted(access.roles))
    if who.is_narrowed and not access.heeds_scope:
        raise RequestError("forbidden", "a token of one visit or one order may not call this")


def tolerates_expiry(request: web.Request) -> bool:
    """HEAD of an upload by its owner is answered with an expired but genuine token (contract §5)."""
    return verb_of(request) == "HEAD" and request.path.startswith("/files/")
