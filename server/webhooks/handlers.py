"""`/api/v1/webhooks`: what was told to whom, and telling it again."""

from typing import Any

from aiohttp import web

from server.access import allows
from server.auth import Role, principal_of
from server.bodies import json_body, parse
from server.caching import cached_json
from server.errors import RequestError
from server.queries import limit_of
from server.webhooks.described import DESCRIBED, Resend
from server.webhooks.service import Webhooks
from storage.records import WebhookDeliveryRecord


class WebhookHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    def routes(self) -> list[web.RouteDef]:
        """The routes; the last slash is optional."""
        root = "/api/v1/webhooks/deliveries"
        return [web.get(root, self.listing), web.get(f"{root}/", self.listing),
                web.post(root + "/{delivery_id}/resend", self.resend),
                web.post(root + "/{delivery_id}/resend/", self.resend)]

    @allows(Role.OPERATOR)
    async def listing(self, request: web.Request) -> web.StreamResponse:
        """Deliveries, the newest first."""
        found = await self._webhooks.listing(
            principal_of(request), request.query.get("status"), request.query.get("webhook"), limit_of(request))
        return cached_json(request, {"results": [_json(one) for one in found]})

    @allows(Role.OPERATOR)
    async def resend(self, request: web.Request) -> web.Response:
        """Send one again."""
        body = parse(Resend, await json_body(request))
        text = request.match_info["delivery_id"]
        if not text.isdecimal() or len(text) > 15:
            raise RequestError("not_found", "there is no such delivery")
        found = await self._webhooks.resend(int(text), body.reason, principal_of(request), request.remote)
        return web.json_response(_json(found), headers={"Cache-Control": "no-store"})


def _json(delivery: WebhookDeliveryRecord) -> dict[str, Any]:
    return {
        "id": delivery.delivery_id, "webhook": delivery.webhook, "event_id": delivery.event_id, "event": delivery.event,
        "status": delivery.state, "attempts": delivery.attempts, "last_status": delivery.last_status,
        "last_error": delivery.last_error, "created_at": delivery.created_at, "updated_at": delivery.updated_at,
        "delivered_at": delivery.delivered_at}
