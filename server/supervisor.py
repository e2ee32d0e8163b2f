"""Runs a server: HTTP, DICOM and workers on one opened set of services, drained in reverse. One process so far."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web

from server.app import create_app
from server.config import Settings
from server.lifecycle import StartFailed, first_token, open_services, sole_server
from server.services import Services
from server.sessions.service import IDEMPOTENCY_KEPT
from server.worker import every
from storage import jobs, sessions
from storage.records import now, timestamp
from storage.store import Store

SWEEP_S = 60.0
EXPIRY_S = 5.0
GRACE_S = 10.0
LINGER_S = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client gets to read the refusal."""


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator["Running"]:
    """A server that serves: HTTP, DICOM and workers; drained and closed at the end."""
    with sole_server(settings.data_path):
        async with open_services(settings) as (services, tasks):
            token_path, token = await first_token(services.store, settings.data_path)
            await services.store.write(jobs.release_all)
            await services.uploads.recover()
            runner = web.AppRunner(create_app(services), access_log=None, shutdown_timeout=GRACE_S,
                                   lingering_time=LINGER_S, auto_decompress=False)
            await runner.setup()
            try:
                http_port = await _listen(runner, settings)
                if services.listener is not None:
                    await _listen_dicom(services, settings)
                services.worker.start(tasks)
                tasks.spawn(every(EXPIRY_S, "uploads", services.expiry.sweep), "expire-uploads")
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
