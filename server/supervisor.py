"""Runs a server in this process: HTTP, DICOM and jobs on one opened set of services, drained in reverse."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from server.app import create_app
from server.entrance.codes import login_url
from server.entrance.upkeep import admin_code, forget_logins
from server.errors import ConfigurationError
from server.folder_lock import StartFailed, sole_server
from server.idempotency import KEPT
from server.kinds import ALL, Kind
from server.lifecycle import first_token, open_services
from server.metrics.sharing import SHARED_S
from server.services import Services
from server.settings import Settings
from server.tls import Certificate
from server.worker import Tasks, every
from storage import jobs, sessions
from storage.records import now, timestamp
from storage.store import Store

log = structlog.get_logger()
SWEEP_S = 60.0
EXPIRY_S = 5.0
EVENTS_S = 0.5
HEAD_S = 1.0
USES_S = 5.0
FORGET_S = 3600.0
GRACE_S = 10.0
LINGER_S = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client gets to read the refusal."""
IDLE_S = 75.0
"""How long a connection may stay without a request."""
BACKLOG = 1024
READ_BUFFER_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves: where, and where the admin's token is."""

    settings: Settings
    http_port: int | None
    dicom_port: int | None
    token_path: Path
    new_admin_token: str | None = None
    code: str | None = None
    certificate: Certificate | None = None

    @property
    def url(self) -> str:
        """The HTTP address."""
        http = self.settings.http
        return f"{'https' if http.tls_cert else 'http'}://{http.host}:{self.http_port}"


@asynccontextmanager
async def running(settings: Settings, kinds: frozenset[Kind] = ALL) -> AsyncIterator[Running]:
    """A server in this process; drained and closed at the end."""
    with sole_server(settings.data_path):
        async with open_services(settings) as (services, tasks):
            token_path, token = await prepare(services)
            code = await admin_code(services.store, token_path) if shows_secrets(settings) else None
            async with working(services, tasks, kinds) as (http_port, dicom_port):
                yield Running(settings, http_port, dicom_port, token_path, token, code, services.certificate)
            await services.audit_head.close()


async def prepare(services: Services) -> tuple[Path, str | None]:
    """Before anybody serves: take up what a crash left. Gives the admin token's path, and the token if it is new."""
    token = await first_token(services.store, services.settings.data_path)
    await services.store.write(jobs.release_all)
    await services.webhooks.begin()
    await services.studies.begin()
    services.shared.begin()
    await services.upkeep.clean_staging()
    await services.audit_head.open()
    return token


@asynccontextmanager
async def working(
    services: Services, tasks: Tasks, kinds: frozenset[Kind], *, shares_port: bool = False
) -> AsyncIterator[tuple[int | None, int | None]]:
    """Do what `kinds` say: gives the HTTP and DICOM ports. `shares_port`: other processes listen on it too."""
    async with AsyncExitStack() as stack:
        tasks.spawn(every(HEAD_S, "audit head", services.audit_head.renew), "renew-audit-head")
        http_port = None
        if Kind.HTTP in kinds:
            tasks.spawn(services.feed.run(), "feed")
            http_port = await stack.enter_async_context(_http(services, shares_port))
            tasks.spawn(every(USES_S, "token uses", services.authenticator.uses.flush), "note-token-uses")
        dicom_port = await stack.enter_async_context(_dicom(services)) if Kind.DICOM in kinds else None
        if Kind.JOBS in kinds:
            services.worker.start(tasks)
            stack.callback(services.worker.stop)
            tasks.spawn(every(EVENTS_S, "webhooks", lambda: _tell(services)), "gather-events")
            tasks.spawn(every(EVENTS_S, "studies", services.studies.sweep), "watch-studies")
            tasks.spawn(every(EXPIRY_S, "uploads", services.expiry.sweep), "expire-uploads")
            if services.scrubber.period_s is not None:
                tasks.spawn(every(services.scrubber.period_s, "scrub", services.scrubber.sweep), "scrub")
            # what a crash left whole may take long to seal: nobody waits for it to be ready
            tasks.spawn(_finish_left(services), "finish-left-uploads")
            tasks.spawn(every(SWEEP_S, "answers", lambda: _forget_answers(services.store)), "forget-answers")
            tasks.spawn(every(FORGET_S, "logins", lambda: forget_logins(services.store)), "forget-logins")
        if shares_port:
            tasks.spawn(every(SHARED_S, "metrics", services.shared.share), "share-metrics")
        yield http_port, dicom_port


