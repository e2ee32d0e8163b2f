"""An issuer's public keys: found by discovery, kept for minutes, asked for anew when an unknown `kid` comes.

Facts: an issuer rotates its keys by adding one before it signs with it and taking the old one away later. Anybody can
make up a `kid`, so unknown ones lead to one look in so many seconds, whoever sends them. An issuer that does not answer
locks nobody out at once: the keys that are known stay good for a day.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from server.errors import RequestError

log = structlog.get_logger()
FRESH_S = 300.0
MOST_STALE_S = 86_400.0
LOOK_S = 10.0
"""The least time between two looks at the issuer."""
TIMEOUT_S = 5.0
MOST_BYTES = 512 * 1024
MOST_KEYS = 100
Key = RSAKey | ECKey | OKPKey
KINDS: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
"""Public keys only: a symmetric one (`oct`) would let whoever verifies sign as well."""
LEAST_RSA_BITS = 2048


class IssuerKeys:
    """The keys of one issuer, in this process."""

    def __init__(self, issuer: str, jwks_url: str) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._keys: dict[str | None, list[Key]] = {}
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._asking = asyncio.Lock()

    async def candidates(self, kid: str | None) -> list[Key]:
        """The keys that may have signed under `kid`; every one where a JWT names none.

        RequestError `issuer_unavailable` while no key of the issuer is known.
        """
        moment = time.monotonic()
        is_fresh = self._fetched_at is not None and moment - self._fetched_at < FRESH_S
        is_known = bool(self._of(kid))
        if not is_known or not (is_fresh or self._asking.locked()):  # while somebody asks, who can go on does
            await self._look()
        if self._fetched_at is None or time.monotonic() - self._fetched_at > MOST_STALE_S:
            raise RequestError("issuer_unavailable", "the issuer's keys cannot be read now", retry_after_s=int(LOOK_S))
        return self._of(kid)

    def _of(self, kid: str | None) -> list[Key]:
        return self._keys.get(kid, []) if kid is not None else [key for keys in self._keys.values() for key in keys]

    async def _look(self) -> None:
        """Ask the issuer, once for all who wait, and not again within LOOK_S."""
        async with self._asking:
            if self._asked_at is not None and time.monotonic() - self._asked_at < LOOK_S:
                return
            self._asked_at = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    self._keys = usable(await self._fetch())
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                log.warning("issuer.unavailable", issuer=self._issuer, why=str(error) or type(error).__name__)
                return
            self._fetched_at = time.monotonic()

    async def _fetch(self) -> Mapping[str, Any]:  # JSON
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            url = self._jwks_url
            if not url:
                found = await _json(session, self._issuer.rstrip("/") + "/.well-known/openid-configuration")
                # MUST be the issuer that was asked (OpenID Connect Discovery §4.3)
                if found.get("issuer") != self._issuer:
                    raise ValueError("its discovery names another issuer")
                url = str(found.get("jwks_uri"))
                if url.split(":")[0] != "https" and self._issuer.startswith("https:"):
                    raise ValueError("its keys do not come over https")
            return await _json(session, url)


async def _json(session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:  # JSON
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        content = await answer.content.read(MOST_BYTES + 1)
        while len(content) <= MOST_BYTES and (more := await answer.content.read(MOST_BYTES)):
            content += more
    if len(content) > MOST_BYTES:
        raise ValueError("its answer is too long")
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("its answer is no object")
    return value


def usable(document: Mapping[str, Any]) -> dict[str | None, list[Key]]:  # JSON
    """The keys of a JWK Set that may verify signatures, by `kid` (RFC 7517 §5: others are passed over).

    ValueError where there is none.
    """
    found: dict[str | None, list[Key]] = {}
    listed = document.get("keys")
    for jwk in listed[:MOST_KEYS] if isinstance(listed, list) else []:
        if isinstance(jwk, dict) and (key := _key(jwk)) is not None:
            found.setdefault(str(jwk["kid"]) if "kid" in jwk else None, []).append(key)
    if not found:
        raise ValueError("it publishes no key that could be used")
    return found


def _key(jwk: dict[str, Any]) -> Key | None:  # JSON
    kind = KINDS.get(str(jwk.get("kty")))
    if kind is None or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    if kind is RSAKey and len(str(jwk.get("n"))) * 6 < LEAST_RSA_BITS:  # base64url of the modulus (RFC 7518 §6.3.1)
        return None
    try:
        return kind.import_key(jwk)
    except (JoseError, ValueError, TypeError):
        return None
