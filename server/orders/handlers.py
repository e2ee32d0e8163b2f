"""`/api/v1/orders`, the inbox, and links: parse, call the use case, answer."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from sqlalchemy import Connection

from server.access import allows
from server.auth import Role, principal_of
from server.bodies import json_body, parse
from server.caching import cached_json
from server.idempotency import call_of
from server.identifiers import OutsideId, parse_id, parse_text_id
from server.identity.signatures import Signed
from server.orders.described import DESCRIBED
from server.orders.inbox import Inbox
from server.orders.schema import Link, OrderBody, order_json
from server.orders.service import OrderService, OrderView
from server.queries import limit_of, number
from storage.records import ImageRecord, SessionRecord
from storage.store import Store

DescribeImage = Callable[[Connection, ImageRecord, str, Callable[[str], str]], dict[str, Any]]


class OrderHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(
        self, store: Store, service: OrderService, inbox: Inbox, describe_image: DescribeImage,
        base_url: Callable[[web.Request], str], signed: Signed,
    ) -> None:
        self._store = store
        self._service = service
        self._inbox = inbox
        self._describe_image = describe_image
        self._base_url = base_url
        self._signed = signed

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash."""
        calls: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("GET", "/api/v1/orders", self.listing),
            ("PUT", "/api/v1/orders/{radiology_order_id}", self.put),
            ("GET", "/api/v1/orders/{radiology_order_id}", self.get),
            ("GET", "/api/v1/orders/{radiology_order_id}/status", self.status),
            ("GET", "/api/v1/orders/{radiology_order_id}/images", self.images),
            ("GET", "/api/v1/inbox", self.inbox),
            ("POST", "/api/v1/images/{image_id}/link", self.link),
            ("POST", "/api/v1/images/{image_id}/unlink", self.unlink),
        ]
        return [web.route(method, path, handler)
                for method, name, handler in calls for path in (name, f"{name}/")]

    @allows(Role.OPERATOR)
    async def put(self, request: web.Request) -> web.Response:
        """Announce or replace."""
        body, order_id = parse(OrderBody, await json_body(request)), _order_id(request)
        new, view = await self._service.put(order_id, body, principal_of(request), request.remote)
        return web.json_response(
            self._json(request, view), status=201 if new else 200,
            headers={"Cache-Control": "private, no-cache"})

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def get(self, request: web.Request) -> web.Response:
        """What is known of the order."""
        view = await self._service.get(_order_id(request), principal_of(request))
        return cached_json(request, self._json(request, view))

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def listing(self, request: web.Request) -> web.Response:
        """Orders, by `visit_id accession_number patient_id limit cursor`."""
        query = request.query
        limit = limit_of(request)
        by = {name: query.get(name) or None for name in ("visit_id", "accession_number", "patient_id")}
        views = await self._service.listing(principal_of(request), limit + 1, query.get("cursor", ""), **by)
        page = views[:limit]
        results = [self._json(request, view) for view in page]
        cursor = page[-1].record.radiology_order_id if len(views) > limit else None
        return cached_json(request, {"results": results, "next_cursor": cursor})

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def status(self, request: web.Request) -> web.Response:
        """Expected, on its way with percent and estimate, or there."""
        return cached_json(request, await self._service.status(_order_id(request), principal_of(request)))

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def images(self, request: web.Request) -> web.Response:
        """The order's images."""
        images = await self._service.images(_order_id(request), principal_of(request))
        return cached_json(request, {"results": await self._described(request, images)})

    @allows(Role.OPERATOR, Role.UPLOADER)
    async def inbox(self, request: web.Request) -> web.Response:
        """What belongs to no order yet."""
        limit, (before_id, before_seq) = limit_of(request), _cursor(request.query.get("cursor"))
        found = await self._inbox.page(principal_of(request), limit + 1, before_id, before_seq)
        images, sessions = found.images[:limit], found.sessions[:limit]
        cursor = None
        if len(found.images) > limit or len(found.sessions) > limit:
            # nothing is before 0: what has come to its end gives nothing on the pages that follow
            cursor = f"{images[-1].id if images else 0}-{sessions[-1].seq if sessions else 0}"
        base_url = self._base_url(request)
        return cached_json(request, {
            "images": await self._described(request, images),
            "sessions": [_session_json(one, base_url) for one in sessions], "next_cursor": cursor})

    @allows(Role.OPERATOR, heeds_scope=True)
    async def link(self, request: web.Request) -> web.Response:
        """Link an image to an order."""
        image_id, order_id, reason = await _link(request)
        return web.json_response(await self._inbox.link(image_id, order_id, reason, call_of(request)),
                                 headers={"Cache-Control": "no-store"})

    @allows(Role.OPERATOR, heeds_scope=True)
    async def unlink(self, request: web.Request) -> web.Response:
        """Undo a link."""
        image_id, order_id, reason = await _link(request)
        return web.json_response(await self._inbox.unlink(image_id, order_id, reason, call_of(request)),
                                 headers={"Cache-Control": "no-store"})

    def _json(self, request: web.Request, view: OrderView) -> dict[str, Any]:
        return order_json(view.record, images=view.images, base_url=self._base_url(request), sign=self._sign(request))

    def _sign(self, request: web.Request) -> Callable[[str], str]:
        who = principal_of(request)
        return lambda path: self._signed(path, who)

    async def _described(self, request: web.Request, images: list[ImageRecord]) -> list[dict[str, Any]]:
        base_url, sign = self._base_url(request), self._sign(request)
        return await self._store.read(lambda tx: [self._describe_image(tx, one, base_url, sign) for one in images])


def _order_id(request: web.Request) -> OutsideId:
    return parse_text_id(request.match_info["radiology_order_id"], "radiology_order_id")


async def _link(request: web.Request) -> tuple[int, OutsideId, str]:
    """The image of the URL, the order and the reason of the body."""
    body, text = parse(Link, await json_body(request)), request.match_info["image_id"]
    return number(text, "image_id"), parse_id(body.radiology_order_id, "radiology_order_id"), body.reason


def _cursor(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    image_id, _, seq = text.partition("-")
    return number(image_id, "cursor"), number(seq, "cursor")


def _session_json(record: SessionRecord, base_url: str) -> dict[str, Any]:
    """A session in the inbox, in short: `links.self` has all of it."""
    return {
        "session_id": record.session_id, "status": record.status, "file_name": record.file_name,
        "file_size": record.file_size, "priority": record.priority, "created_at": record.created_at,
        "links": {"self": f"{base_url}/api/v1/upload-sessions/{record.session_id}/"}}
