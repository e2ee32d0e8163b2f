"""URLs that prove by themselves who may read them: for `<img>` and event streams, which send no header.

Facts: a signed URL carries no bearer token: it is good for reading one path, for minutes, by the principal that was
told it, and dies with its token. Its end is that of the next of our periods, so that within one the same page
holds the same URLs, and caches and ETags go on working.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import datetime

from server.auth import Principal, Role
from server.errors import RequestError

PARAMETER = "signed"
PERIOD_S = 300
"""A URL is good for one to two of these."""
MOST_CHARACTERS = 2000
Signed = Callable[[str, Principal], str]
"""A path of ours as one that proves by itself, for a while, that the principal may read it."""


class Signatures:
    """Signs and checks with one secret key of this server."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def signed(self, path: str, who: Principal) -> str:
        """`path`, which holds no query, with its signature as one."""
        ends_at = (int(time.time()) // PERIOD_S + 2) * PERIOD_S
        if who.expires_at is not None:
            ends_at = min(ends_at, int(datetime.fromisoformat(who.expires_at).timestamp()))
        claims = [ends_at, who.name, who.site, who.role, who.visit_id, who.radiology_order_id]
        text = _encoded(json.dumps(claims, separators=(",", ":")).encode())
        return f"{path}?{PARAMETER}={text}.{self._mac(path, text)}"

    def check(self, path: str, text: str) -> tuple[Principal, bool]:
        """Who may read `path`, and whether the time is over. RequestError `unauthorized` for what is no signature."""
        claims, _, mac = text.partition(".")
        if len(text) > MOST_CHARACTERS or not hmac.compare_digest(mac.encode(), self._mac(path, claims).encode()):
            raise RequestError("unauthorized", "the URL's signature is not ours, or is that of another path")
        ends_at, name, site, role, visit_id, order_id = json.loads(base64.urlsafe_b64decode(claims + "=="))
        who = Principal(name, site, Role(role), visit_id, radiology_order_id=order_id)
        return who, time.time() >= ends_at

    def _mac(self, path: str, text: str) -> str:
        said = f"{path.rstrip('/')}\n{text}".encode("utf-8", "surrogateescape")
        return _encoded(hmac.new(self._key, said, hashlib.sha256).digest())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
