"""The whole HTTP surface on one screen."""

import html
from typing import ClassVar

from aiohttp import web

from server import middleware
from server.access import ANYBODY, allows, is_open
from server.cors import CrossOrigin, of_this_machine_only
from server.describing import TEXT, Answer, Described, answered
from server.errors import REQUEST_ERRORS, RETRYABLE_FROM_ZERO, SESSION_FAILURES, RequestError
from server.metrics.counts import counting
from server.openapi import document
from server.openapi_page import page
from server.operating import Operating
from server.parameters import known_parameters
from server.proxies import behind_proxies
from server.services import Services
from server.sessions.schema import CreateSession
from server.tus import rufh_fields, tus_fields
from server.tus.resource import name_version
from server.version import VERSION
from storage import tokens

MAX_JSON_BYTES = 1024 * 1024
HTML = {200: Answer("A page", TEXT, ("text/html",))}
PROTOCOLS = (f"tus-{tus_fields.VERSION}", f"rufh-{rufh_fields.INTEROP_VERSIONS[0]}", "dicom")


def create_app(services: Services) -> web.Application:
    """The application: every route, behind the middlewares, the first of which is the outermost."""
    http = services.settings.http
    cross_origin = CrossOrigin(http.cors_origins)
    is_open = services.settings.auth.mode == "none"
    app = web.Application(client_max_size=MAX_JSON_BYTES, middlewares=[
        counting(services.counts), middleware.request_id, services.connections.watch,
        *([of_this_machine_only(http.public_url, http.cors_origins)] if is_open else []), cross_origin.preflight,
        behind_proxies(http.trusted_proxies), services.gate.pass_through,
        known_parameters])
    app.on_response_prepare.append(cross_origin.sign)
    app.on_response_prepare.append(name_version)
    app.add_routes([
        *services.routes, *Operating(services, VERSION).routes(), *_Surface(services, app.router).routes()])
    return app


class _Surface:
    """What belongs to no feature."""

    described: ClassVar = {
        "jwks": Described(answered({"type": "object"}, "A JWK set")),
        "problem": Described(HTML), "docs": Described(HTML),
        "openapi": Described(answered({"type": "object"}, "OpenAPI 3.1")),
        "about": Described(answered({"type": "object"}, "Product, version, accepted fields, protocols, limits"))}

    def __init__(self, services: Services, router: web.UrlDispatcher) -> None:
        self._services = services
        self._router = router

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [
            web.get("/openapi.json", self.openapi), web.get("/docs", self.docs),
            web.get("/.well-known/jwks.json", self.jwks), web.get("/problems/{code}", self.problem),
            web.get("/api/v1", self.about), web.get("/api/v1/", self.about)]

    @is_open
    async def jwks(self, _request: web.Request) -> web.Response:
        """Every public key that ever signed a receipt (RFC 7517 §5)."""
        keys = await self._services.store.read(tokens.keys)
        return web.json_response({"keys": keys}, headers={"Cache-Control": "public, max-age=300"})

    @is_open
    async def openapi(self, _request: web.Request) -> web.Response:
        """Every call in OpenAPI 3.1, for machines."""
        return web.json_response(document(self._router, VERSION))

    @is_open
    async def docs(self, _request: web.Request) -> web.Response:
        """Every call, for people."""
        return web.Response(text=page(document(self._router, VERSION)), content_type="text/html", headers={
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    @is_open
    async def problem(self, request: web.Request) -> web.Response:
        """The page behind a problem's `type` (RFC 9457 §3.1.1)."""
        code = request.match_info["code"]
        meaning = REQUEST_ERRORS.get(code) or SESSION_FAILURES.get(code)
        if meaning is None:
            raise RequestError("not_found", "there is no such problem")
        again = _what_then(code, meaning.retryable)
        page = (f"<!doctype html><meta charset=utf-8><title>{html.escape(code)}</title>"
                f"<h1>{html.escape(code)}</h1><p>{html.escape(meaning.title)}.<p>{again}")
        return web.Response(text=page, content_type="text/html")

    @allows(*ANYBODY, heeds_scope=True)
    async def about(self, _request: web.Request) -> web.Response:
        """What this server is and takes, so that a newer client can send only what is known."""
        uploads = self._services.settings.uploads
        return web.json_response({
            "product": "packhorse", "version": VERSION, "protocols": list(PROTOCOLS),
            "accepted_fields": {"create_session": list(CreateSession.model_fields)},
            "limits": {"max_size_bytes": uploads.max_size_bytes, "max_json_bytes": MAX_JSON_BYTES,
                       "expires_after_days": uploads.expires_after_days, "batch": 100}})


def _what_then(code: str, is_retryable: bool) -> str:
    if code not in SESSION_FAILURES:
        return "The same request may succeed later." if is_retryable else "The same request will fail again."
    if not is_retryable:
        return "The session cannot be retried: what is to be sent needs a new session."
    progress = "its upload starts from zero then" if code in RETRYABLE_FROM_ZERO else "what arrived is kept"
    return f"The session failed: retry/ comes first, and {progress}."
