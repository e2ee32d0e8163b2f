"""What operators do to images and to what is held: parse, call the use case, answer. Every call takes a reason."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from server.access import allows
from server.auth import Role, principal_of
from server.bodies import json_body, parse
from server.caching import cached_json
from server.errors import RequestError
from server.idempotency import call_of
from server.pacs.decisions import DESCRIBED, Decide, Reject
from server.pacs.quarantine import Quarantine
from server.pacs.rejection import Rejection
from server.queries import limit_of, number
from storage.records import QuarantineState

MOST = 500
NO_STORE = {"Cache-Control": "no-store"}


class OperatorHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(self, rejection: Rejection, quarantine: Quarantine) -> None:
        self._rejection = rejection
        self._quarantine = quarantine

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash."""
        calls: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("POST", "/api/v1/images/{image_id}/reject", self.reject_image),
            ("POST", "/api/v1/images/{image_id}/restore", self.restore_image),
            ("POST", "/api/v1/studies/{study_instance_uid}/reject", self.reject_study),
            ("POST", "/api/v1/studies/{study_instance_uid}/restore", self.restore_study),
            ("GET", "/api/v1/quarantine", self.quarantine),
            ("POST", "/api/v1/quarantine/{quarantine_id}/accept", self.accept),
            ("POST", "/api/v1/quarantine/{quarantine_id}/reject", self.reject_held),
        ]
        return [web.route(method, path, handler)
                for method, name, handler in calls for path in (name, f"{name}/")]

    @allows(Role.OPERATOR, heeds_scope=True)
    async def reject_image(self, request: web.Request) -> web.Response:
        """Hide an image (IHE IOCM), with a reason and a code."""
        body = parse(Reject, await json_body(request))
        return web.json_response(await self._rejection.image(
            _id(request, "image_id"), body.code, body.reason, call_of(request)), headers=NO_STORE)

    @allows(Role.OPERATOR, heeds_scope=True)
    async def restore_image(self, request: web.Request) -> web.Response:
        """Show a rejected image again, with a reason."""
        body = parse(Decide, await json_body(request))
        return web.json_response(await self._rejection.image(
            _id(request, "image_id"), None, body.reason, call_of(request)), headers=NO_STORE)

    @allows(Role.OPERATOR, heeds_scope=True)
    async def reject_study(self, request: web.Request) -> web.Response:
        """Hide a study (IHE IOCM), with a reason and a code."""
        body = parse(Reject, await json_body(request))
        return web.json_response(await self._rejection.study(
            request.match_info["study_instance_uid"], body.code, body.reason, call_of(request)), headers=NO_STORE)

    @allows(Role.OPERATOR, heeds_scope=True)
    async def restore_study(self, request: web.Request) -> web.Response:
        """Show a rejected study again, with a reason."""
        body = parse(Decide, await json_body(request))
        return web.json_response(await self._rejection.study(
            request.match_info["study_instance_uid"], None, body.reason, call_of(request)), headers=NO_STORE)

    @allows(Role.OPERATOR)
    async def quarantine(self, request: web.Request) -> web.Response:
        """What is held, by its state."""
        query = request.query
        state = query.get("state", QuarantineState.HELD)
        if state != "all" and state not in list(QuarantineState):
            raise RequestError("invalid_field", f"state: {', '.join(QuarantineState)} or all", field="state")
        limit, cursor = limit_of(request), number(query.get("cursor", "0"), "cursor")
        rows = await self._quarantine.listing(
            None if state == "all" else QuarantineState(state), limit + 1, cursor, principal_of(request))
        page = rows[:limit]
        return cached_json(request, {
            "results": page, "next_cursor": str(page[-1]["id"]) if len(rows) > len(page) else None})

    @allows(Role.OPERATOR)
    async def accept(self, request: web.Request) -> web.Response:
        """Make what is held an image, with a reason."""
        body = parse(Decide, await json_body(request))
        return web.json_response(await self._quarantine.accept(
            _id(request, "quarantine_id"), body.reason, call_of(request)), headers=NO_STORE)

    @allows(Role.OPERATOR)
    async def reject_held(self, request: web.Request) -> web.Response:
        """Leave what is held aside, with a reason."""
        body = parse(Decide, await json_body(request))
        return web.json_response(await self._quarantine.reject(
            _id(request, "quarantine_id"), body.reason, call_of(request)), headers=NO_STORE)


def _id(request: web.Request, name: str) -> int:
    return number(request.match_info[name], name)
