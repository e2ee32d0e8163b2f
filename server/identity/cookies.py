"""The cookie of a browser that is logged in, and what shows that a request is our own page's (docs/adr/0023).

Facts: SameSite=Strict keeps the cookie from requests that other sites' pages cause; but a site has many origins (any
port of this machine, any host beside ours), so what changes something needs more: our Origin, and a token that only our
page can know. The token follows from the cookie, so nothing of it is kept; from what is kept it does not follow.
"""

import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from server.errors import RequestError
from server.identity.secrets import fingerprint

PLAIN, SECURE = "packhorse", "__Host-packhorse"
"""A browser takes a name with `__Host-` over https only, from this host only (RFC 6265bis §4.1.3.2)."""
CSRF_HEADER = "X-CSRF-Token"
FETCH_SITE = "Sec-Fetch-Site"
BaseUrl = Callable[[web.Request], str]
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def cookie_name(base_url: str) -> str:
    """Its name where clients call `base_url`."""
    return SECURE if base_url.startswith("https://") else PLAIN


def hand_out(response: web.Response, base_url: str, cookie: str, seconds: int) -> None:
    """Give the browser its cookie."""
    response.set_cookie(cookie_name(base_url), cookie, max_age=seconds, path="/", httponly=True, samesite="Strict",
                        secure=base_url.startswith("https://"))


def take_back(response: web.Response, base_url: str) -> None:
    """Have the browser forget its cookie."""
    response.del_cookie(cookie_name(base_url), path="/", httponly=True, samesite="Strict",
                        secure=base_url.startswith("https://"))


def cookie_of(request: web.Request, base_url: str) -> str | None:
    """The cookie that the request brings."""
    return request.cookies.get(cookie_name(base_url))


def csrf_token(cookie: str) -> str:
    """What our page sends beside its cookie."""
    return fingerprint(f"csrf {cookie}")


def check_own_page(request: web.Request, base_url: str) -> None:
    """RequestError `csrf_refused` for what another origin's page sends; other programs than browsers tell neither."""
    site, origin = request.headers.get(FETCH_SITE), request.headers.get(hdrs.ORIGIN)
    if site not in (None, "same-origin", "none"):
        raise RequestError("csrf_refused", "another site's page sent this")
    if origin is not None and not _is_ours(origin, request, base_url):
        raise RequestError("csrf_refused", "a page of another origin sent this")


def check_intent(request: web.Request, base_url: str, cookie: str) -> None:
    """RequestError `csrf_refused` unless the request, which changes something by a cookie, is our own page's."""
    if FETCH_SITE not in request.headers and hdrs.ORIGIN not in request.headers:
        raise RequestError("csrf_refused", "the browser does not tell which page sent this")
    if request.headers.get(FETCH_SITE) == "none":
        raise RequestError("csrf_refused", "no page sent this")
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), csrf_token(cookie).encode()):
        raise RequestError("csrf_refused", f"send {CSRF_HEADER} as the login answered it")


def _is_ours(origin: str, request: web.Request, base_url: str) -> bool:
    """The host that the browser called, and that we are known by; the scheme is the proxy's to know."""
    try:
        called = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return called in {request.headers.get(hdrs.HOST, "").lower(), urlsplit(base_url).netloc.lower()} - {""}
