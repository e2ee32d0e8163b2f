"""Turns what a request brings into a principal: a token, an issuer's JWT, a browser's cookie, a signed URL.

Facts: what rows say is remembered for a second, so that a request costs no look at the database and a revoked token is
refused within one. Never logs a token; only the SHA-256 of a secret is looked up or compared.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import structlog
from sqlalchemy import Connection

from server.auth import ANONYMOUS, Principal, Role
from server.errors import RequestError
from server.identity.attempts import Attempts
from server.identity.oidc import NAMED, Issuer
from server.identity.secrets import PREFIX, fingerprint
from server.identity.signatures import Signatures
from server.identity.uses import TokenUses
from storage import audit, logins, tokens
from storage.records import DEFAULT_SITE, AuditEntry, BrowserRecord, TokenRecord, timestamp
from storage.store import Store

T = TypeVar("T")
log = structlog.get_logger()
REFUSAL_NOTED_S = 60.0
KNOWN_S = 1.0
MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Bearer:
    """What a request proved: the principal, and whether the time of its proof is over."""

    principal: Principal
    expired: bool


class Authenticator:
    """Tells who calls. RequestError `unauthorized` for what proves nothing, `too_many_attempts` for too much of it."""

    def __init__(
        self, store: Store, mode: str, signatures: Signatures, attempts: Attempts, issuer: Issuer | None = None
    ) -> None:
        self._store = store
        self._mode = mode
        self._signatures = signatures
        self._issuer = issuer
        self._attempts = attempts
        self._noted: dict[str | None, float] = {}
        self._tokens: _Remembered[TokenRecord] = _Remembered(store, tokens.find)
        self._browsers: _Remembered[BrowserRecord] = _Remembered(store, logins.find_browser)
        self.uses = TokenUses(store)

    @property
    def lets_everybody_in(self) -> bool:
        """Whether `auth.mode` is "none"."""
        return self._mode == "none"

    async def identify(self, authorization: str | None, peer: str | None = None) -> Bearer:
        """The bearer of an Authorization header."""
        if self.lets_everybody_in:
            return Bearer(ANONYMOUS, False)
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise RequestError("unauthorized", "send the header Authorization: Bearer with a token")
        if self._issuer is not None and text.count(".") == 2 and not text.startswith(f"{PREFIX}_"):
            return await self._of_jwt(self._issuer, text, peer)
        parts = text.split("_", 2)
        if len(parts) != 3 or parts[0] != PREFIX:
            self._attempts.failed(peer)
            raise RequestError("unauthorized", f"this is not a Packhorse token: those begin with {PREFIX}_")
        return self._of_token(parts[1], fingerprint(parts[2]), peer)

    async def _of_jwt(self, issuer: Issuer, text: str, peer: str | None) -> Bearer:
        try:
            return Bearer(*await issuer.identify(text))
        except RequestError as refusal:
            if refusal.code == "unauthorized":
                self._attempts.failed(peer)
            raise

    def _of_token(self, token_id: str, secret_sha256: str, peer: str | None) -> Bearer:
        record = self._tokens.find(token_id)
        if record is not None:
            self._attempts.check_secret(peer, token_id, secret_sha256)
        if record is None or not hmac.compare_digest(record.secret_sha256, secret_sha256):
            self._attempts.failed(peer, token_id if record is not None else None)
            raise RequestError("unauthorized", "the token is not known, or was revoked")
        self._attempts.good(secret_sha256)
        return self._proved(record)

    def _proved(self, record: TokenRecord) -> Bearer:
        if record.revoked_at:
            raise RequestError("unauthorized", "the token is not known, or was revoked")
        self.uses.note(record.token_id)
        return Bearer(principal_from(record), record.expires_at is not None and record.expires_at <= timestamp())

    def of_browser(self, cookie: str, peer: str | None) -> Bearer:
        """Who logged in with the browser that sends this cookie."""
        known = self._browsers.find(fingerprint(cookie))
        record = self._tokens.find(known.token_id) if known is not None else None
        if known is None or record is None:
            self._attempts.failed(peer)
            raise RequestError("unauthorized", "this browser is not logged in")
        if known.ended_at is not None or known.expires_at <= timestamp():
            raise RequestError("unauthorized", "this browser is logged in no more")
        bearer = self._proved(record)
        other = known.maker if known.maker != known.token_id else None
        return replace(bearer, principal=replace(bearer.principal, expires_at=known.expires_at, let_in_by=other))

    def of_url(self, path: str, query: str, signature: str, peer: str | None, *, goes_on: bool = False) -> Bearer:
        """Who was told the signed URL; it is good while its token is.

        `goes_on`: what it opened in its time is asked about, which ends with the token only.
        """
        try:
            who, is_over = self._signatures.check(path, signature, query)
        except RequestError:
            self._attempts.failed(peer)
            raise
        if is_over and not goes_on:
            raise RequestError("unauthorized", "the time of this URL is over: ask for it anew")
        if who.name.startswith(NAMED):
            return Bearer(who, who.expires_at is not None and who.expires_at <= timestamp())
        record = self._tokens.find(who.name)
        if record is None:
            raise RequestError("unauthorized", "the token of this URL is gone")
        return self._proved(record)

    async def note_refusal(self, peer: str | None, why: str) -> None:
        """Audit and log a refused login (contract §9): once per address and minute, so that guessing fills no disk."""
        moment = time.monotonic()
        if moment - self._noted.get(peer, -REFUSAL_NOTED_S) < REFUSAL_NOTED_S:
            return
        if len(self._noted) > MOST_KNOWN:
            self._noted.clear()
        self._noted[peer] = moment
        log.warning("login.refused", peer=peer, why=why)
        entry = AuditEntry(DEFAULT_SITE, "login.refused", "anonymous", peer=peer, outcome="unauthorized",
                           detail={"why": why})
        await self._store.write(lambda tx: audit.append(tx, entry))


class _Remembered(Generic[T]):
    """Rows by their key, as they were at most a second ago; what is not there is asked for each time."""

    def __init__(self, store: Store, find: Callable[[Connection, str], T | None]) -> None:
        self._store = store
        self._find = find
        self._known: dict[str, tuple[float, T]] = {}

    def find(self, key: str) -> T | None:
        """The row of that key."""
        moment = time.monotonic()
        known = self._known.get(key)
        if known is not None and moment - known[0] < KNOWN_S:
            return known[1]
        record = self._store.glance(lambda tx: self._find(tx, key))
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        if record is not None:
            self._known[key] = (moment, record)
        return record


def principal_from(record: TokenRecord) -> Principal:
    """The principal that a token stands for."""
    return Principal(record.token_id, record.site, Role(record.role), record.visit_id,
                     radiology_order_id=record.radiology_order_id, created_by_id=record.created_by_id,
                     expires_at=record.expires_at)
