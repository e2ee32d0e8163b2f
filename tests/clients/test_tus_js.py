"""tus-js-client as it comes, in Node: every flow that its users run, against a real server, also through bad lines."""

import json
import random
import sqlite3
import subprocess
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import BadLine
from tests.server import Server, sha256
from tests.support import require_peer
from tests.tus.speaking_tus import MIB, random_bytes

DRIVER = Path(__file__).parent / "js" / "upload.mjs"
pytestmark = pytest.mark.peers


class Run:
    """One file to be sent by the driver to one server."""

    def __init__(self, server: Server, folder: Path, size: int, *, token: str | None = None) -> None:
        if not (DRIVER.parent / "node_modules").is_dir():
            require_peer("the JavaScript clients (npm ci in tests/clients/js)")
        self.server = server
        self.content = random_bytes(size, random.randrange(2**31))
        self.session_id = str(uuid.uuid4())
        folder.mkdir(exist_ok=True)
        self.file, self.token = folder / "file.bin", folder / "token"
        self.file.write_bytes(self.content)
        self.token.write_text(token or server.token)

    def start(self, port: int | None = None, *, partial: bool = False, **asked: Any) -> "subprocess.Popen[str]":
        """Start the driver."""
        base = self.server.url if port is None else f"http://127.0.0.1:{port}"
        metadata = {"filename": "file.bin", "session_id": self.session_id, "checksum_sha256": sha256(self.content)}
        request = {"endpoint": f"{base}/files", "file": str(self.file), "token": str(self.token), "metadata": metadata}
        process = subprocess.Popen(
            [require_peer("node"), str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**request, **asked}))
        process.stdin.close()
        return process

    def told(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """What the driver says at its end."""
        assert process.stdout is not None
        with process:
            answer = process.stdout.read()
        return dict(json.loads(answer))

    def send(self, port: int | None = None, **asked: Any) -> dict[str, Any]:
        """Run the driver to its end."""
        return self.told(self.start(port, **asked))

    def assert_stored(self, told: dict[str, Any]) -> None:
        """The whole file is there, byte for byte."""
        assert told["error"] is None, told
        view = self.server.api("GET", f"/upload-sessions/{self.session_id}/").json()
        assert (view["status"], view["checksum_sha256"]) == ("SYNCED", sha256(self.content)), (view, told)


FLOWS: dict[str, tuple[int, dict[str, Any]]] = {
    "one PATCH": (3 * MIB, {}),
    "chunks": (3 * MIB, {"options": {"chunkSize": 300_000}}),
    "creation-with-upload": (3 * MIB, {"options": {"uploadDataDuringCreation": True}}),
    "creation-with-upload in chunks": (
        3 * MIB,
        {"options": {"uploadDataDuringCreation": True, "chunkSize": MIB}},
    ),
    "parallel": (3 * MIB, {"options": {"parallelUploads": 3}}),
    "deferred length": (3 * MIB + 5000, {"stream": True, "options": {"uploadLengthDeferred": True, "chunkSize": MIB}}),
    "method override": (3 * MIB, {"options": {"overridePatchMethod": True, "chunkSize": MIB}}),
    "empty file": (0, {}),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_ends_with_the_file_stored(shared_server: Server, tmp_path: Path, name: str) -> None:
    size, asked = FLOWS[name]
    run = Run(shared_server, tmp_path, size)
    told = run.send(**asked)
    run.assert_stored(told)
    methods = [method for method, _ in told["requests"]]
    assert ("PATCH" in methods) is (name not in ("creation-with-upload", "empty file", "method override")), methods


@pytest.mark.parametrize("name", ["one PATCH", "chunks", "creation-with-upload", "parallel", "method override"])
def test_a_flow_survives_a_line_that_is_cut(bad_line: BadLine, tmp_path: Path, name: str) -> None:
    size, asked = FLOWS[name]
    run = Run(bad_line.server, tmp_path, size)
    told = run.send(bad_line.port, **asked)
    run.assert_stored(told)
    assert bad_line.proxy is not None and bad_line.proxy.cut_count > 0


def test_an_upload_that_was_aborted_goes_on_where_it_stopped(shared_server: Server, tmp_path: Path) -> None:
    run = Run(shared_server, tmp_path, 6 * MIB)
    told = run.send(action="abort and resume", abortAt=2 * MIB, options={"chunkSize": MIB})
    run.assert_stored(told)
    assert told["resumedAt"] >= 2 * MIB


def test_an_upload_that_was_terminated_is_gone(shared_server: Server, tmp_path: Path) -> None:
    run = Run(shared_server, tmp_path, 6 * MIB)
    told = run.send(action="terminate", abortAt=2 * MIB, options={"chunkSize": MIB})
    assert ["DELETE", 204] in told["requests"], told
    view = shared_server.api("GET", f"/upload-sessions/{run.session_id}/").json()
    assert (view["status"], view["error_code"]) == ("FAILED", "CLIENT_ABORTED")


def test_a_token_that_expires_midway_costs_no_byte(server: Server, tmp_path: Path) -> None:
    words = ("token", "create", "--role", "uploader", "--expires", "1h")
    site = {"radiology_order_id": "7", "visit_id": "77"}
    visit = (*words, "--visit", "77")
    first, second = (server.command(*visit).stdout.strip() for _ in range(2))
    run = Run(server, tmp_path / "run", 6 * MIB, token=first)
    fresh, marker = tmp_path / "fresh", tmp_path / "marker"
    fresh.write_text(second)
    metadata = {"filename": "file.bin", "session_id": run.session_id, "checksum_sha256": sha256(run.content), **site}
    process = run.start(metadata=metadata, options={"chunkSize": MIB}, marker=str(marker), fresh=str(fresh))

    def expire() -> None:
        while not marker.exists():
            threading.Event().wait(0.01)
        with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
            token_id = first.split("_")[1]
            database.execute("UPDATE token SET expires_at = '2026-01-01T00:00:00.000Z' WHERE token_id = ?", (token_id,))
        deadline = time.monotonic() + 5  # a token is remembered for a second
        while server.api("GET", "/", token=first).status_code != 401:
            assert time.monotonic() < deadline
        marker.with_name("marker.expired").write_text("now")

    expiring = threading.Thread(target=expire)
    expiring.start()
    told = run.told(process)
    expiring.join()
    run.assert_stored(told)
    assert ["PATCH", 401] in told["requests"] and [method for method, _ in told["requests"]].count("POST") == 1
    rows = server.api("GET", f"/upload-sessions/{run.session_id}/history/").json()["results"]
    read = [row["detail"]["bytes_read"] for row in rows if row["action"] == "upload.transfer"]
    assert sum(read) == len(run.content), read
