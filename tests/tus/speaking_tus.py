"""How tests speak tus: creations, parts, bodies that stay unfinished; and the bytes they send."""

import random
import threading
import time
from typing import Any

import requests

from tests.server import Server, patch, upload_metadata

MIB = 1024 * 1024
OFFSET_TYPE = "application/offset+octet-stream"


def random_bytes(size: int, seed: int) -> bytes:
    """Bytes that no codec shrinks, the same for a seed."""
    return random.Random(seed).randbytes(size)


def transfers(server: Server, session_id: str) -> list[dict[str, int]]:
    """What the server's handlers counted, a row each."""
    rows = server.api("GET", f"/upload-sessions/{session_id}/history/").json()["results"]
    return [row["detail"] for row in rows if row["action"] == "upload.transfer"]


def half_sent(server: Server, url: str, content: bytes, count: int, offset: int = 0) -> threading.Thread:
    """PATCH that sends `count` bytes and then stays silent, the socket open."""

    def slowly() -> None:
        def body() -> object:
            yield content[:count]
            threading.Event().wait(20)  # silence on an open socket is the case under test

        try:
            patch(server, url, body(), offset)  # type: ignore[arg-type]  # requests takes a generator
        except requests.exceptions.RequestException:
            return

    thread = threading.Thread(target=slowly, daemon=True)
    thread.start()
    return thread


def wait_for_bytes(server: Server, session_id: str, count: int) -> None:
    """Until the server holds `count` bytes of the session."""
    deadline = time.monotonic() + 10
    while server.api("GET", f"/upload-sessions/{session_id}/").json()["bytes_received"] < count:
        assert time.monotonic() < deadline, "the bytes do not arrive"


def begin(server: Server, **headers: str) -> Any:
    return server.tus("POST", "/files", **headers)


def deferred(server: Server, **metadata: str) -> str:
    answer = begin(server, Upload_Defer_Length="1", Upload_Metadata=upload_metadata(filename="a.bin", **metadata))
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def part(server: Server, content: bytes, *, of: int | None = None, **metadata: str) -> str:
    """A partial upload that holds `content`, of a declared length `of`."""
    length = len(content) if of is None else of
    answer = begin(server, Upload_Concat="partial", Upload_Length=str(length))
    assert answer.status_code == 201, answer.text
    url = str(answer.headers["Location"])
    if content:
        assert patch(server, url, content).status_code == 204
    return url


def join(server: Server, *urls: str, **metadata: str) -> Any:
    return begin(
        server,
        Upload_Concat=f"final;{' '.join(urls)}",
        Upload_Metadata=upload_metadata(filename="whole.bin", **metadata),
    )


def stored(server: Server, url: str) -> bytes:
    answer = server.tus("GET", url)
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)