@asynccontextmanager
async def _http(services: Services, shares_port: bool) -> AsyncIterator[int]:
    http, context = services.settings.http, services.certificate.load()
    runner = web.AppRunner(create_app(services), access_log=None, shutdown_timeout=GRACE_S, lingering_time=LINGER_S,
                           keepalive_timeout=IDLE_S, auto_decompress=False, read_bufsize=READ_BUFFER_BYTES)
    await runner.setup()
    server = runner.server
    assert server is not None, "setup() made it"
    try:
        listening = await asyncio.get_running_loop().create_server(
            lambda: services.connections.protocol(server), http.host, http.port, reuse_port=shares_port or None,
            backlog=BACKLOG, ssl=context,
            ssl_handshake_timeout=services.settings.uploads.header_timeout_s if context is not None else None)
    except OSError as error:
        await runner.cleanup()
        where = f"{http.host}:{http.port}"
        raise StartFailed(f"http.port: {where} cannot be listened on: {error.strerror}") from error
    try:
        yield int(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        services.locks.stop_all()
        services.feed.stop()
        await runner.cleanup()
        await services.uploads.flush_all()
        await services.authenticator.uses.flush()


@asynccontextmanager
async def _dicom(services: Services) -> AsyncIterator[int | None]:
    listener, dicom = services.listener, services.settings.dicom
    if listener is None:
        yield None
        return
    try:
        await listener.start()
    except OSError as error:
        where = f"{dicom.host}:{dicom.port}"
        raise StartFailed(f"dicom.port: {where} cannot be listened on: {error.strerror}") from error
    try:
        yield listener.port
    finally:
        await listener.close()


async def _finish_left(services: Services) -> None:
    try:
        await services.upkeep.finish_left()
    except Exception:
        log.exception("sweep.failed", name="left uploads")
    await every(SWEEP_S, "left uploads", services.upkeep.finish_left)


async def _tell(services: Services) -> None:
    for kind in await services.webhooks.gather():
        services.worker.wake(kind)


async def _forget_answers(store: Store) -> None:
    before = timestamp(now() - KEPT)
    await store.write(lambda tx: sessions.forget_answers(tx, before))


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def reread_on_hangup(
    settings: Settings, reread: Callable[[], Settings], heed: Callable[[], None] = lambda: None
) -> None:
    """At SIGHUP read the configuration again and tell what a restart would change; nothing ends, nothing drains.

    `heed` takes over what needs no restart.
    """

    def hangup() -> None:
        heed()
        try:
            found = reread()
        except ConfigurationError as error:
            log.error("configuration.unusable", reason=error.detail, kept="the settings of the start")
            return
        changed = sorted(_keys(found) ^ _keys(settings))
        if changed:
            log.warning("configuration.restart_needed", changed=list(dict.fromkeys(key for key, _ in changed)))
        else:
            log.info("configuration.unchanged")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup)


def _keys(settings: Settings) -> set[tuple[str, str]]:
    """Every key with its value, as text."""
    tables = settings.model_dump(mode="json")
    return {(f"{table}.{key}", repr(value)) for table, content in tables.items() if isinstance(content, dict)
            for key, value in content.items()} | {
                (table, repr(content)) for table, content in tables.items() if not isinstance(content, dict)}


def shows_secrets(settings: Settings) -> bool:
    """Whether a person looks on, to whom a secret may be shown."""
    return settings.auth.mode == "token" and sys.stdout.isatty()


async def serve(settings: Settings, reread: Callable[[], Settings], kinds: frozenset[Kind] = ALL) -> None:
    """Serve in the foreground until SIGTERM or SIGINT, then drain."""
    stop = stop_signal()
    reread_on_hangup(settings, reread)
    async with running(settings, kinds) as server:
        if server.certificate is not None:
            reread_on_hangup(settings, reread, server.certificate.reread)
        announce(server)
        await stop.wait()
        print("stopping: letting running uploads save what arrived", flush=True)  # noqa: T201 - for the terminal


def announce(server: Running) -> None:
    """Tell the person at the terminal where everything is."""
    settings = server.settings
    lines = []
    if server.http_port is not None:
        lines.append(f"Packhorse listens on {server.url} (uploads, tus and RUFH: {server.url}/files)")
    if server.dicom_port is not None:
        lines.append(f"DICOM: {settings.dicom.ae_title} on {settings.dicom.host}:{server.dicom_port}")
    if settings.auth.mode == "token":
        lines.append(_where_the_token_is(server.token_path))
        if server.new_admin_token and sys.stdout.isatty():
            lines.append(f"  {server.new_admin_token}")
        if server.code and server.http_port is not None:
            lines.append(f"Open {login_url(server.url, server.code)} within five minutes (works once)")
    with suppress(BrokenPipeError):
        print("\n".join(lines), flush=True)  # noqa: T201 - for the terminal


def _where_the_token_is(path: Path) -> str:
    """A token made before the first start, or a file that was taken away, is no fault: another is made with a word."""
    if path.exists():
        return f"The admin token is in {path}"
    return f"There is no admin token in {path}: packhorse token create --role admin makes one"
