"""Requests that come through a trusted proxy: who really called, and by which URL. Nobody else's word counts."""

import ipaddress
import re

from aiohttp import web
from aiohttp.typedefs import Middleware

from server.middleware import Handler

FORWARDED_URL: web.RequestKey[str] = web.RequestKey("forwarded_url", str)
"""The base URL that the client used, where a trusted proxy told it."""
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def behind_proxies(trusted: list[str]) -> Middleware:
    """A middleware that believes Forwarded (RFC 7239) and X-Forwarded-* of the networks in `trusted`."""
    networks = [ipaddress.ip_network(text, strict=False) for text in trusted]

    @web.middleware
    async def unfold(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not networks or not _is_in(request.remote, networks):
            return await handler(request)
        told = _told(request)
        chain = [one for one in told["for"] if one]
        # from the right: the first that is no proxy of ours is the client; what is left of it anybody may have written
        client = next((one for one in reversed(chain) if not _is_in(one, networks)), chain[0] if chain else "")
        clone = request.clone(remote=client if _is_address(client) else request.remote or "")
        if told["host"] and told["proto"][-1:] and _HOST.fullmatch(told["host"][-1]):
            scheme = "https" if told["proto"][-1].lower() == "https" else "http"
            clone[FORWARDED_URL] = f"{scheme}://{told['host'][-1]}"
        return await handler(clone)

    return unfold


def _is_in(address: str | None, networks: list[Network]) -> bool:
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


def _told(request: web.Request) -> dict[str, list[str]]:
    """What the proxies say, oldest first: `for`, `host`, `proto`."""
    if request.forwarded:
        return {key: [_plain(element[key]) for element in request.forwarded if key in element]
                for key in ("for", "host", "proto")}

    def listed(name: str) -> list[str]:
        return [part.strip() for part in ",".join(request.headers.getall(name, [])).split(",") if part.strip()]

    return {"for": [_plain(one) for one in listed("X-Forwarded-For")],
            "host": listed("X-Forwarded-Host"), "proto": listed("X-Forwarded-Proto")}


def _plain(node: str) -> str:
    """A node without the brackets and port that RFC 7239 §6 allows."""
    if node.startswith("["):
        return node[1:].partition("]")[0]
    return node.partition(":")[0] if node.count(":") == 1 and node.partition(":")[0].count(".") == 3 else node
