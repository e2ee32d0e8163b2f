"""Requests that come through a trusted proxy: who really called, and by which URL. Nobody else's word counts."""

import ipaddress
import re
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from server.middleware import Handler
from server.settings import Http

FORWARDED_URL: web.RequestKey[str] = web.RequestKey("forwarded_url", str)
"""The base URL that the client used, where a trusted proxy told it."""
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def behind_proxies(trusted: list[str]) -> Middleware:
    """A middleware that believes Forwarded (RFC 7239) and X-Forwarded-* of the networks in `trusted`."""
    networks = [ipaddress.ip_network(text, strict=False) for text in trusted]

    @web.middleware
    async def unfold(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not networks or not is_in(request.remote, networks):
            return await handler(request)
        nodes, hosts, protos = _told(request)
        hop = _hop(nodes, networks)
        client, host = _at(nodes, hop), _at(hosts, hop)
        clone = request.clone(remote=client if _is_address(client) else request.remote or "")
        if _at(protos, hop) and _HOST.fullmatch(host):
            clone[FORWARDED_URL] = f"{'https' if _at(protos, hop).lower() == 'https' else 'http'}://{host}"
        return await handler(clone)

    return unfold


def base_url_of(http: Http) -> Callable[[web.Request], str]:
    """What clients are told: the configured public URL, else a trusted proxy's word, else where the connection came in.

    Never a raw Host header, which the client makes up (contract §5).
    """
    public_url, scheme = http.public_url.rstrip("/"), "https" if http.tls_cert else "http"

    def base_url(request: web.Request) -> str:
        if public_url:
            return public_url
        if FORWARDED_URL in request:
            return request[FORWARDED_URL]
        transport = request.transport
        name = transport.get_extra_info("sockname") if transport is not None else None
        if name is None:
            return f"{scheme}://{http.host}:{http.port}"
        host = f"[{name[0]}]" if ":" in name[0] else name[0]  # RFC 3986 §3.2.2
        return f"{scheme}://{host}:{name[1]}"

    return base_url


def is_in(address: str | None, networks: list[Network]) -> bool:
    """Whether it is an address of one of these networks."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def _is_address(text: str) -> bool:
    """Whether it is an address, and not one of RFC 7239's hidden names."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _told(request: web.Request) -> tuple[list[str], list[str], list[str]]:
    """What the proxies say, the newest first: `for`, `host`, `proto`.

    A proxy that writes X-Forwarded-* mostly passes on a Forwarded that it does not know, and its client may have
    written that: beside any X-Forwarded-* it is not read.
    """
    if any(name.lower().startswith("x-forwarded-") for name in request.headers):
        return ([_plain(one) for one in _listed(request, "X-Forwarded-For")],
                _listed(request, "X-Forwarded-Host"), _listed(request, "X-Forwarded-Proto"))
    elements: list[dict[str, str]] = []
    for element in reversed(request.forwarded):  # a hop that tells no host or proto leaves them as the newer one does
        newer = elements[-1] if elements else {}
        kept: dict[str, str] = {key: newer[key] for key in ("host", "proto") if key in newer}
        elements.append({**kept, **dict(element)})
    return ([_plain(element.get("for", "")) for element in elements],
            [element.get("host", "") for element in elements], [element.get("proto", "") for element in elements])


def _listed(request: web.Request, name: str) -> list[str]:
    parts = ",".join(request.headers.getall(name, [])).split(",")
    return [part.strip() for part in reversed(parts) if part.strip()]


def _hop(nodes: list[str], networks: list[Network]) -> int:
    """Which entry tells of the client: from the newest, the first that is no proxy of ours.

    What is older than that one anybody may have written.
    """
    named = [hop for hop, node in enumerate(nodes) if node]
    return next((hop for hop in named if not is_in(nodes[hop], networks)), named[-1] if named else 0)


def _at(told: list[str], hop: int) -> str:
    """What was told at that hop; a list that is shorter was begun anew by a proxy on the way."""
    return told[min(hop, len(told) - 1)] if told else ""


def _plain(node: str) -> str:
    """A node without the brackets and port that RFC 7239 §6 allows."""
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.partition(":")[0] if node.count(":") == 1 and node.partition(":")[0].count(".") == 3 else node
