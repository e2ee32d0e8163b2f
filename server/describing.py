"""How a handler is described for `/openapi.json`: what it takes, what it answers, what it refuses. Builds no document.

A class of handlers has a table `described`, from the name of each method to its Described; where one method answers
several verbs, as at `/files`, from "VERB path". A test names each route that no table describes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Schema = type | dict[str, Any]
"""A model, a TypedDict, or a JSON Schema as it stands."""
JSON, PROBLEM, BYTES = "application/json", "application/problem+json", "application/octet-stream"
UNREADABLE = ("invalid_json", "body_too_large", "unsupported_media_type", "invalid_field")
"""What may be wrong with any JSON body."""
TEXT: dict[str, Any] = {"type": "string"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what it says, of which types and shape, and with which fields beside it; no shape: no body.

    `also`: other types, each with a shape of its own.
    """

    says: str
    shape: Schema | None = None
    content: tuple[str, ...] = (JSON,)
    headers: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or a header field that a call reads."""

    name: str
    says: str
    shape: dict[str, Any] = field(default_factory=lambda: TEXT)
    required: bool = False
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Described:
    """What a call takes and answers.

    `answers` by status; `refusals`: codes of server.errors beyond those that any call may answer. `summary` is the
    first line of the handler's docstring where it is empty; `content`: the types of a body that is no JSON;
    `rewords`: the door has statuses of its own for some codes, among those listed. Who may call is declared on the
    handler: see access.py.
    """

    answers: Mapping[int, Answer]
    body: type[BaseModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[str, ...] = ()
    summary: str = ""
    content: tuple[str, ...] = ()
    rewords: bool = False


def answered(shape: Schema, says: str = "It is done", status: int = 200) -> dict[int, Answer]:
    """JSON of that shape."""
    return {status: Answer(says, shape)}


def cached_answer(shape: Schema, says: str = "What was asked for") -> dict[int, Answer]:
    """JSON of that shape with an ETag, or 304 where the client has it."""
    return {200: Answer(says, shape, headers={"ETag": "the version"}),
            304: Answer("The client has this version: its ETag stood in If-None-Match")}


def described_by(method: str, path: str, handler: Any) -> Described | None:  # a bound method
    """What the table of the handler's class says of it."""
    table: dict[str, Described] = getattr(getattr(handler, "__self__", None), "described", {})
    return table.get(f"{method} {path}") or table.get(getattr(handler, "__name__", ""))
