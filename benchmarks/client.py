"""The load: plain blocking sockets, as light as a client can be, for it shares the machine with the server."""

import base64
import hashlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from benchmarks.servers import Server

BLOCK = os.urandom(1024 * 1024)
OFFSET_TYPE = "application/offset+octet-stream"


class Line:
    """One connection that is kept alive, or made anew where the server closed it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._socket: socket.socket | None = None

    def _connect(self) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self._server.port), timeout=120)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = line.makefile("rb", buffering=65536)
        return line

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"", repeat: int = 1) -> None:
        """Send a request whose body is `body`, `repeat` times over."""
        if self._socket is None:
            self._socket = self._connect()
        fields = {"Host": f"127.0.0.1:{self._server.port}", **self._server.headers, **headers}
        if method != "HEAD":
            fields["Content-Length"] = str(len(body) * repeat)
        head = (
            f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        )
        if repeat == 1:
            self._socket.sendall(head.encode() + body)
            return
        self._socket.sendall(head.encode())
        for _ in range(repeat):
            self._socket.sendall(body)

    def answer(self, method: str) -> tuple[int, dict[str, str], bytes]:
        """The status, the header and the body of the answer; of a body in chunks only that it ends."""
        status = int(self._reader.readline().split()[1])
        headers: dict[str, str] = {}
        body = b""
        while line := self._reader.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked" and method != "HEAD":
            while size := int(self._reader.readline(), 16):
                self._reader.read(size + 2)
            self._reader.readline()
        elif method != "HEAD":
            body = self._reader.read(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, body

    def call(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b"", repeat: int = 1
    ) -> dict[str, str]:
        """One exchange that must succeed."""
        self.send(method, path, headers, body, repeat)
        status, answered, words = self.answer(method)
        if status not in (200, 201, 204):
            raise RuntimeError(f"{self._server.name}: {method} answered {status} {words.decode(errors='replace')}")
        return answered

    def close(self) -> None:
        """Let go of the connection."""
        if self._socket is not None:
            self._reader.close()
            self._socket.close()
            self._socket = None


def metadata(server: Server, digest: Callable[[], str]) -> str:
    """Upload-Metadata; where the server verifies, with the SHA-256 of the whole."""
    pairs = {"filename": f"{os.urandom(8).hex()}.bin", "filetype": "application/octet-stream"}
    if server.verifies:
        pairs["checksum_sha256"] = digest()
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def create(line: Line, server: Server, size: int, digest: Callable[[], str]) -> str:
    """Make an upload: its path."""
    headers = {"Upload-Length": str(size), "Upload-Metadata": metadata(server, digest)}
    location = line.call("POST", "/files" if server.name != "tuspyserver" else "/files/", headers)["location"]
    return location.split(f":{server.port}", 1)[-1].replace("http://127.0.0.1", "")


def patch(
    line: Line, server: Server, path: str, offset: int, body: bytes, repeat: int = 1, *, last: bool = True
) -> None:
    """Bytes at an offset; the last ones must be verified and stored where the server tells so."""
    headers = {"Upload-Offset": str(offset), "Content-Type": OFFSET_TYPE}
    answered = line.call("PATCH", path, headers, body, repeat)
    if server.verifies and last and answered.get("packhorse-status") != "SYNCED":
        raise RuntimeError(f"not stored: {answered}")


def block(number: int) -> bytes:
    """1 MiB that no other number has."""
    return number.to_bytes(8, "big") + BLOCK[8:]


def repeated_digest(content: bytes, times: int) -> str:
    """SHA-256 of `content`, `times` over."""
    digest = hashlib.sha256()
    for _ in range(times):
        digest.update(content)
    return digest.hexdigest()


def together(count: int, work: Callable[..., None], *arguments: Any) -> float:
    """Run `work` in `count` processes that begin at once; seconds until the last is done."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Semaphore(0), context.Event()

    def run(number: int) -> None:
        ready.release()
        go.wait()
        work(number, *arguments)

    processes = [context.Process(target=run, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    began = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise RuntimeError("a client failed")
    return seconds
