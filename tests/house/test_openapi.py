"""`/openapi.json` covers every route that the server has, and says nothing that it has not; the page shows it."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import requests
from aiohttp import web

from server import openapi
from server.access import declared_by
from server.app import create_app
from server.errors import REQUEST_ERRORS, SESSION_FAILURES
from server.lifecycle import open_services
from server.openapi_page import page
from server.settings import Settings
from server.version import VERSION
from tests.server import Server


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[web.UrlDispatcher]:
    settings = Settings()
    settings.place(tmp_path)
    async with open_services(settings) as (services, _tasks):
        yield create_app(services).router


async def test_every_route_is_described(router: web.UrlDispatcher) -> None:
    assert list(openapi.undescribed(router)) == []
    told = openapi.document(router, VERSION)["paths"]
    served = {
        (route.method, route.resource.canonical.rstrip("/")) for route in router.routes() if route.resource is not None
    }
    assert {(method.upper(), path) for path, found in told.items() for method in found} == {
        (method, path) for method, path in served if method != "HEAD" or path.startswith("/files")
    }
    # HEAD goes with every GET, as the document says
    assert {path for method, path in served if method == "HEAD"} == {path for method, path in served if method == "GET"}


async def test_a_route_without_a_description_is_named(router: web.UrlDispatcher) -> None:
    class Handlers:
        async def forgotten(self, _request: web.Request) -> web.Response:
            return web.Response()

    app = web.Application()
    app.add_routes([web.get("/api/v1/forgotten", Handlers().forgotten)])
    assert list(openapi.undescribed(app.router)) == ["GET /api/v1/forgotten"]


async def test_every_route_that_is_described_declares_who_may_call(router: web.UrlDispatcher) -> None:
    assert [(method, path) for method, path, handler in openapi.calls(router) if declared_by(handler) is None] == []


async def test_no_table_describes_what_is_not_there(router: web.UrlDispatcher) -> None:
    tables = {
        id(handler.__self__): (
            handler.__self__.described,
            {
                key
                for method, path, other in openapi.calls(router)
                if getattr(other, "__self__", None) is handler.__self__
                for key in (other.__name__, f"{method} {path}")
            },
        )
        for _, _, handler in openapi.calls(router)
    }
    for described, keys in tables.values():
        assert set(described) <= keys


async def test_each_reference_leads_somewhere_and_each_operation_has_its_own_id(router: web.UrlDispatcher) -> None:
    told = openapi.document(router, VERSION)
    for name in re.findall(r"#/components/schemas/(\w+)", str(told)):
        assert name in told["components"]["schemas"], name
    operations = [operation for found in told["paths"].values() for operation in found.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] and one["responses"] for one in operations)
    for path, found in told["paths"].items():
        for operation in found.values():
            named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))


async def test_bodies_are_those_that_the_code_reads(router: web.UrlDispatcher) -> None:
    schemas = openapi.document(router, VERSION)["components"]["schemas"]
    create = schemas["CreateSession"]
    assert set(create["required"]) == {"file_name", "file_size", "checksum_sha256"}
    assert create["additionalProperties"] is False and create["properties"]["max_retries"]["maximum"] == 100
    assert set(schemas["Problem"]["properties"]["code"]["enum"]) == {*REQUEST_ERRORS, *SESSION_FAILURES}


class Words(HTMLParser):
    """The text of a page, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.loads = "", set[str]()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loads.add(tag)


async def test_the_page_shows_every_call_and_loads_nothing(router: web.UrlDispatcher) -> None:
    told, words = openapi.document(router, VERSION), Words()
    words.feed(page(told))
    for path, found in told["paths"].items():
        summaries = [operation["summary"].replace("`", "") for operation in found.values()]
        assert path in words.text and all(summary in words.text for summary in summaries)
    assert "checksum_sha256" in words.text and words.loads == set()


async def test_summaries_are_for_people(router: web.UrlDispatcher) -> None:
    for path, operations in openapi.document(router, VERSION)["paths"].items():
        for method, operation in operations.items():
            summary = operation["summary"]
            assert not summary.startswith("`") and "Error" not in summary and "(contract" not in summary, (method, path)
            assert summary.endswith("."), (method, path, summary)


def test_both_are_open_and_answers_are_as_they_are_described(server: Server) -> None:
    told = requests.get(f"{server.url}/openapi.json", timeout=10)
    assert told.status_code == 200 and told.json()["openapi"].startswith("3.1")
    shown = requests.get(f"{server.url}/docs", timeout=10)
    assert shown.headers["Content-Type"].startswith("text/html") and "create_session" in shown.text


async def test_who_may_call_is_told_as_the_gate_heeds_it(router: web.UrlDispatcher) -> None:
    paths = openapi.document(router, VERSION)["paths"]
    assert paths["/healthz"]["get"]["security"] == [] and "401" not in paths["/healthz"]["get"]["responses"]
    assert paths["/files"]["options"]["security"] == paths["/api/v1/login"]["post"]["security"] == []
    for path in ("/readyz", "/metrics"):
        assert paths[path]["get"]["security"] == [{"token": []}, {}] and "operator" in paths[path]["get"]["description"]
    putting = paths["/api/v1/orders/{radiology_order_id}"]["put"]
    assert "operator" in putting["description"] and {"401", "403"} <= set(putting["responses"])


async def test_every_proof_that_the_gate_takes_is_named_where_it_is_taken(router: web.UrlDispatcher) -> None:
    told = openapi.document(router, VERSION)
    schemes = {name: (one["type"], one.get("in")) for name, one in told["components"]["securitySchemes"].items()}
    assert schemes == {"token": ("http", None), "browser": ("apiKey", "cookie"), "url": ("apiKey", "query")}
    assert told["security"] == [{"token": []}, {"browser": []}]
    by_url = {path for path, found in told["paths"].items() if {"url": []} in found.get("get", {}).get("security", [])}
    image = "/api/v1/images/{image_id}"
    assert by_url == {"/api/v1/events", f"{image}/rendered", f"{image}/thumbnail"}
