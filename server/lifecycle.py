"""Opens everything in order and closes it in reverse: store, services, HTTP, DICOM, workers."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
from aiohttp import web

from server.app import create_app
from server.auth import Role, new_token
from server.config import Settings
from server.errors import AppError
from server.services import Services, wire
from server.sessions.receipts import open_signer
from server.sessions.service import IDEMPOTENCY_KEPT
from server.worker import Tasks, every
from storage import jobs, sessions, tokens
from storage.backends import migrate, open_store
from storage.records import DEFAULT_SITE, now, timestamp
from storage.store import Store

log = structlog.get_logger()
SWEEP_S = 60.0
GRACE_S = 10.0


class StartFailed(AppError):
    """The server cannot start; the message says what is in the way."""

    code = "start_failed"
    title = "The server cannot start"


@contextmanager
def sole_server(data_path: Path) -> Iterator[None]:
    """One server per data folder: a second would not see the first one's uploads in progress."""
    data_path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_path / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StartFailed(f"another server already works on {data_path}") from None
    finally:
        os.close(descriptor)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[tuple[Services, Tasks]]:
    """The store migrated and open, the key published, every service wired."""
    copy = migrate(settings.database_path)
    if copy is not None:
        log.info("database.migrated", copy=str(copy))
    store = open_store(settings.database_path, settings.blobs_path)
    try:
        signer = open_signer(settings.data_path / "keys")
        await store.write(lambda tx: tokens.add_key(tx, signer.kid, DEFAULT_SITE, signer.public_jwk()))
        async with Tasks() as tasks:
            services = wire(settings, store, signer, tasks)
            try:
                yield services, tasks
            finally:
                await services.renderer.close()
                tasks.cancel()
    finally:
        await store.close()


async def first_token(store: Store, data_path: Path) -> tuple[Path, str | None]:
    """The admin token of the very first start, in a file of mode 0600: (path, the token if it is new)."""
    path = data_path / "admin-token"
    if await store.read(tokens.count):
        return path, None
    text, record = new_token(Role.ADMIN, label="first start")
    partial = path.with_name(".admin-token")
    descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    await store.write(lambda tx: tokens.add(tx, record))
    return path, text


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator["Running"]:
    """A server that serves: HTTP, DICOM and workers; drained and closed at the end."""
    with sole_server(settings.data_path):
        async with open_services(settings) as (services, tasks):
            token_path, token = await first_token(services.store, settings.data_path)
            await services.store.write(jobs.release_all)
            await services.uploads.recover()
            runner = web.AppRunner(create_app(services), access_log=None, shutdown_timeout=GRACE_S)
            await runner.setup()
            try:
                http_port = await _listen(runner, settings)
                if services.listener is not None:
                    await _listen_dicom(services, settings)
                services.worker.start(tasks)
                tasks.spawn(every(SWEEP_S, "uploads", services.uploads.expire), "expire-uploads")
                tasks.spawn(every(SWEEP_S, "answers", lambda: _forget_answers(services.store)), "forget-answers")
                yield Running(services, http_port, token_path, token)
            finally:
                services.worker.stop()
                services.locks.stop_all()
                if services.listener is not None:
                    await services.listener.close()
                await runner.cleanup()


async def _forget_answers(store: Store) -> None:
    before = timestamp(now() - IDEMPOTENCY_KEPT)
    await store.write(lambda tx: sessions.forget_answers(tx, before))


class Running:
    """A server that serves: where, and where the admin's token is."""

    def __init__(self, services: Services, http_port: int, token_path: Path, new_admin_token: str | None) -> None:
        self.services = services
        self.http_port = http_port
        self.token_path = token_path
        self.new_admin_token = new_admin_token

    @property
    def url(self) -> str:
        """The HTTP address."""
        return f"http://{self.services.settings.http.host}:{self.http_port}"

    @property
    def dicom_port(self) -> int | None:
        """The DICOM port, None while the listener is off."""
        return self.services.listener.port if self.services.listener is not None else None


async def _listen(runner: web.AppRunner, settings: Settings) -> int:
    host, port = settings.http.host, settings.http.port
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        raise StartFailed(f"http.port: {host}:{port} cannot be listened on: {error.strerror}") from error
    return int(runner.addresses[0][1])


async def _listen_dicom(services: Services, settings: Settings) -> None:
    assert services.listener is not None, "asked before"
    try:
        await services.listener.start()
    except OSError as error:
        where = f"{settings.dicom.host}:{settings.dicom.port}"
        raise StartFailed(f"dicom.port: {where} cannot be listened on: {error.strerror}") from error


async def serve(settings: Settings) -> None:
    """Serve in the foreground until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as server:
        _announce(server)
        await stop.wait()
        print("stopping: letting running uploads save what arrived", flush=True)  # noqa: T201 - for the terminal


def _announce(server: Running) -> None:
    settings = server.services.settings
    lines = [f"Packhorse listens on {server.url} (tus uploads: {server.url}/files)"]
    if server.dicom_port is not None:
        lines.append(f"DICOM: {settings.dicom.ae_title} on {settings.dicom.host}:{server.dicom_port}")
    if settings.auth.mode == "token":
        lines.append(f"The admin token is in {server.token_path}")
        if server.new_admin_token and sys.stdout.isatty():
            lines.append(f"  {server.new_admin_token}")
    with suppress(BrokenPipeError):
        print("\n".join(lines), flush=True)  # noqa: T201 - for the terminal
