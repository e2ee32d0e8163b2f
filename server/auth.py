"""Who calls, and what the role allows: tokens, roles, scopes. Never logs a token; stores only its SHA-256."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum

import structlog
from aiohttp import web

from server.errors import RequestError
from storage import audit, tokens
from storage.records import DEFAULT_SITE, AuditEntry, TokenRecord, timestamp
from storage.store import Store

log = structlog.get_logger()
PREFIX = "ph"
REFUSAL_NOTED_S = 60.0
KNOWN_S = 1.0
MOST_KNOWN = 10_000


class Role(StrEnum):
    """What a token may do (contract §11)."""

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
    """Who calls: the token's id, the one site it belongs to, its role, and the one visit it may touch."""

    name: str
    site: str
    role: Role
    visit_id: str | None = None
    expired: bool = False

    def may(self, *roles: Role) -> bool:
        """Whether the role allows what one of `roles` is needed for."""
        return bool(IMPLIED[self.role] & set(roles))

    def require(self, *roles: Role) -> None:
        """RequestError `forbidden` unless the role allows it."""
        if not self.may(*roles):
            raise RequestError("forbidden", f"this needs the role {' or '.join(roles)}, the token has {self.role}")

    def sees_visit(self, visit_id: str | None) -> bool:
        """Whether the token's scope covers the visit; a token without a visit covers its whole site."""
        return self.visit_id is None or self.visit_id == visit_id


ANONYMOUS = Principal("anonymous", DEFAULT_SITE, Role.ADMIN)
"""Who everybody is under `auth.mode = "none"`, which is refused beyond loopback."""

PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)


def _hash(secret: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token(
    role: Role, site: str = DEFAULT_SITE, visit_id: str | None = None, expires_at: str | None = None,
    label: str | None = None,
) -> tuple[str, TokenRecord]:
    """Make a token: the text to hand out once, and the row to keep."""
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    record = TokenRecord(token_id, site, role, visit_id, _hash(secret), timestamp(), expires_at, None, label)
    return f"{PREFIX}_{token_id}_{secret}", record


@dataclass(frozen=True, slots=True)
class Bearer:
    """What an Authorization header proved: the principal, and whether the token's time is over."""

    principal: Principal
    expired: bool


class Authenticator:
    """Turns an Authorization header into a Principal."""

    def __init__(self, store: Store, mode: str) -> None:
        self._store = store
        self._mode = mode
        self._noted: dict[str | None, float] = {}
        self._known: dict[str, tuple[float, TokenRecord]] = {}

    async def identify(self, authorization: str | None) -> Bearer:
        """The bearer of `authorization`; RequestError `unauthorized` when it proves nothing."""
        if self._mode == "none":
            return Bearer(ANONYMOUS, False)
        scheme, _, text = (authorization or "").partition(" ")
        parts = text.strip().split("_", 2)
        if scheme.lower() != "bearer" or not text.strip():
            raise RequestError("unauthorized", "send the header Authorization: Bearer with a token")
        if len(parts) != 3 or parts[0] != PREFIX:
            raise RequestError("unauthorized", f"this is not a Packhorse token: those begin with {PREFIX}_")
        record = await self._find(parts[1])
        if record is None or not hmac.compare_digest(record.secret_sha256, _hash(parts[2])) or record.revoked_at:
            raise RequestError("unauthorized", "the token is not known, or was revoked")
        expired = record.expires_at is not None and record.expires_at <= timestamp()
        return Bearer(Principal(record.token_id, record.site, Role(record.role), record.visit_id), expired)

    async def _find(self, token_id: str) -> TokenRecord | None:
        """The token, as it was at most a second ago: a revoked one is refused by then."""
        moment = time.monotonic()
        known = self._known.get(token_id)
        if known is not None and moment - known[0] < KNOWN_S:
            return known[1]
        record = self._store.glance(lambda tx: tokens.find(tx, token_id))
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        if record is not None:
            self._known[token_id] = (moment, record)
        return record

    async def note_refusal(self, peer: str | None, why: str) -> None:
        """Audit and log a refused login (contract §9): once per address and minute, so that guessing fills no disk."""
        moment = time.monotonic()
        if moment - self._noted.get(peer, -REFUSAL_NOTED_S) < REFUSAL_NOTED_S:
            return
        if len(self._noted) > 10_000:
            self._noted.clear()
        self._noted[peer] = moment
        log.warning("login.refused", peer=peer, why=why)
        entry = AuditEntry(DEFAULT_SITE, "login.refused", "anonymous", peer=peer, outcome="unauthorized",
                           detail={"why": why})
        await self._store.write(lambda tx: audit.append(tx, entry))


def principal_of(request: web.Request) -> Principal:
    """Who sent the request; the auth middleware has put it there."""
    return request[PRINCIPAL]
