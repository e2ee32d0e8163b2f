"""Tokens over the API (contract §11): minted narrower than their maker's, listed, revoked; codes that log a browser in.

One rule for all of it: a caller mints, sees and revokes what its own token covers, and nothing wider: same site, no
role beyond its own, within its visit, order and user. A minted token dies with its maker: it ends no later, and is
revoked in the transaction that revokes the maker, as are those that it minted itself. A code lets in as another, so it
is given for oneself and what one minted only, by an admin for what it covers; it and its browser die with its maker.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import Connection

from server.auth import IMPLIED, Principal, Role
from server.bodies import Body, Reason
from server.entrance.codes import new_code
from server.errors import RequestError
from server.identifiers import parse_id
from server.identity.secrets import bearer_text, fingerprint, new_token
from storage import audit, logins, tokens
from storage.records import AuditEntry, TokenRecord, now, timestamp
from storage.store import Store

MOST_S = 24 * 3600
SCOPES = ("visit_id", "radiology_order_id", "created_by_id")
Derive = Callable[[str], bytes]
"""32 bytes that follow from a text and a secret of this server, and from which neither follows."""


class Mint(Body):
    """`POST tokens/`: a scope that is left out is the maker's own."""

    role: Literal["uploader", "viewer", "operator", "auditor", "admin"]
    site: str | None = None
    visit_id: int | str | None = None
    radiology_order_id: int | str | None = None
    created_by_id: int | str | None = None
    expires_in_s: Annotated[int, Field(ge=1, le=MOST_S)] = 3600
    label: Annotated[str, Field(min_length=1, max_length=80)] | None = None


class Revoke(Body):
    """`DELETE tokens/{token_id}`."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks from where, and the key that makes the same request the same."""

    who: Principal
    peer: str | None
    idempotency_key: str | None = None


class TokenService:
    """The use cases. RequestError; what is not covered is not there."""

    def __init__(self, store: Store, derive: Derive) -> None:
        self._store = store
        self._derive = derive

    async def mint(self, body: Mint, asked: Asked) -> tuple[bool, str, TokenRecord]:
        """(whether it is new, the text to hand out once, the row).

        With an Idempotency-Key the token follows from key and maker, so a lost answer is given again though only the
        secret's SHA-256 is kept.
        """
        who = asked.who
        _check_own_browser(who)
        text, wanted = self._wanted(body, asked)

        def unit(tx: Connection) -> tuple[bool, TokenRecord]:
            maker = tokens.find(tx, who.name)
            if maker is not None and maker.revoked_at is not None:
                raise RequestError("unauthorized", "the token is not known, or was revoked")
            known = tokens.find(tx, wanted.token_id)
            if known is not None:
                return False, _same(known, wanted)
            tokens.add(tx, wanted)
            audit.append(tx, AuditEntry(
                who.site, "token.created", who.name, f"token/{wanted.token_id}", asked.peer,
                detail={"role": wanted.role, "visit": wanted.visit_id, "order": wanted.radiology_order_id,
                        "user": wanted.created_by_id, "expires_at": wanted.expires_at}))
            return True, wanted

        is_new, record = await self._store.write(unit)
        return is_new, text, record

    def _wanted(self, body: Mint, asked: Asked) -> tuple[str, TokenRecord]:
        who = asked.who
        given = {name: parse_id(value, name) for name in SCOPES if (value := getattr(body, name)) is not None}
        scopes = {name: given[name].text if name in given else getattr(who, name) for name in SCOPES}
        asked_end = timestamp(now() + timedelta(seconds=body.expires_in_s))
        ends_at = min(asked_end, who.expires_at or asked_end)
        text, record = new_token(Role(body.role), body.site or who.site, expires_at=ends_at, label=body.label, **scopes)
        record = replace(record, maker=who.name, numeric_ids=",".join(one for one in given if given[one].numeric))
        if not covers(who, record):
            raise RequestError("forbidden", "no token mints one with a wider role, site, visit, order or user")
        if asked.idempotency_key is None:
            return text, record
        words = f"token\n{who.site}\n{who.name}\n{asked.idempotency_key}"
        token_id = self._derive(f"id {words}")[:8].hex()
        secret = base64.urlsafe_b64encode(self._derive(f"secret {words}")).rstrip(b"=").decode()
        return bearer_text(token_id, secret), replace(record, token_id=token_id, secret_sha256=fingerprint(secret))

    async def listing(self, who: Principal, *, ended: bool, limit: int, after: str | None) -> list[TokenRecord]:
        """Up to `limit` tokens that `who` covers, the oldest first; `ended`: also those that are refused by now."""

        def unit(tx: Connection) -> list[TokenRecord]:
            found = tokens.listing(tx, who.site)
            place = next((at for at, one in enumerate(found, 1) if one.token_id == after), 0)
            return [one for one in found[place:] if covers(who, one) and (ended or is_live(one))][:limit]

        return await self._store.read(unit)

    async def show(self, token_id: str, who: Principal) -> TokenRecord:
        """One token."""
        return await self._store.read(lambda tx: _covered(tx, token_id, who))

    async def revoke(self, token_id: str, reason: str, asked: Asked) -> TokenRecord:
        """Refuse it from now on, and what it minted; servers do so within a second. Again: no change."""
        who = asked.who

        def unit(tx: Connection) -> TokenRecord:
            _covered(tx, token_id, who)
            revoke(tx, token_id, AuditEntry(who.site, "token.revoked", who.name, peer=asked.peer,
                                            detail={"reason": reason}))
            return _covered(tx, token_id, who)

        return await self._store.write(unit)

    async def code(self, token_id: str, asked: Asked) -> tuple[str, str]:
        """A one-time code that logs a browser in with this token: (code, when it expires).

        RequestError `forbidden` for a token that the caller sees, and neither is nor minted.
        """
        who = asked.who
        _check_own_browser(who)

        def unit(tx: Connection) -> tuple[str, str]:
            record = _covered(tx, token_id, who)
            maker = tokens.find(tx, who.name)
            if maker is not None and maker.revoked_at is not None:
                raise RequestError("unauthorized", "the token is not known, or was revoked")
            if not (who.may(Role.ADMIN) or token_id == who.name or tokens.descends(tx, token_id, who.name)):
                raise RequestError("forbidden", "a code is for the token itself, and for those that it minted")
            if not is_live(record):
                raise RequestError("not_found", "the token has expired or was revoked")
            return new_code(tx, record, who.name, asked.peer, who)

        return await self._store.write(unit)


