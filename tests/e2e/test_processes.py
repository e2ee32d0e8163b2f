"""`serve --workers 2`: real processes on one port; any request for any upload may land on any of them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import requests

from server import processes
from server.folder_lock import StartFailed
from server.kinds import Kind
from server.settings import Http, Settings
from tests.server import Server, create, patch, sha256, upload_url
from tests.starting import ROOT
from tests.support import eventually, free_port
from tests.tus.speaking_tus import MIB, half_sent, random_bytes, wait_for_bytes


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server", arguments=("--workers", "2")).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in (running.folder / "server.log").read_text()


def children(server: Server) -> list[int]:
    """The processes of a server."""
    assert server.process is not None
    text = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_pieces_of_one_upload_land_on_any_worker(server: Server) -> None:
    assert len(children(server)) == 3
    content = random_bytes(40 * 50_000, 51)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    for offset in range(0, len(content), 50_000):  # each on a connection of its own
        answer = patch(server, url, content[offset : offset + 50_000], offset)
        assert answer.status_code == 204
        assert server.tus("HEAD", url).headers["Upload-Offset"] == str(offset + 50_000)
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    view = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    assert view["checksum_sha256"] == sha256(content)


def test_a_newcomer_on_another_worker_takes_over(server: Server) -> None:
    content = random_bytes(8 * MIB, 52)
    for _ in range(6):  # some of these land on the other worker
        session = create(server, content, file_name="a.bin", radiology_order_id=uuid.uuid4().hex)
        url = upload_url(server, session["session_id"])
        half_sent(server, url, content, 5 * MIB)
        wait_for_bytes(server, session["session_id"], 4 * MIB)
        began = time.monotonic()
        head = server.tus("HEAD", url)
        assert head.headers["Upload-Offset"] == str(5 * MIB) and time.monotonic() - began < 1.0
        assert patch(server, url, content[5 * MIB :], 5 * MIB).headers["Packhorse-Status"] == "SYNCED"


async def test_a_worker_that_dies_is_replaced_and_the_others_go_on(server: Server) -> None:
    before = children(server)
    os.kill(before[0], signal.SIGKILL)
    await eventually(lambda: before[0] not in children(server))
    for _ in range(20):
        assert server.api("GET", "/").status_code == 200
    await eventually(lambda: len(children(server)) == 3)
    assert server.api("GET", "/").status_code == 200


async def test_when_the_parent_is_killed_nobody_stays_and_the_next_start_goes_on(server: Server) -> None:
    content = random_bytes(6 * MIB, 53)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    patch(server, url, content[:MIB])
    before = children(server)
    server.kill()
    await eventually(lambda: not any(Path(f"/proc/{pid}/stat").exists() for pid in before))
    server.restart()
    offset = int(server.tus("HEAD", url).headers["Upload-Offset"])
    assert offset == MIB
    assert patch(server, url, content[offset:], offset).headers["Packhorse-Status"] == "SYNCED"


def test_a_port_that_is_taken_is_named_and_nothing_stays(tmp_path: Path) -> None:
    port = free_port()
    holder = Server(tmp_path / "holder").start(http_port=port)
    try:
        config = tmp_path / "packhorse.toml"
        config.write_text(f"[http]\nport = {port}\n[dicom]\nenabled = false\n")
        words = [sys.executable, "-m", "server", "serve", "--workers", "2", "--config", str(config)]
        refused = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert refused.returncode == 1 and f"http.port: 127.0.0.1:{port}" in refused.stderr
    finally:
        holder.stop()


def test_connections_of_the_server_before_that_linger_hold_up_no_start() -> None:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as one process listens
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listening.accept()
            accepted.close()  # who closes first stays in TIME-WAIT (RFC 9293 §3.6)
            assert client.recv(1) == b""
    with processes._ReservedPort(Settings(http=Http(port=port))) as reserved:
        assert reserved == port


@pytest.mark.parametrize(("only", "http", "dicom"), [("http", True, False), ("dicom,jobs", False, True)])
def test_only_what_is_asked_for_is_served(tmp_path: Path, only: str, http: bool, dicom: bool) -> None:
    config = tmp_path / "packhorse.toml"
    config.write_text("[http]\nport = 0\n[dicom]\nport = 0\n")
    words = [sys.executable, "-m", "server", "serve", "--only", only, "--config", str(config)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = ""
        while "admin token" not in told:
            told += process.stdout.readline()
        assert ("Packhorse listens" in told, "DICOM:" in told) == (http, dicom)
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


async def test_a_process_that_is_never_ready_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_S", 0.05)
    settings = Settings()
    asked = {"settings": settings.model_dump(mode="json"), "base": str(tmp_path), "http_port": free_port()}
    with (tmp_path / "lock").open("w") as lock:
        supervisor = processes._Supervisor(asked, lock.fileno())
        part = processes.parts_of(1, frozenset({Kind.HTTP}))[0]
        with pytest.raises(StartFailed, match="not ready within"):
            await supervisor.start(part)
        assert supervisor._children[part].returncode is not None
        stop = asyncio.Event()
        watching = asyncio.ensure_future(supervisor.watch(stop))
        monkeypatch.setattr(processes, "START_S", 60.0)
        await eventually(lambda: supervisor._children[part].returncode is None, 20)  # it is tried again
        stop.set()
        await watching
        await supervisor.close()


def contains(log: Path, told: str) -> bool:
    return told in log.read_text()


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_hangup_ends_nothing_and_tells_what_needs_a_restart(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    running = Server(tmp_path / "server", arguments=arguments).start()
    try:
        assert running.process is not None
        config, log = running.folder / "packhorse.toml", running.folder / "server.log"
        for text, told in (
            ("[nonsense]\n", "configuration.unusable"),
            ('[http]\nport = 0\n[dicom]\nport = 0\nae_title = "OTHER"\n', '"changed": ["dicom.ae_title"]'),
        ):
            config.write_text(text)
            for pid in [running.process.pid, *children(running)]:
                os.kill(pid, signal.SIGHUP)
            await eventually(partial(contains, log, told))
            assert running.process.poll() is None and running.api("GET", "/").status_code == 200
    finally:
        assert running.stop() == 0
    assert "process.died" not in log.read_text()


def test_an_unknown_kind_of_work_is_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "server", "serve", "--only", "email"]
    refused = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert refused.returncode == 2 and "--only" in refused.stderr


def test_the_admin_token_is_the_same_for_every_worker(server: Server) -> None:
    for _ in range(10):
        assert requests.get(f"{server.url}/api/v1/", headers=server.auth, timeout=10).status_code == 200
