"""`/openapi.json` (OpenAPI 3.1) and `/docs`, built from the routes and what their handlers say of themselves.

Facts: HEAD goes with every GET, and each path is also there with a slash at its end: neither is written twice. Which
problems a call may answer is told by their codes; the statuses follow from server.errors.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from server.access import Access, access_to
from server.describing import PROBLEM, TEXT, Answer, Described, Schema, described_by
from server.errors import REQUEST_ERRORS, SESSION_FAILURES
from server.identity.cookies import PLAIN, SECURE
from server.identity.signatures import PARAMETER

Document = dict[str, Any]  # JSON
REFERENCE = "#/components/schemas/{model}"
ALWAYS = ("bad_request", "headers_too_large", "foreign_page", "internal_error", "storage_unavailable")
"""What any call may be refused with."""
IDS = {
    "code": "The code of a problem", "delivery_id": "A webhook's delivery", "image_id": "An image: its `id`",
    "quarantine_id": "What is held", "radiology_order_id": "The EMR's order", "session_id": "A session, or its alias",
    "study_instance_uid": "A study", "token_id": "A token: the part of it before its secret", "upload_id": "An upload",
    "visit_id": "The EMR's visit"}
"""What stands in paths."""
WITH_TOKEN = ("unauthorized", "forbidden", "csrf_refused", "too_many_attempts", "issuer_unavailable")
CHANGES = ("insufficient_storage", "invalid_transition")
"""Where a unit of work writes: the disk may be full, or somebody else was first."""
MEANINGS = {**REQUEST_ERRORS, **SESSION_FAILURES}


def document(router: web.UrlDispatcher, version: str) -> Document:
    """Everything that `router` serves and a table describes."""
    paths: dict[str, Document] = defaultdict(dict)
    schemas: Document = {"Problem": _PROBLEM}
    for method, path, handler in calls(router):
        described = described_by(method, path, handler)
        if described is not None:
            paths[path][method.lower()] = _operation(method, path, handler, described, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Packhorse", "version": version,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                 "description": "A slash at the end of a path is optional. HEAD goes with every GET."},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "A token of `packhorse token create`"},
            "browser": {"type": "apiKey", "in": "cookie", "name": SECURE,
                        "description": f"What `/api/v1/login` answers; over plain http its name is `{PLAIN}`"},
            "url": {"type": "apiKey", "in": "query", "name": PARAMETER,
                    "description": "Stands in the link as another answer gave it"}}},
        "security": [{"token": []}, {"browser": []}]}


def calls(router: web.UrlDispatcher) -> Iterator[tuple[str, str, Any]]:
    """(method, path, handler) of each route; not the HEAD of a GET, nor the twin with a slash."""
    seen: set[tuple[str, str]] = set()
    for route in router.routes():
        path = route.resource.canonical.rstrip("/") if route.resource is not None else ""
        goes_with_get = route.method == "HEAD" and not path.startswith("/files")
        if not goes_with_get and (route.method, path) not in seen:
            seen.add((route.method, path))
            yield route.method, path, route.handler


def _operation(method: str, path: str, handler: Any, described: Described, schemas: Document) -> Document:
    summary = described.summary or inspect.cleandoc(handler.__doc__ or "").split("\n")[0]
    access = access_to(handler, method)
    found: Document = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{method} {path}".lower()).strip("_"), "summary": summary,
        "tags": [_tag(path)], "parameters": [*_of_path(path), *(
            {"name": one.name, "in": one.place, "description": one.says, "required": one.required, "schema": one.shape}
            for one in described.parameters)],
        "responses": {**_refusals(method, path, described, access), **{
            str(status): _answer(answer, schemas) for status, answer in described.answers.items()}}}
    if access.more_for:
        found["security"] = [{"token": []}, {}]
        found["description"] = f"Without a token of {', '.join(sorted(access.more_for))} it tells less, or nothing."
    elif access.open:
        found["security"] = []
    else:
        found["description"] = f"For {', '.join(sorted(access.roles))}." + (
            "" if access.heeds_scope else " Not for tokens of one visit or one order.")
        if access.by_url:
            found["security"] = [{"token": []}, {"browser": []}, {"url": []}]
    if described.body is not None:
        found["requestBody"] = {"required": bool(_required(described.body)), "content": {
            "application/json": {"schema": _schema(described.body, schemas)}}}
    elif described.content:
        found["requestBody"] = {"required": False, "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in described.content}}
    return found


def _required(body: type) -> list[str]:
    fields: dict[str, Any] = getattr(body, "model_fields", {})
    return [name for name, field in fields.items() if field.is_required()]


def _tag(path: str) -> str:
    parts = [part for part in path.split("/") if part and not part.startswith("{")]
    names = [part for part in parts if part not in ("api", "v1", "visits", "radiology")]
    return names[0] if names else "about"


def _of_path(path: str) -> Iterator[Document]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "description": IDS[name], "required": True, "schema": TEXT}


def _answer(answer: Answer, schemas: Document) -> Document:
    found: Document = {"description": answer.says}
    if answer.headers:
        found["headers"] = {name: {"description": says, "schema": TEXT} for name, says in answer.headers.items()}
    if answer.shape is not None:
        shapes = {**dict.fromkeys(answer.content, answer.shape), **answer.also}
        found["content"] = {kind: {"schema": _schema(shape, schemas)} for kind, shape in shapes.items()}
    return found


def _refusals(method: str, path: str, described: Described, access: Access) -> Document:
    """The problems by status; each says which codes it may have."""
    codes = [*ALWAYS, *described.refusals, *(() if access.open else WITH_TOKEN)]
    if "{" in path:
        codes += ["not_found", "invalid_field"]
    if method in ("POST", "PUT", "PATCH", "DELETE"):
        codes += CHANGES
    by_status: dict[int, set[str]] = defaultdict(set)
    for code in codes:
        by_status[MEANINGS[code].status].add(code)
    if described.rewords:
        by_status = {status: set(codes) for status in by_status}
    return {str(status): _problems(sorted(found)) for status, found in sorted(by_status.items())}


def _problems(codes: list[str]) -> Document:
    shape = {"allOf": [{"$ref": REFERENCE.format(model="Problem")}, {"properties": {"code": {"enum": codes}}}]}
    says = "; ".join(f"`{code}`: {MEANINGS[code].title}" for code in codes)
    return {"description": says, "content": {PROBLEM: {"schema": shape}}}


def _schema(shape: Schema, schemas: Document) -> Document:
    """A reference to the shape's schema, which is kept with those that it needs."""
    if isinstance(shape, dict):
        return shape
    schema = dict(_generated(shape))
    for name, found in {**schema.pop("$defs", {}), shape.__name__: schema}.items():
        assert schemas.setdefault(name, found) == found, f"two shapes are called {name}"
    return {"$ref": REFERENCE.format(model=shape.__name__)}


@cache
def _generated(shape: type) -> Document:
    return TypeAdapter(shape).json_schema(ref_template=REFERENCE)


_PROBLEM: Document = {
    "type": "object", "description": "RFC 9457; `code` is for machines, `detail` for people.",
    "required": ["type", "title", "status", "code", "detail", "retryable"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"}, "title": TEXT, "status": {"type": "integer"},
        "code": {"type": "string", "enum": sorted(MEANINGS)}, "detail": TEXT, "retryable": {"type": "boolean"},
        "retry_after_s": {"type": "number"}, "session_id": {"type": ["string", "null"]}, "field": TEXT}}


def undescribed(router: web.UrlDispatcher) -> Iterable[str]:
    """The routes that no table describes."""
    return [f"{method} {path}" for method, path, handler in calls(router)
            if described_by(method, path, handler) is None]
