"""Who calls, and what the role and the scopes allow. Proves nothing and keeps nothing: that is `identity`'s."""

from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from server.errors import AppError, RequestError
from storage.records import DEFAULT_SITE


class Role(StrEnum):
    """What a caller may do (contract §11)."""

    UPLOADER = "uploader"
    VIEWER = "viewer"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMIN = "admin"


# What each role may do beside being itself: an admin may do all, an operator sends and sees.
IMPLIED: dict[Role, frozenset[Role]] = {
    Role.UPLOADER: frozenset({Role.UPLOADER}),
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.UPLOADER, Role.VIEWER}),
    Role.AUDITOR: frozenset({Role.AUDITOR}),
    Role.ADMIN: frozenset(Role),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: a token's id or an issuer's subject, its one site and role, and the scopes that narrow it.

    `visit_id` and `radiology_order_id`: the one that it may touch. `created_by_id`: the user it acts for.
    `expired`: it is genuine, and its time is over, which was at `expires_at`. `let_in_by`: who made the code of the
    browser that calls, where that is another principal than the browser acts for.
    """

    name: str
    site: str
    role: Role
    visit_id: str | None = None
    expired: bool = False
    radiology_order_id: str | None = None
    created_by_id: str | None = None
    expires_at: str | None = None
    let_in_by: str | None = None

    def may(self, *roles: Role) -> bool:
        """Whether the role allows what one of `roles` is needed for."""
        return bool(IMPLIED[self.role] & set(roles))

    def require(self, *roles: Role) -> None:
        """RequestError `forbidden` unless the role allows it."""
        if not self.may(*roles):
            raise RequestError("forbidden", f"this needs the role {' or '.join(roles)}, the token has {self.role}")

    @property
    def is_narrowed(self) -> bool:
        """Whether it covers less than its site."""
        return self.visit_id is not None or self.radiology_order_id is not None

    def sees_visit(self, visit_id: str | None) -> bool:
        """Whether the scope covers the visit; a token without a visit covers its whole site."""
        return self.visit_id is None or self.visit_id == visit_id

    def sees_order(self, radiology_order_id: str | None, visit_id: str | None) -> bool:
        """Whether the scopes cover the order, which belongs to that visit."""
        of_order = self.radiology_order_id is None or self.radiology_order_id == radiology_order_id
        return of_order and self.sees_visit(visit_id)


ANONYMOUS = Principal("anonymous", DEFAULT_SITE, Role.ADMIN)
"""Who everybody is under `auth.mode = "none"`, which is refused beyond loopback."""

PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)

FORBIDDEN: web.RequestKey[str] = web.RequestKey("forbidden", str)
"""On a request in which something was refused with 403: its code. The gate audits it."""


def note_forbidden(request: web.Request, refusal: AppError) -> None:
    """Whoever answers a refusal by itself says so here, so that a 403 is audited; others need not."""
    if refusal.status == 403:
        request[FORBIDDEN] = refusal.code


def principal_of(request: web.Request) -> Principal:
    """Who sent the request; the gate has put it there."""
    return request[PRINCIPAL]