def covers(who: Principal, record: TokenRecord) -> bool:
    """Whether the token allows nothing that `who` may not do."""
    within = all(getattr(who, name) in (None, getattr(record, name)) for name in SCOPES)
    return record.site == who.site and IMPLIED[Role(record.role)] <= IMPLIED[who.role] and within


def is_live(record: TokenRecord) -> bool:
    """Whether it lets anybody in now."""
    return record.revoked_at is None and (record.expires_at is None or record.expires_at > timestamp())


def revoke(tx: Connection, token_id: str, entry: AuditEntry) -> list[TokenRecord]:
    """A unit of work: the token and what it minted are refused from now on, each told in the audit as `entry`.

    Browsers that they let in are logged out, whichever token those act for.
    """
    fresh = tokens.revoke(tx, token_id)
    logins.end_made_by(tx, [one.token_id for one in fresh])
    for one in fresh:
        detail = {**(entry.detail or {}), "role": one.role} | ({"with": token_id} if one.token_id != token_id else {})
        audit.append(tx, replace(entry, site=one.site, subject=f"token/{one.token_id}", detail=detail))
    return fresh


def deriving(key: bytes) -> Derive:
    """`Derive` by HMAC-SHA-256 with a secret key."""
    return lambda text: hmac.digest(key, text.encode(), hashlib.sha256)


def _check_own_browser(who: Principal) -> None:
    """What a browser minted would be its token's, and outlive who let it in: RequestError `forbidden`."""
    if who.let_in_by is not None:
        raise RequestError("forbidden", "a browser that another token let in makes neither tokens nor codes")


def _covered(tx: Connection, token_id: str, who: Principal) -> TokenRecord:
    record = tokens.find(tx, token_id)
    if record is None or not covers(who, record):
        raise RequestError("not_found", "there is no such token")
    return record


def _same(known: TokenRecord, wanted: TokenRecord) -> TokenRecord:
    names = ("site", "role", "label", *SCOPES)
    if not is_live(known) or any(getattr(known, name) != getattr(wanted, name) for name in names):
        raise RequestError("idempotency_key_reused")
    return known
