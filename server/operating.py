"""`/healthz`, `/readyz`, `/metrics`: what a server tells those who run it, and how much to whom (contract §11)."""

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from shutil import disk_usage
from typing import ClassVar, Generic, Literal, NotRequired, TypeVar

from aiohttp import hdrs, web
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server import gate
from server.access import Access, is_open, is_open_with_more_for
from server.auth import Role
from server.describing import TEXT, Answer, Described, answered
from server.errors import RequestError
from server.health import Fault, Readiness, readiness
from server.metrics.exposition import CONTENT_TYPE, Holdings, exposition, holdings
from server.proxies import is_in
from server.services import Services

FRESH_S = 1.0
FOR_OPERATORS = Access(frozenset({Role.OPERATOR}))
T = TypeVar("T")


class Ready(TypedDict):
    """Whether requests should be sent here; to operators also what is wrong, and how many jobs wait."""

    status: Literal["ready", "not ready"]
    faults: NotRequired[list[Fault]]
    backlog: NotRequired[dict[str, int]]


class _Fresh(Generic[T]):
    """What `look` found at most FRESH_S ago: anybody may ask, as often as they like."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._lock = asyncio.Lock()
        self._found: tuple[float, T] | None = None

    async def get(self) -> T:
        """Look, unless somebody just did."""
        async with self._lock:
            if self._found is None or time.monotonic() - self._found[0] > FRESH_S:
                self._found = time.monotonic(), await self._look()
            return self._found[1]


class Operating:
    """One method per call."""

    described: ClassVar = {
        "healthz": Described(answered({"type": "object"}, "It lives")),
        "readyz": Described({
            200: Answer("Send requests here", Ready),
            503: Answer("Send them elsewhere for now", Ready)}),
        "metrics": Described(
            {200: Answer("Prometheus' text format", TEXT, ("text/plain",))}, refusals=("unauthorized", "forbidden"))}

    def __init__(self, services: Services, version: str) -> None:
        self._services = services
        self._version = version
        self._networks = [ipaddress.ip_network(one, strict=False) for one in services.settings.http.metrics_allow]
        self._readiness: _Fresh[Readiness] = _Fresh(self._look_whether_ready)
        self._holdings: _Fresh[Holdings] = _Fresh(self._look_what_is_held)

    def routes(self) -> list[web.RouteDef]:
        """Its routes."""
        return [web.get("/healthz", self.healthz), web.get("/readyz", self.readyz), web.get("/metrics", self.metrics)]

    @is_open
    async def healthz(self, _request: web.Request) -> web.Response:
        """Alive."""
        return web.json_response({"status": "alive"})

    @is_open_with_more_for(Role.OPERATOR)
    async def readyz(self, request: web.Request) -> web.Response:
        """Whether to send requests here; what is wrong is for operators."""
        found = await self._readiness.get()
        body: dict[str, object] = {"status": "ready" if found.ready else "not ready"}
        if self._brings_a_proof(request):
            try:
                await self._check_is_trusted(request)
            except RequestError:
                pass  # the answer is for everybody, the reasons are not
            else:
                body |= {"faults": [asdict(fault) for fault in found.faults], "backlog": found.backlog}
        return web.json_response(body, status=200 if found.ready else 503, headers={"Cache-Control": "no-store"})

    @is_open_with_more_for(Role.OPERATOR)
    async def metrics(self, request: web.Request) -> web.Response:
        """Every figure of the whole server: for operators, and the addresses of `http.metrics_allow`."""
        await self._check_is_trusted(request)
        page = exposition(await self._services.shared.all(), await self._holdings.get(),
                          self._services.settings.uploads.reserve_bytes, self._services.certificate.ends_at,
                          self._version)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    def _brings_a_proof(self, request: web.Request) -> bool:
        """A load balancer's probe brings none: it is no login that would be refused."""
        return (self._services.authenticator.lets_everybody_in or is_in(request.remote, self._networks)
                or hdrs.AUTHORIZATION in request.headers or hdrs.COOKIE in request.headers)

    async def _check_is_trusted(self, request: web.Request) -> None:
        """Operators, and the addresses of `http.metrics_allow`. RequestError `unauthorized`, `forbidden`."""
        if is_in(request.remote, self._networks):
            return
        gate.check(FOR_OPERATORS, await self._services.gate.identify(request, FOR_OPERATORS))

    async def _look_whether_ready(self) -> Readiness:
        settings = self._services.settings
        return await readiness(self._services.store, settings.blobs_path, settings.uploads.reserve_bytes,
                               self._services.audit_head.fault)

    async def _look_what_is_held(self) -> Holdings:
        settings = self._services.settings
        places = {"blobs": settings.blobs_path, "database": settings.data_path}
        free = await asyncio.to_thread(lambda: {name: disk_usage(path).free for name, path in places.items()})
        return await self._services.store.read(lambda tx: holdings(tx, free))
