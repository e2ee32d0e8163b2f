"""Runs a server in several processes of one machine: HTTP workers on one port, and one process for DICOM and jobs.

Facts: the kernel spreads connections over sockets that share a port (SO_REUSEPORT), so any request may land on
any worker; they share nothing but the database, the blobs and the locks. A worker's stdin is its lifeline: when
the parent dies, however it dies, its end closes and the worker ends at once, as in a crash.
"""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from server.entrance.upkeep import admin_code
from server.folder_lock import StartFailed, sole_server
from server.kinds import ALL, Kind
from server.lifecycle import open_services
from server.settings import Settings
from server.supervisor import (
    GRACE_S,
    Running,
    announce,
    prepare,
    reread_on_hangup,
    shows_secrets,
    stop_signal,
)

log = structlog.get_logger()
RESTART_S = 1.0
START_S = 60.0


@dataclass(frozen=True, slots=True)
class _Part:
    """What one process is for."""

    name: str
    kinds: frozenset[Kind]


def parts_of(workers: int, kinds: frozenset[Kind]) -> list[_Part]:
    """The processes of a server."""
    parts = [_Part(f"http-{number}", frozenset({Kind.HTTP})) for number in range(workers) if Kind.HTTP in kinds]
    others = kinds - {Kind.HTTP}
    return [*parts, _Part("others", others)] if others else parts


async def serve_in_processes(
    settings: Settings, reread: Callable[[], Settings], workers: int, kinds: frozenset[Kind] = ALL
) -> None:
    """Serve in the foreground with `workers` HTTP processes until SIGTERM or SIGINT, then drain."""
    stop = stop_signal()
    reread_on_hangup(settings, reread)
    with sole_server(settings.data_path) as lock, _ReservedPort(settings) as port:
        async with open_services(settings) as (services, _tasks):
            token_path, token = await prepare(services)
            code = await admin_code(services.store, token_path) if shows_secrets(settings) else None
        asked = {"settings": settings.model_dump(mode="json"), "base": str(settings.base_path), "http_port": port}
        supervisor = _Supervisor(asked, lock)
        reread_on_hangup(settings, reread, supervisor.hang_up)
        try:
            ports = [await supervisor.start(part) for part in parts_of(workers, kinds)]
            http_port = port if Kind.HTTP in kinds else None
            dicom_port = next((one for one in ports if one is not None), None)
            announce(Running(settings, http_port, dicom_port, token_path, token, code))
            await supervisor.watch(stop)
            print("stopping: letting running uploads save what arrived", flush=True)  # noqa: T201 - for the terminal
        finally:
            await supervisor.close()
        async with open_services(settings) as (services, _tasks):
            await services.audit_head.close()


class _ReservedPort:
    """A bound socket that never listens: it keeps the port for the workers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> int:
        http = self._settings.http
        family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # a port that somebody else shares by SO_REUSEPORT would be bound without a word
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((http.host, http.port))
            # connections of the server before, which may have been one process, linger for a minute
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((http.host, http.port))
        except OSError as error:
            self._socket.close()
            where = f"{http.host}:{http.port}"
            raise StartFailed(f"http.port: {where} cannot be listened on: {error.strerror}") from error
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class _Supervisor:
    """The children; one that dies is started again."""

    def __init__(self, asked: dict[str, Any], lock: int) -> None:
        self._asked = asked
        self._lock = lock
        self._children: dict[_Part, Process] = {}
        self._ready: set[Process] = set()

    async def start(self, part: _Part) -> int | None:
        """Start one process and wait until it serves; gives its DICOM port. StartFailed, and it does not stay."""
        # the lock goes with the children: nobody else may work on the folder while one of them lives
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server.child", stdin=PIPE, stdout=PIPE, pass_fds=(self._lock,),
            cwd=Path(__file__).parents[1], start_new_session=True)
        self._children[part] = child
        assert child.stdin is not None and child.stdout is not None, "both are pipes"
        child.stdin.write(json.dumps({**self._asked, "kinds": sorted(part.kinds)}).encode() + b"\n")
        with suppress(ConnectionError):
            await child.stdin.drain()
        try:
            async with asyncio.timeout(START_S):
                told = json.loads(await child.stdout.readline() or b'{"failed": "it died"}')
        except TimeoutError:
            child.kill()
            await child.wait()
            told = {"failed": f"not ready within {START_S:g} s"}
        if "failed" in told:
            raise StartFailed(str(told["failed"]))
        self._ready.add(child)
        return told["dicom_port"]  # type: ignore[no-any-return]  # the child's JSON

    def hang_up(self) -> None:
        """Hand SIGHUP on to every process that can heed it: one that only starts would die of it."""
        self._ready = {child for child in self._ready if child.returncode is None}
        for child in self._ready:
            child.send_signal(signal.SIGHUP)

    async def watch(self, stop: asyncio.Event) -> None:
        """Start again what dies, until `stop`."""
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                ended = {asyncio.ensure_future(child.wait()): part for part, child in self._children.items()}
                done, waiting = await asyncio.wait({stopping, *ended}, return_when=asyncio.FIRST_COMPLETED)
                for one in waiting - {stopping}:
                    one.cancel()
                for part in [ended[one] for one in done if one is not stopping]:
                    await self._restart(part, stop)
        finally:
            stopping.cancel()

    async def _restart(self, part: _Part, stop: asyncio.Event) -> None:
        log.error("process.died", part=part.name, status=self._children[part].returncode)
        with suppress(TimeoutError):
            async with asyncio.timeout(RESTART_S):
                await stop.wait()
                return
        starting, stopping = asyncio.ensure_future(self.start(part)), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
        except StartFailed as error:
            log.error("process.not_started", part=part.name, reason=str(error))  # it has ended: `watch` tries again
        finally:
            starting.cancel()
            stopping.cancel()

    async def close(self) -> None:
        """Let every process drain; end those that take too long."""
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.terminate()
        for child in self._children.values():
            try:
                async with asyncio.timeout(GRACE_S + 5):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
