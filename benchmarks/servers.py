"""Starts and stops what is measured: the peers, Packhorse, and a server that throws everything away."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / "peers"
PYTHON = PEERS / ".venv" / "bin" / "python"
SETTLE_S, QUIET_S = 20.0, 0.5
CEILING, PACKHORSE, REFERENCE = "client's ceiling", "Packhorse", "@tus/server"


@dataclass
class Server:
    """One server that listens; `headers` go with every request, `verifies` means that it wants a SHA-256."""

    name: str
    port: int
    pid: int
    headers: dict[str, str] = field(default_factory=dict)
    verifies: bool = False


def names() -> list[str]:
    """Everything that can be measured here; a peer that is not installed is missing."""
    found = [PACKHORSE]
    if shutil.which("node") and (PEERS / "node_modules").is_dir():
        found.append(REFERENCE)
    if PYTHON.exists():
        found += ["tuspyserver", "aiohttp-tus"]
    return [*found, CEILING]


def versions() -> dict[str, str]:
    """The version of each."""
    from server.version import VERSION

    told = {PACKHORSE: VERSION, CEILING: "–"}
    package = PEERS / "node_modules" / "@tus" / "server" / "package.json"
    if package.exists():
        told[REFERENCE] = json.loads(package.read_text())["version"]
    if PYTHON.exists():
        ask = "from importlib.metadata import version as v; print(v('tuspyserver'), v('aiohttp-tus'))"
        told["tuspyserver"], told["aiohttp-tus"] = subprocess.check_output([PYTHON, "-c", ask], text=True).split()
    return {**told, "aiohttp": version("aiohttp"), "python": sys.version.split()[0]}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(name: str, folder: Path, workers: int = 1) -> Iterator[Server]:
    """A fresh server of that name in `folder`, which is emptied after it."""
    folder.mkdir(parents=True, exist_ok=True)
    process = start(name, folder, workers)
    try:
        yield process.server
    finally:
        process.end()
        shutil.rmtree(folder, ignore_errors=True)


def settle(server: Server) -> None:
    """Wait until the server and its processes have begun: they answer first, and load the rest of themselves after."""
    deadline, quiet_since, used = time.monotonic() + SETTLE_S, time.monotonic(), -1
    while time.monotonic() < min(deadline, quiet_since + QUIET_S):
        time.sleep(0.05)
        now_used = sum(_cpu_ticks(pid) for pid in family(server.pid))
        if now_used > used + 1:
            quiet_since, used = time.monotonic(), now_used


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return int(fields[11]) + int(fields[12])


@dataclass
class Started:
    """A server and how it is ended."""

    server: Server
    process: "subprocess.Popen[bytes] | multiprocessing.Process"

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and wait."""
        if isinstance(self.process, subprocess.Popen):
            self.process.send_signal(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        else:
            self.process.terminate()
            self.process.join()


def start(
    name: str, folder: Path, workers: int = 1, port: int | None = None, reserve_bytes: int = 0
) -> Started:
    """Start a server and wait until it listens; `reserve_bytes` is for Packhorse."""
    port = port or free_port()
    if name == CEILING:
        child = multiprocessing.get_context("fork").Process(target=_discard, args=(port,), daemon=True)
        child.start()
        _wait(port)
        return Started(Server(name, port, child.pid or 0), child)
    store = folder / "files"
    store.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        _command(name, port, store, workers, reserve_bytes),
        cwd=PEERS if name != PACKHORSE else HERE.parent,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("ab"),
    )
    _wait(port)
    server = Server(name, port, process.pid, {"Tus-Resumable": "1.0.0"})
    if name == PACKHORSE:
        token = folder / "files" / "data" / "admin-token"
        server.headers["Authorization"] = f"Bearer {token.read_text().strip()}"
        server.verifies = True
    return Started(server, process)


def _command(name: str, port: int, store: Path, workers: int, reserve_bytes: int) -> list[str]:
    if name == REFERENCE:
        return ["node", "tus_node.mjs", str(port), str(store)]
    if name != PACKHORSE:
        return [str(PYTHON), "tus_python.py", name, str(port), str(store)]
    config = store / "packhorse.toml"
    config.write_text(f"[http]\nport = {port}\n[dicom]\nenabled = false\n[uploads]\nreserve_bytes = {reserve_bytes}\n")
    return [sys.executable, "-m", "server", "serve", "--config", str(config), "--workers", str(workers)]


def _wait(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                line.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if line.recv(1):
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port}")


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def peak_rss_mib(pid: int) -> int:
    """The most memory that one process of the family ever held."""
    peaks = []
    for one in family(pid):
        lines = Path(f"/proc/{one}/status").read_text().splitlines()
        peaks += [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")]
    return max(peaks, default=0)


def _discard(port: int) -> None:
    """Answers every request as a tus server would, and keeps nothing."""
    import threading

    def serve(line: socket.socket) -> None:
        buffer, rest = memoryview(bytearray(4 * 1024 * 1024)), b""
        while True:
            while b"\r\n\r\n" not in rest:
                if not (chunk := line.recv(65536)):
                    return
                rest += chunk
            head, _, rest = rest.partition(b"\r\n\r\n")
            fields = dict(part.lower().split(b": ", 1) for part in head.split(b"\r\n")[1:])
            wanted = int(fields.get(b"content-length", b"0"))
            left, rest = max(0, wanted - len(rest)), rest[wanted:]
            while left:
                left -= line.recv_into(buffer, min(left, len(buffer)))
            end = int(fields.get(b"upload-offset", b"0")) + wanted
            status = "201 Created" if head.startswith(b"POST") else "204 No Content"
            line.sendall(
                f"HTTP/1.1 {status}\r\nLocation: http://127.0.0.1:{port}/files/x\r\nUpload-Offset: {end}\r\n"
                "Content-Length: 0\r\n\r\n".encode()
            )

    def served(line: socket.socket) -> None:
        with suppress(ConnectionResetError):  # the client has gone
            serve(line)

    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    while True:
        line, _ = listener.accept()
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=served, args=(line,), daemon=True).start()


def node_version() -> str:
    """Node's, or nothing."""
    return subprocess.check_output(["node", "--version"], text=True).strip() if shutil.which("node") else "none"


def machine() -> str:
    """What this runs on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
    return f"{os.cpu_count()} × {model}, Linux {os.uname().release}"
