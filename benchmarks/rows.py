"""What is measured: one function per row of the tables. Gives figures, prints nothing."""

import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import BLOCK, OFFSET_TYPE, Line, block, create, metadata, patch, repeated_digest, together
from benchmarks.servers import CEILING, PACKHORSE, Server, peak_rss_mib, settle, start

MIB = 1024 * 1024
CONNECTIONS = 8
SMALL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `measure(server, scale)` gives the figure in `unit`; `must_be` × the reference server's.

    Rows with `must_be_on_tmpfs` are measured there too.
    """

    name: str
    unit: str
    must_be: float
    measure: Callable[[Server, float], float]
    must_be_on_tmpfs: float | None = None


def warm_up(server: Server) -> None:
    """Before the clock starts: every process of the server has begun, and has run what it runs for an upload."""
    settle(server)
    small_files(server, 0.2)
    settle(server)


def one_patch(server: Server, scale: float) -> float:
    """One large PATCH, MB/s; the digest that is declared is made before the clock starts."""
    mib, line = max(8, int(2048 * scale)), Line(server)
    path = create(line, server, mib * MIB, lambda: repeated_digest(BLOCK, mib))
    began = time.perf_counter()
    patch(line, server, path, 0, BLOCK, mib)
    return mib * MIB / (time.perf_counter() - began) / 1e6


def in_parallel(server: Server, scale: float) -> float:
    """Eight PATCHes at once, MB/s together."""
    mib, line = max(8, int(256 * scale)), Line(server)
    bodies = [block(number) for number in range(CONNECTIONS)]
    paths = [
        create(line, server, mib * MIB, lambda body=body: repeated_digest(body, mib))  # type: ignore[misc]
        for body in bodies
    ]
    line.close()

    def send(number: int) -> None:
        own = Line(server)
        patch(own, server, paths[number], 0, bodies[number], mib)
        own.close()

    return CONNECTIONS * mib * MIB / together(CONNECTIONS, send) / 1e6


def in_chunks(server: Server, scale: float) -> float:
    """5 MiB chunks in turn on one connection, MB/s."""
    chunks, body, line = max(3, int(100 * scale)), BLOCK * 5, Line(server)
    path = create(line, server, chunks * len(body), lambda: repeated_digest(BLOCK, chunks * 5))
    began = time.perf_counter()
    for number in range(chunks):
        patch(line, server, path, number * len(body), body, last=number == chunks - 1)
    return chunks * len(body) / (time.perf_counter() - began) / 1e6


def small_files(server: Server, scale: float) -> float:
    """64 KiB by POST and PATCH, files/s over eight connections."""

    def send(_number: int, count: int) -> None:
        line = Line(server)
        for _ in range(count):
            body = os.urandom(SMALL_BYTES)
            path = create(line, server, len(body), lambda body=body: hashlib.sha256(body).hexdigest())  # type: ignore[misc]
            patch(line, server, path, 0, body)

    count = max(5, int(150 * scale))
    return CONNECTIONS * count / together(CONNECTIONS, send, count)


def small_at_once(server: Server, scale: float) -> float:
    """64 KiB in the POST itself (creation-with-upload), files/s over eight connections."""

    def send(_number: int, count: int) -> None:
        line, path = Line(server), "/files" if server.name != "tuspyserver" else "/files/"
        for _ in range(count):
            body = os.urandom(SMALL_BYTES)
            told = metadata(server, lambda body=body: hashlib.sha256(body).hexdigest())  # type: ignore[misc]
            headers = {"Upload-Length": str(len(body)), "Upload-Metadata": told, "Content-Type": OFFSET_TYPE}
            answered = line.call("POST", path, headers, body)
            if server.verifies and answered.get("packhorse-status") != "SYNCED":
                raise RuntimeError("not stored")

    if server.name == "aiohttp-tus":
        raise NotImplementedError("aiohttp-tus has no creation-with-upload")
    count = max(5, int(150 * scale))
    return CONNECTIONS * count / together(CONNECTIONS, send, count)


def heads(server: Server, scale: float) -> float:
    """HEAD of one unfinished upload per connection, per second."""
    line = Line(server)
    paths = [
        create(line, server, 1000, lambda number=number: hashlib.sha256(bytes([number])).hexdigest())  # type: ignore[misc]
        for number in range(CONNECTIONS)
    ]

    def ask(number: int, count: int) -> None:
        own = Line(server)
        for _ in range(count):
            own.call("HEAD", paths[number], {})

    count = max(20, int(1000 * scale))
    return CONNECTIONS * count / together(CONNECTIONS, ask, count)


def peak_rss(server: Server, scale: float) -> float:
    """The most memory of the serving process while one large PATCH comes, MiB."""
    one_patch(server, scale)
    return peak_rss_mib(server.pid)


ROWS = (
    Row("2 GiB in one PATCH", "MB/s", 1.8, one_patch),
    Row("8 × 256 MiB in parallel", "MB/s", 1.2, in_parallel),
    Row("5 MiB chunks in turn", "MB/s", 1.2, in_chunks),
    Row("64 KiB POST + PATCH", "files/s", 1.5, small_files, must_be_on_tmpfs=2.0),
    Row("64 KiB creation-with-upload", "files/s", 1.5, small_at_once, must_be_on_tmpfs=2.0),
    Row("HEAD", "/s", 1.5, heads),
    Row("peak RSS, 2 GiB PATCH", "MiB", 0, peak_rss),
)


# --- what survives ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Survived:
    """What was left of a body that was broken off: % of what was sent, and how long the answer took."""

    percent: float
    seconds: float
    note: str = ""


def broken(name: str, folder: Path, how: str, scale: float, workers: int) -> Survived:
    """300 MiB of a 1 GiB PATCH are sent, then something happens: `fin`, `rst`, `silent` or `kill`."""
    sent_mib, folder = max(8, int(300 * scale)), folder / "broken"
    started = start(name, folder, workers)
    server, line = started.server, Line(started.server)
    try:
        path = create(line, server, max(64, int(1024 * scale)) * MIB, lambda: "0" * 64)
        line.close()
        raw = socket.create_connection(("127.0.0.1", server.port))
        fields = {
            **server.headers,
            "Host": "x",
            "Upload-Offset": "0",
            "Content-Type": OFFSET_TYPE,
            "Content-Length": str(max(64, int(1024 * scale)) * MIB),
        }
        raw.sendall(
            (f"PATCH {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n").encode()
        )
        for _ in range(sent_mib):
            raw.sendall(BLOCK)
        if how == "kill":
            started.end(signal.SIGKILL)
            raw.close()
            started = start(name, folder, workers, server.port)
        elif how == "rst":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
        elif how == "fin":
            raw.close()
        began = time.perf_counter()
        first, offset = None, 0
        while time.perf_counter() - began < 15:
            asking = Line(server)
            try:
                asking.send("HEAD", path, {})
                status, headers, _ = asking.answer("HEAD")
            except (OSError, IndexError):
                continue
            finally:
                asking.close()
            if status == 200:
                offset = int(headers["upload-offset"])
                first = offset if first is None else first
                if offset:
                    break
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        raw.close()
        note = "" if first == offset else f"first HEAD said {first}"
        return Survived(100 * offset / (sent_mib * MIB), seconds, note)
    finally:
        started.end()
        shutil.rmtree(folder, ignore_errors=True)


BREAKS = {
    "fin": "client closes (FIN)",
    "rst": "reset (RST)",
    "silent": "client silent, socket open",
    "kill": "kill -9 of the server",
}


def on_a_full_disk(name: str, folder: Path, workers: int) -> str | None:
    """48 MiB for a disk that has room for 16 of them: what is answered, what is kept, and whether it goes on.

    None where no small file system can be mounted.
    """
    disk, mib = folder / "full", 48
    disk.mkdir(parents=True, exist_ok=True)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=128m,mode=0700", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, stderr=subprocess.DEVNULL).returncode:
        return None
    started = start(name, disk, workers, reserve_bytes=4 * MIB)
    server = started.server
    try:
        line, filler = Line(server), disk / "filler"
        path = create(line, server, mib * MIB, lambda: repeated_digest(BLOCK, mib))
        free = os.statvfs(disk)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 16 * MIB)
        told = "no answer"
        try:
            line.send("PATCH", path, {"Upload-Offset": "0", "Content-Type": OFFSET_TYPE}, BLOCK, mib)
            told = str(line.answer("PATCH")[0])
        except (OSError, IndexError):
            with suppress(OSError, IndexError):
                told = str(line.answer("PATCH")[0])
        filler.unlink()
        try:
            line = Line(server)
            kept = int(line.call("HEAD", path, {})["upload-offset"])
            rest = (BLOCK * mib)[kept:]
            patch(line, server, path, kept, rest)
        except (OSError, IndexError, KeyError, RuntimeError):
            return f"{told}; cannot go on"
        return f"{told}; {kept / MIB:.1f} MiB kept; goes on"
    finally:
        started.end()
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fsyncs_per_file(folder: Path, workers: int) -> float | None:
    """fsync and fdatasync calls of Packhorse per small file sent alone, counted by strace; None without strace."""
    if shutil.which("strace") is None:
        return None
    started = start(PACKHORSE, folder / "fsyncs", workers)
    log = folder / "strace"
    try:
        tracing = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(started.server.pid)],
            stderr=subprocess.DEVNULL,
        )
        time.sleep(1)
        line, count = Line(started.server), 20
        for _ in range(count):
            body = os.urandom(SMALL_BYTES)
            path = create(line, started.server, len(body), lambda body=body: hashlib.sha256(body).hexdigest())  # type: ignore[misc]
            patch(line, started.server, path, 0, body)
        tracing.terminate()
        tracing.wait()
        calls = [one for one in log.read_text().splitlines() if "sync(" in one]
        return len(calls) / count
    finally:
        started.end()
        shutil.rmtree(folder / "fsyncs", ignore_errors=True)


def measurable(name: str, row: Row) -> bool:
    """Whether a figure means anything there."""
    return not (name == CEILING and row.measure in (peak_rss, heads))
