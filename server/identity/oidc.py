"""JWTs of an OpenID Connect issuer as bearers: what makes one genuine, and which principal its claims name.

Required are a signature by one of the issuer's keys with a listed algorithm, `iss`, `aud`, `exp` and `sub`. The
algorithm is ours to choose, never the sender's (RFC 8725 §3.1): no `none`, and no HMAC, for our keys are public.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError

from server.auth import IMPLIED, Principal, Role
from server.errors import RequestError
from server.identity.jwks import IssuerKeys
from server.settings import Oidc
from storage.records import timestamp

KNOWN_S = 1.0
MOST_KNOWN = 1000
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SUBJECT = re.compile(r"[A-Za-z0-9._@|+-]{1,59}")
NAMED = "oidc:"


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    expires_at_s: float
    checked_at: float


class Issuer:
    """Turns a JWT into a principal; remembers for a second what it verified."""

    def __init__(self, settings: Oidc) -> None:
        self._settings = settings
        self._keys = IssuerKeys(settings.issuer, settings.jwks_url)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def identify(self, text: str) -> tuple[Principal, bool]:
        """Who the JWT names, and whether its time is over.

        RequestError `unauthorized` where it proves nothing, `issuer_unavailable` where that cannot be told now.
        """
        moment, digest = time.monotonic(), hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(digest)
        if known is None or moment - known.checked_at > KNOWN_S:
            claims = await self._claims(text)
            known = _Known(self._principal(claims), float(claims["exp"]), moment)
            self._known[digest] = known
            self._known.move_to_end(digest)
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return known.principal, time.time() >= known.expires_at_s + self._settings.clock_skew_s

    async def _claims(self, text: str) -> dict[str, Any]:  # a JWT's claims
        try:
            header = jws.extract_compact(text.encode("ascii")).headers()
        except (JoseError, ValueError) as error:
            raise RequestError("unauthorized", "this is neither a Packhorse token nor a JWT") from error
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in self._settings.algorithms:
            raise RequestError("unauthorized", "the JWT is signed with an algorithm that is not taken")
        for key in await self._keys.candidates(kid if isinstance(kid, str) else None):
            named = key.as_dict(private=False).get("alg")
            if named is not None and named != algorithm:  # a key is for one algorithm only (RFC 8725 §3.1)
                continue
            try:
                claims = jwt.decode(text, key, [str(algorithm)]).claims
            except (JoseError, ValueError, TypeError):
                continue
            self._check(claims)
            return claims
        raise RequestError("unauthorized", "the JWT is signed by no key of the issuer")

    def _check(self, claims: Mapping[str, Any]) -> None:  # a JWT's claims
        """RequestError `unauthorized` unless it is for us, and its time has begun (RFC 7519 §4.1)."""
        latest = time.time() + self._settings.clock_skew_s
        audience = claims.get("aud")
        if claims.get("iss") != self._settings.issuer:
            raise RequestError("unauthorized", "the JWT is of another issuer")
        if self._settings.audience not in (audience if isinstance(audience, list) else [audience]):
            raise RequestError("unauthorized", "the JWT is for another audience")
        if not _is_moment(claims.get("exp")):
            raise RequestError("unauthorized", "the JWT does not say when it expires")
        for name in ("nbf", "iat"):
            if name in claims and (not _is_moment(claims[name]) or claims[name] > latest):
                raise RequestError("unauthorized", f"the JWT is not valid yet ({name})")
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise RequestError("unauthorized", "the JWT names no subject")

    def _principal(self, claims: Mapping[str, Any]) -> Principal:  # a JWT's claims
        wanted = self._settings
        site = _id(claims, wanted.site_claim) if wanted.site_claim else wanted.site
        if site is None or set(site) <= {"."}:
            raise RequestError("unauthorized", f"the JWT names no site in {wanted.site_claim}")
        return Principal(
            _name(claims["sub"]), site, _role(_at(claims, wanted.role_claim), wanted.role_claim),
            visit_id=_id(claims, wanted.visit_claim), radiology_order_id=_id(claims, wanted.order_claim),
            created_by_id=_id(claims, wanted.user_claim),
            expires_at=timestamp(datetime.fromtimestamp(float(claims["exp"]), UTC)))


def _is_moment(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 253_402_300_800  # year 10000


def _name(subject: str) -> str:
    """The principal's name: the subject itself where it is short and plain."""
    if SUBJECT.fullmatch(subject):
        return NAMED + subject
    return f"{NAMED}sha256:{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


def _at(claims: Mapping[str, Any], path: str) -> Any:  # a claim of any shape
    """A claim by its name, or within others by a path with dots, as `realm_access.roles`."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _role(value: object, path: str) -> Role:
    """The one role that a claim names, or the widest where it covers the others. Words of others are passed over."""
    words = value if isinstance(value, list) else [value]
    named = {Role(word) for word in words if isinstance(word, str) and word in set(Role)}
    for role in named:
        if named <= IMPLIED[role]:
            return role
    raise RequestError("unauthorized", f"the JWT names no role, or several that do not go together, in {path}")


def _id(claims: Mapping[str, Any], path: str) -> str | None:  # a JWT's claims
    """An id in a claim, None where it is not there; what is there and no id must not widen what the JWT allows."""
    value = _at(claims, path) if path else None
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not ID.fullmatch(text):
        raise RequestError("unauthorized", f"the JWT's {path} is no id")
    return text
