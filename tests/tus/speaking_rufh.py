"""How tests speak RUFH: requests, and lines on which one is held open or cut."""

import base64
import hashlib
import socket
from contextlib import suppress
from typing import Any

import requests

from tests.server import Server
from tests.support import eventually
from tests.tus.speaking_tus import MIB

PROBLEMS = "https://iana.org/assignments/http-problem-types#"
PARTIAL = "application/partial-upload"


def call(server: Server, method: str, url: str, body: Any = None, **headers: str) -> Any:
    words = {name.replace("_", "-"): value for name, value in headers.items()}
    where = url if url.startswith("http") else server.url + url
    return requests.request(method, where, data=body, timeout=30, headers={**server.auth, **words})


def begin(server: Server, body: bytes = b"", complete: str = "?0", **headers: str) -> Any:
    return call(server, "POST", "/files", body, Upload_Complete=complete, **headers)


def append(server: Server, url: str, body: bytes, offset: int, complete: str = "?0", **headers: str) -> Any:
    given = {"Content_Type": "application/partial-upload", **headers}
    return call(server, "PATCH", url, body, Upload_Offset=str(offset), Upload_Complete=complete, **given)


def digest(content: bytes, algorithm: str = "sha-256") -> str:
    value = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(value).decode()}:"


class Line:
    """One connection on which a RUFH request is sent by hand; it can be held open, cut, and read from."""

    def __init__(self, server: Server, method: str, url: str, *fields: str, length: int | None, complete: str) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = [
            f"{method} {url.removeprefix(server.url)} HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {server.token}",
            f"Upload-Complete: {complete}",
            framing,
            *fields,
        ]
        self._socket = socket.create_connection((host, int(port)), timeout=15)
        self.answer = b""
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def heads(self) -> list[dict[str, str]]:
        """What came until now: a header for each response, its status line under ``."""
        found = []
        for head in self.answer.split(b"\r\n\r\n"):
            if head.startswith(b"HTTP/1.1 "):
                status, *fields = head.decode().split("\r\n")
                found.append({"": status.split(" ")[1], **dict(field.split(": ", 1) for field in fields)})
        return found

    def until(self, count: int) -> list[dict[str, str]]:
        """Read until `count` responses have come."""
        while len(self.heads()) < count:
            chunk = self._socket.recv(65536)
            assert chunk, self.answer
            self.answer += chunk
        return self.heads()

    def ended(self) -> list[dict[str, str]]:
        """Read until the server closes; fails when it does not within 15 s."""
        with suppress(ConnectionResetError):
            while chunk := self._socket.recv(65536):
                self.answer += chunk
        return self.heads()

    def cut(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_failure: object) -> None:
        self.cut()


def held_open(
    server: Server, url: str, content: bytes, offset: int, *, rest: int = 8 * MIB, complete: str = "?0"
) -> Line:
    """An append that sends `content`, owes `rest` more bytes, and stays silent.

    It is long, for what a long one brings is staged at once, and not after some seconds.
    """
    fields = (f"Upload-Offset: {offset}", f"Content-Type: {PARTIAL}")
    line = Line(server, "PATCH", url, *fields, length=len(content) + rest, complete=complete)
    line.send(content)
    return line


def staged_size(server: Server, url: str) -> int:
    path = server.folder / "data" / "blobs" / "staging" / "site-default" / url.rsplit("/", 1)[1]
    return path.stat().st_size if path.exists() else 0


async def arrives(server: Server, url: str, size: int) -> None:
    """Until the server has staged `size` bytes."""
    await eventually(lambda: staged_size(server, url) == size)
