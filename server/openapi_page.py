"""`/docs`: the OpenAPI document as a page for people. Static: no script, nothing from elsewhere.

Problems are told by their codes, which link to their pages; those that any call may answer are told once.
"""

import html
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]  # JSON
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
details{border:1px solid #ccc;border-radius:4px;margin:.4rem 0;padding:.3rem .8rem}summary{cursor:pointer}
code{background:#f3f3f3;padding:0 .2rem}b{display:inline-block;min-width:4.5rem}
td{vertical-align:top;padding:.1rem .8rem .1rem 0}
small{color:#666}@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}code{background:#2a2a2a}}"""


def page(document: Document) -> str:
    """The whole page."""
    by_tag: dict[str, list[str]] = defaultdict(list)
    every = [operation for operations in document["paths"].values() for operation in operations.values()]
    common = set.intersection(*(_codes(one) for one in every if one.get("security") != []))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag[operation["tags"][0]].append("".join(_operation(method, path, operation, document, common)))
    info = document["info"]
    links = " · ".join(f'<a href="#{_safe(tag)}">{_safe(tag)}</a>' for tag in by_tag)
    sections = "".join(f'<h2 id="{_safe(tag)}">{_safe(tag)}</h2>{"".join(found)}' for tag, found in by_tag.items())
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{_safe(info['title'])} {_safe(info['version'])}</title><style>{STYLE}</style>"
            f"<h1>{_safe(info['title'])} <small>{_safe(info['version'])}</small></h1><p>{_safe(info['description'])} "
            f'For machines: <a href="/openapi.json">openapi.json</a>.<p>Any call with a token may be refused with '
            f"{_linked(common)}.<p>{links}{sections}</html>")


def _operation(
    method: str, path: str, operation: Document, document: Document, common: set[str]
) -> Iterator[str]:
    yield (f"<details><summary><b>{method.upper()}</b> <code>{_safe(path)}</code> "
           f"{_words(operation['summary'])}</summary>")
    if operation.get("security") == []:
        yield "<p>Open: needs no token."
    else:
        yield f"<p>{_words(operation['description'])}"
    rows = [(one["name"], f"{one['in']}{', required' if one['required'] else ''}", one.get("description", ""))
            for one in operation["parameters"]]
    body = operation.get("requestBody", {}).get("content", {})
    for kind, content in body.items():
        rows += [(name, f"body{', required' if needed else ''}", says) for name, needed, says in
                 _fields(content["schema"], document)] or [("body", kind, "")]
    yield _table(rows)
    yield _table([(status, _kinds(answer), answer["description"]) for status, answer in
                  sorted(operation["responses"].items()) if not _codes_of(answer)])
    if refused := _codes(operation) - common:
        yield f"<p>Refused with {_linked(refused)}."
    yield "</details>"


def _codes(operation: Document) -> set[str]:
    """The codes of every problem that a call may answer."""
    return {code for answer in operation["responses"].values() for code in _codes_of(answer)}


def _codes_of(answer: Document) -> list[str]:
    shape = answer.get("content", {}).get("application/problem+json", {}).get("schema", {})
    parts = (part.get("properties", {}) for part in shape.get("allOf", []))
    return [code for fields in parts for code in fields.get("code", {}).get("enum", [])]


def _linked(codes: set[str]) -> str:
    return ", ".join(f'<a href="/problems/{_safe(code)}"><code>{_safe(code)}</code></a>' for code in sorted(codes))


def _fields(schema: Document, document: Document) -> list[tuple[str, bool, str]]:
    """(name, whether it is required, its kind) of an object's members."""
    named = schema.get("$ref", "").rpartition("/")[2]
    shape = document["components"]["schemas"].get(named, schema)
    return [(name, name in shape.get("required", []), _kind(value)) for name, value in
            shape.get("properties", {}).items()]


def _kind(schema: Document) -> str:
    if "anyOf" in schema:
        return " or ".join(filter(None, map(_kind, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    return str(schema.get("type", schema.get("$ref", "").rpartition("/")[2]))


def _kinds(answer: Document) -> str:
    return ", ".join(
        content["schema"].get("$ref", "").rpartition("/")[2] or kind for kind, content in
        answer.get("content", {}).items())


def _table(rows: list[tuple[str, str, str]]) -> str:
    return "<table>" + "".join(
        f"<tr><td><code>{_safe(name)}</code><td><small>{_safe(place)}</small><td>{_words(says)}"
        for name, place, says in rows) + "</table>"


def _words(text: str) -> str:
    """Text with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _safe(text))


def _safe(text: str) -> str:
    return html.escape(str(text))
