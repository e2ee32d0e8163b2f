"""`/api/v1/tokens/`: parse, call the use case, answer. A secret is told once, in the answer that made it."""

import re
from typing import Any

from aiohttp import hdrs, web

from server.access import allows
from server.auth import Role, principal_of
from server.bodies import json_body, parse
from server.caching import cached_json
from server.entrance.codes import login_url
from server.entrance.described import DESCRIBED
from server.entrance.service import Asked, Mint, Revoke, TokenService
from server.errors import RequestError
from server.identifiers import present
from server.identity.cookies import BaseUrl
from server.queries import limit_of
from storage.records import TokenRecord

ROOT = "/api/v1/tokens"
TOKEN_ID = re.compile(r"[0-9a-f]{1,32}")


class TokenHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(self, service: TokenService, base_url: BaseUrl) -> None:
        self._service = service
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash."""
        one = ROOT + "/{token_id}"
        calls = [("POST", ROOT, self.mint), ("GET", ROOT, self.listing), ("GET", one, self.show),
                 ("DELETE", one, self.revoke), ("POST", f"{one}/code", self.code)]
        return [web.route(verb, path, handler) for verb, name, handler in calls for path in (name, f"{name}/")]

    @allows(Role.OPERATOR, heeds_scope=True)
    async def mint(self, request: web.Request) -> web.Response:
        """A narrower, short-lived token, for one browser."""
        body = parse(Mint, await json_body(request))
        is_new, text, record = await self._service.mint(body, _asked(request))
        return _answer({**self._json(request, record), "token": text, "replayed": not is_new}, 201 if is_new else 200)

    @allows(Role.OPERATOR, heeds_scope=True)
    async def listing(self, request: web.Request) -> web.Response:
        """Those that are good now; `include_ended=true` for all."""
        limit = limit_of(request)
        found = await self._service.listing(
            principal_of(request), ended=request.query.get("include_ended") == "true", limit=limit + 1,
            after=request.query.get("cursor"))
        page = found[:limit]
        return cached_json(request, {"results": [self._json(request, one) for one in page],
                                     "next_cursor": page[-1].token_id if len(found) > len(page) else None})

    @allows(Role.OPERATOR, heeds_scope=True)
    async def show(self, request: web.Request) -> web.Response:
        """One of them."""
        return _answer(self._json(request, await self._service.show(_token_id(request), principal_of(request))))

    @allows(Role.OPERATOR, heeds_scope=True)
    async def revoke(self, request: web.Request) -> web.Response:
        """Refuse it from now on, and what it minted."""
        body = parse(Revoke, await json_body(request))
        revoked = await self._service.revoke(_token_id(request), body.reason, _asked(request))
        return _answer(self._json(request, revoked))

    @allows(Role.OPERATOR, heeds_scope=True)
    async def code(self, request: web.Request) -> web.Response:
        """A one-time code that logs a browser in with it."""
        code, expires_at = await self._service.code(_token_id(request), _asked(request))
        return _answer({"code": code, "expires_at": expires_at, "url": login_url(self._base_url(request), code)}, 201)

    def _json(self, request: web.Request, one: TokenRecord) -> dict[str, Any]:
        root, numeric = f"{self._base_url(request)}{ROOT}/{one.token_id}/", one.numeric_ids.split(",")
        scopes = {name: present(getattr(one, name), name in numeric)
                  for name in ("visit_id", "radiology_order_id", "created_by_id")}
        return {
            "token_id": one.token_id, "role": one.role, "site": one.site, **scopes, "label": one.label,
            "maker": one.maker, "created_at": one.created_at, "expires_at": one.expires_at,
            "revoked_at": one.revoked_at, "last_used_at": one.last_used_at,
            "links": {"self": root, "code": f"{root}code/"}}


def _asked(request: web.Request) -> Asked:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 1 <= len(key) <= 128:
        raise RequestError("invalid_header", "Idempotency-Key must have 1 to 128 characters")
    return Asked(principal_of(request), request.remote, key)


def _token_id(request: web.Request) -> str:
    token_id = request.match_info["token_id"]
    if not TOKEN_ID.fullmatch(token_id):
        raise RequestError("not_found", "there is no such token")
    return token_id


def _answer(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers={hdrs.CACHE_CONTROL: "no-store"})
