"""Random walks over a session by the real API: the server's status, offset and flags never leave the model."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.server import Server, patch, sha256, upload_url
from tests.server import create as create_session

SERVER: list[Server] = []


class SessionWalk(RuleBasedStateMachine):
    """The model: a status, how many bytes are held, whether the upload's URL lives, how many retries are used."""

    def __init__(self) -> None:
        super().__init__()
        self.server = SERVER[0]
        self.content = uuid.uuid4().bytes * 64
        session = create_session(self.server, self.content, file_name="a.bin", max_retries=2)
        self.id, self.status, self.held, self.retries = session["session_id"], "QUEUED", 0, 0
        self.url = ""
        self.retryable = True

    def call(self, name: str, body: object = None) -> int:
        return int(self.server.api("POST", f"/upload-sessions/{self.id}/{name}/", body).status_code)

    @rule()
    def start(self) -> None:
        if self.status in ("QUEUED", "METADATA_UPLOADED", "BINARY_UPLOADING"):
            self.url = upload_url(self.server, self.id)
            self.status = "BINARY_UPLOADING"
        else:
            assert self.call("upload_binary") == 409

    @precondition(lambda self: self.url != "")
    @rule(count=st.integers(1, 900), wrong=st.booleans())
    def send(self, count: int, wrong: bool) -> None:
        offset = self.held + (1 if wrong else 0)
        part = self.content[self.held : self.held + count]
        answer = patch(self.server, self.url, part, offset)
        if self.status == "FAILED":
            assert answer.status_code == 410
        elif wrong or self.status not in ("QUEUED", "BINARY_UPLOADING"):
            assert answer.status_code in (204, 409, 413)
        else:
            assert answer.status_code == 204
            self.status = "BINARY_UPLOADING"  # after a retry the kept URL is enough: no other word is needed
            self.held += len(part)
            if self.held == len(self.content):
                self.status = "SYNCED"

    @rule(code=st.sampled_from(["LOCAL_READ_ERROR", "LOCAL_FILE_CHANGED"]))
    def fail(self, code: str) -> None:
        legal = self.status not in ("SYNCED", "ACK_RECEIVED", "FAILED")
        assert self.call("report_failure", {"error_code": code}) == (200 if legal else 409)
        if legal:
            self.status, self.retryable = "FAILED", code == "LOCAL_READ_ERROR"

    @rule()
    def retry(self) -> None:
        legal = self.status == "FAILED" and self.retryable and self.retries < 2
        assert self.call("retry") == (200 if legal else 409)
        if legal:
            self.status, self.retries = "QUEUED", self.retries + 1

    @rule()
    def acknowledge(self) -> None:
        image = self.server.api("GET", f"/upload-sessions/{self.id}/").json()["server_image_id"] or 1
        legal = self.status in ("SYNCED", "ACK_RECEIVED")
        assert self.call("acknowledge", {"server_image_id": image}) == (200 if legal else 409)
        if legal:
            self.status = "ACK_RECEIVED"

    @invariant()
    def the_server_agrees(self) -> None:
        session = self.server.api("GET", f"/upload-sessions/{self.id}/").json()
        shown = "QUEUED" if session["status"] == "METADATA_UPLOADED" else session["status"]
        assert shown == self.status
        assert session["retry_count"] == self.retries
        assert session["safe_to_delete_local"] is (self.status == "ACK_RECEIVED")
        if self.status == "BINARY_UPLOADING":
            head = self.server.tus("HEAD", self.url)
            assert int(head.headers["Upload-Offset"]) == self.held == session["bytes_received"]
        if self.status in ("SYNCED", "ACK_RECEIVED"):
            assert session["checksum_sha256"] == sha256(self.content) and session["server_image_id"]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(Path(tmp_path_factory.mktemp("server"))).start()
    SERVER.append(server)
    yield server
    SERVER.remove(server)
    server.stop()


@pytest.mark.slow
def test_no_walk_leaves_the_model(walked: Server) -> None:
    run_state_machine_as_test(
        SessionWalk,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    assert walked.command("audit", "verify").returncode == 0 and walked.command("fsck").returncode == 0
