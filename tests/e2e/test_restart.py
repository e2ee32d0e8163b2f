"""A restart after a crash: ready at once, however much the crash left to do."""

import os
import time
from pathlib import Path

from tests.server import Server, patch

GIB = 1 << 30


def staged(server: Server) -> Path:
    return server.folder / "data" / "blobs" / "staging" / "site-default"


def test_a_large_upload_that_only_lacks_its_seal_is_not_waited_for(server: Server) -> None:
    url = server.tus("POST", "/files", Upload_Length=str(4 * GIB)).headers["Location"]
    patch(server, url, b"x" * 1000)
    server.kill()
    os.truncate(staged(server) / url.rsplit("/", 1)[1], 4 * GIB)  # as a crash between the last byte and the seal
    server.restart()
    assert server.api("GET", "/upload-sessions/?limit=1").json()["results"][0]["status"] == "BINARY_UPLOADING"
    server.kill()


def test_large_files_of_nobody_are_freed_unread(server: Server) -> None:
    server.tus("POST", "/files", b"x", Upload_Length="2", Content_Type="application/offset+octet-stream")
    server.kill()
    left = staged(server) / "00000000-0000-0000-0000-000000000000"
    left.touch()
    os.truncate(left, 100 * GIB)  # to read it would take minutes
    began = time.monotonic()
    server.restart()
    assert time.monotonic() - began < 30 and not left.exists()
