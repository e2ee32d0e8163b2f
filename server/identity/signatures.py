"""URLs that prove by themselves who may read them: for `<img>` and event streams, which send no header.

Facts: a signed URL carries no bearer token: it is good for reading one path, for minutes, by the principal that was
told it, and dies with its token. Of a query it covers what the route declares: the filter of a stream of events. Its
end is that of the next of our periods, so that within one the same page holds the same URLs, and caches and ETags go on
working.
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
        """`path`, with what its route covers of a query and no more, and its signature in the query."""
        ends_at = (int(time.time()) // PERIOD_S + 2) * PERIOD_S
        if who.expires_at is not None:
            ends_at = min(ends_at, int(datetime.fromisoformat(who.expires_at).timestamp()))
        claims = [ends_at, who.name, who.site, who.role, who.visit_id, who.radiology_order_id,
                  *([who.expires_at] if who.expires_at is not None else [])]
        text = _encoded(json.dumps(claims, separators=(",", ":")).encode())
        bare, mark, query = path.partition("?")
        return f"{path}{'&' if mark else '?'}{PARAMETER}={text}.{self._mac(bare, query, text)}"

    def check(self, path: str, text: str, query: str = "") -> tuple[Principal, bool]:
        """Who may read `path`, and whether the time is over; `query`: what the route covers of it, encoded.

        RequestError `unauthorized` for what is no signature.
        """
        claims, _, mac = text.partition(".")
        ours = self._mac(path, query, claims)
        if len(text) > MOST_CHARACTERS or not hmac.compare_digest(mac.encode(), ours.encode()):
            raise RequestError("unauthorized", "the URL's signature is not ours, or is that of another URL")
        ends_at, name, site, role, visit_id, order_id, *more = json.loads(base64.urlsafe_b64decode(claims + "=="))
        who = Principal(name, site, Role(role), visit_id, radiology_order_id=order_id,
                        expires_at=more[0] if more else None)
        return who, time.time() >= ends_at

    def _mac(self, path: str, query: str, text: str) -> str:
        # three lines always: else what stands in one could be read as another
        said = "\n".join((path.rstrip("/"), query, text)).encode("utf-8", "surrogateescape")
        return _encoded(hmac.new(self._key, said, hashlib.sha256).digest())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
