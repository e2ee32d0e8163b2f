"""`/api/v1/audit`: the chain's rows of the caller's site, as the export writes them. Who reads is a row too."""

import json
from functools import partial
from typing import Any

from aiohttp import hdrs, web

from server.access import allows
from server.auditing.described import DESCRIBED, MOST
from server.auditing.export import as_written
from server.auth import Role, principal_of
from server.queries import number
from server.seldom import Seldom
from storage import audit
from storage.records import AuditEntry
from storage.store import Store


class AuditHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(self, store: Store, seldom: Seldom) -> None:
        self._store = store
        self._seldom = seldom

    def routes(self) -> list[web.RouteDef]:
        """The route, with and without the trailing slash."""
        return [web.get(path, self.rows) for path in ("/api/v1/audit", "/api/v1/audit/")]

    @allows(Role.AUDITOR)
    async def rows(self, request: web.Request) -> web.Response:
        """Rows behind `?after=`, in order."""
        who = principal_of(request)
        after = number(request.query.get("after", "0"), "after")
        limit = number(request.query.get("limit", "100"), "limit", 1, MOST)
        # before they are read: once per principal and minute, so who reads up to the end comes to one
        await self._seldom.note(AuditEntry(who.site, "audit.read", who.name, "audit", request.remote))
        found, next_after, more = await self._store.read(lambda tx: audit.of_site(tx, who.site, after, limit))
        body: dict[str, Any] = {
            "results": [as_written(row) for row in found], "next_after": next_after, "more": more}
        return web.json_response(
            body, headers={hdrs.CACHE_CONTROL: "no-store"}, dumps=partial(json.dumps, ensure_ascii=False))
