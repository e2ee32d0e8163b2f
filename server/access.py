"""What each route asks of its caller: declared on its handler, heeded by the gate, compared with docs/api.md.

A route that declares nothing is for admins only, and a test names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from aiohttp.web import UrlMappingMatchInfo

from server.auth import Role

Decorated = TypeVar("Decorated", bound=Callable[..., object])
DECLARED = "declared_access"


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call: any of `roles`, or anybody where it is `open`.

    `more_for`: an open route tells these more, or others nothing. `heeds_scope`: the handler looks at the visit and
    order of its caller, so a narrowed token may call. `by_url`: a signed URL is proof enough; `covers`: the parameters
    of its query that the signature is for as well.
    """

    roles: frozenset[Role] = frozenset()
    open: bool = False
    more_for: frozenset[Role] = frozenset()
    heeds_scope: bool = False
    by_url: bool = False
    covers: tuple[str, ...] = ()


ANYBODY = tuple(Role)
OPEN = Access(open=True)
NOTHING_THERE = Access(frozenset(Role), heeds_scope=True)
"""What is asked where no route fits: the answer, 404 or 405, is for those who have a token."""
UNDECLARED = Access(frozenset({Role.ADMIN}))
Declared = Access | Mapping[str, Access]
"""One for every verb, or one for each where they share a handler."""


def allows(
    *roles: Role, heeds_scope: bool = False, by_url: bool = False, covers: tuple[str, ...] = ()
) -> Callable[[Decorated], Decorated]:
    """Declare on a handler that callers need one of `roles`."""
    return declares(Access(frozenset(roles), heeds_scope=heeds_scope, by_url=by_url, covers=covers))


def is_open(handler: Decorated) -> Decorated:
    """Declare on a handler that anybody may call, without a token."""
    return declares(OPEN)(handler)


def is_open_with_more_for(*roles: Role) -> Callable[[Decorated], Decorated]:
    """Declare on a handler that anybody may call, and that it looks itself for these, whom it tells more."""
    return declares(Access(open=True, more_for=frozenset(roles)))


def declares(access: Declared) -> Callable[[Decorated], Decorated]:
    """Declare `access` on a handler."""

    def mark(handler: Decorated) -> Decorated:
        setattr(handler, DECLARED, access)
        return handler

    return mark


def declared_by(handler: object) -> Declared | None:
    """What a route's handler declares, None where it declares nothing."""
    found: Declared | None = getattr(handler, DECLARED, None)
    return found


def access_of(found: UrlMappingMatchInfo, verb: str) -> Access:
    """What the route that was found asks of who calls `verb`."""
    return NOTHING_THERE if found.http_exception is not None else access_to(found.handler, verb)


def access_to(handler: object, verb: str) -> Access:
    """What a handler asks of who calls `verb`."""
    declared = declared_by(handler)
    if declared is None:
        return UNDECLARED
    return declared if isinstance(declared, Access) else declared.get(verb, NOTHING_THERE)
