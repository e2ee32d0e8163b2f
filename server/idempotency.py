"""A request that is sent again because its answer was lost has one effect: the Idempotency-Key (contract §7)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from aiohttp import web
from sqlalchemy import Connection

from server.auth import Principal, principal_of
from server.bodies import canonical
from server.errors import RequestError
from server.middleware import route_of
from storage import sessions
from storage.records import now, timestamp

KEPT = timedelta(hours=24)
MAX_CHARACTERS = 128


class Repeatable(Protocol):
    """Whose request it is, to which route, under which key."""

    @property
    def who(self) -> Principal:
        """Who calls."""

    @property
    def route(self) -> str:
        """The route's pattern."""

    @property
    def idempotency_key(self) -> str | None:
        """The header, if there is one."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who sent it from where, and what tells its repetition."""

    who: Principal
    peer: str | None
    route: str
    idempotency_key: str | None


def call_of(request: web.Request) -> Call:
    """The call that a request is. RequestError `invalid_header`."""
    return Call(principal_of(request), request.remote, route_of(request), key_of(request))


def key_of(request: web.Request) -> str | None:
    """The Idempotency-Key. RequestError `invalid_header` when it is too long."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and len(key) > MAX_CHARACTERS:
        raise RequestError("invalid_header", f"Idempotency-Key is longer than {MAX_CHARACTERS} characters")
    return key


def once(
    tx: Connection, call: Repeatable, request: dict[str, Any], unit: Callable[[Connection], dict[str, Any]]
) -> dict[str, Any]:
    """Run `unit` once per key; the same key again gives the answer of then, `replayed`.

    An issuer's subject may come with JWTs of several sites and scopes: what was done for one of them answers no other.
    RequestError `idempotency_key_reused` when the key came with another `request`.
    """
    if call.idempotency_key is None:
        return unit(tx)
    key = _key_within(call.who, call.idempotency_key)
    digest = hashlib.sha256(canonical(request).encode()).hexdigest()
    known = sessions.remembered(tx, call.who.name, call.route, key, timestamp(now() - KEPT))
    if known is not None:
        if known["request_sha256"] != digest:
            raise RequestError("idempotency_key_reused")
        return {**known["answer"], "replayed": True}
    answer = unit(tx)
    sessions.remember(tx, call.who.site, call.who.name, call.route, key, digest, 200, answer)
    return answer


def _key_within(who: Principal, key: str) -> str:
    """The key as it is kept: one for each site and scope."""
    scope = [who.site, who.visit_id, who.radiology_order_id, who.created_by_id, key]
    return hashlib.sha256(canonical(scope).encode("utf-8", "surrogateescape")).hexdigest()
