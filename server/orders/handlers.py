"""`/api/v1/orders/{radiology_order_id}/`: parse, call the use case, answer."""

from aiohttp import web

from server.access import allows
from server.auth import Role, principal_of
from server.bodies import json_body
from server.identifiers import parse_text_id
from server.orders.described import DESCRIBED
from server.orders.service import OrderService

PATH = "/api/v1/orders/{radiology_order_id}"


class OrderHandlers:
    """One method per verb."""

    described = DESCRIBED

    def __init__(self, service: OrderService) -> None:
        self._service = service

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash."""
        return [route for path in (PATH, f"{PATH}/") for route in (web.put(path, self.put), web.get(path, self.get))]

    @allows(Role.OPERATOR)
    async def put(self, request: web.Request) -> web.Response:
        """Announce or replace."""
        value = await json_body(request)
        order_id = parse_text_id(request.match_info["radiology_order_id"], "radiology_order_id")
        new, body = await self._service.put(order_id, value, principal_of(request))
        return web.json_response(body, status=201 if new else 200, headers={"Cache-Control": "private, no-cache"})

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def get(self, request: web.Request) -> web.Response:
        """What is known of the order."""
        order_id = parse_text_id(request.match_info["radiology_order_id"], "radiology_order_id")
        body = await self._service.get(order_id, principal_of(request))
        return web.json_response(body, headers={"Cache-Control": "private, no-cache"})
