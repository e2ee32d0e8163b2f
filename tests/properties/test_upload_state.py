"""Random walks over one upload in both protocols: offset, length, completion and end never leave the model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.server import Server

SERVER: list[Server] = []
SESSION = requests.Session()
OFFSET_TYPE, PARTIAL_TYPE = "application/offset+octet-stream", "application/partial-upload"


class UploadWalk(RuleBasedStateMachine):
    """The model: the bytes that are held, the length if it is known, whether it is complete, whether it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.server, self.held, self.complete, self.gone = SERVER[0], b"", False, False
        self.length: int | None = None
        self.url = ""

    def ask(self, method: str, url: str, body: bytes = b"", **headers: str) -> Any:
        """One request; `tus=...` names the protocol."""
        words = {name.replace("_", "-"): value for name, value in headers.items()}
        return SESSION.request(method, url, data=body, timeout=20, headers={**self.server.auth, **words})

    def took(self, body: bytes, *, complete: bool) -> None:
        """The server said that it took `body`."""
        self.held += body
        if complete:
            self.complete, self.length = True, len(self.held)

    @initialize(known=st.booleans(), length=st.integers(1, 40), tus=st.booleans(), body=st.binary(max_size=8))
    def create(self, known: bool, length: int, tus: bool, body: bytes) -> None:
        """An upload made by either protocol, its length told or not, with its first bytes or without."""
        self.length, first = (length if known else None), os.urandom(len(body))[:length]
        headers = {"Upload-Length": str(length)} if known else {"Upload-Defer-Length": "1"} if tus else {}
        if tus:
            headers |= {"Tus-Resumable": "1.0.0"}
            headers |= {"Content-Type": OFFSET_TYPE} if first else {}
        else:
            headers["Upload-Complete"] = "?0"
        answer = self.ask("POST", f"{self.server.url}/files", first, **headers)
        assert answer.status_code == 201, answer.text
        self.url = answer.headers["Location"]
        self.took(first, complete=tus and len(first) == self.length)

    @rule(shift=st.sampled_from([0, 0, 0, 0, -1, 1]), size=st.integers(0, 12), tell=st.integers(0, 50) | st.none())
    def patch(self, shift: int, size: int, tell: int | None) -> None:
        """tus PATCH, perhaps at a wrong offset, perhaps telling the length."""
        offset, body = max(0, len(self.held) + shift), os.urandom(size)
        headers = {"Tus-Resumable": "1.0.0", "Content-Type": OFFSET_TYPE, "Upload-Offset": str(offset)}
        if tell is not None:
            headers["Upload-Length"] = str(tell)
        answer = self.ask("PATCH", self.url, body, **headers)
        if self.gone:
            assert answer.status_code == 410
        elif answer.status_code == 204:
            assert offset == len(self.held)
            if self.complete:
                assert not body
                return
            if tell is not None:
                assert self.length in (None, tell)
                self.length = tell
            self.took(body, complete=len(self.held) + size == self.length)
        else:
            wrong = offset != len(self.held)
            room = self.length if self.length is not None else tell
            too_long = room is not None and offset + size > room
            contradicts = tell is not None and (self.length not in (None, tell) or tell < len(self.held))
            assert wrong or too_long or contradicts, (answer.status_code, answer.text)
            assert answer.status_code in (400, 409, 413)

    @rule(shift=st.sampled_from([0, 0, 0, -1, 1]), size=st.integers(0, 12), ends=st.booleans())
    def append(self, shift: int, size: int, ends: bool) -> None:
        """RUFH append, perhaps the last one."""
        offset, body = max(0, len(self.held) + shift), os.urandom(size)
        headers = {"Content-Type": PARTIAL_TYPE, "Upload-Offset": str(offset)}
        answer = self.ask("PATCH", self.url, body, Upload_Complete="?1" if ends else "?0", **headers)
        if self.gone:
            assert answer.status_code == 410
        elif answer.status_code == 204:
            assert offset == len(self.held)
            if self.complete:
                assert not body
                return
            self.took(body, complete=ends)
            if ends:
                assert answer.headers["Upload-Complete"] == "?1"
        elif answer.status_code == 409:
            assert offset != len(self.held)
        elif answer.status_code == 413:
            assert self.length is not None and offset + size > self.length and not ends
            self.gone = True  # it passed the length
        else:
            assert answer.status_code == 400, (answer.status_code, answer.text)
            assert self.complete or (ends and self.length not in (None, offset + size))

    @rule(tus=st.booleans())
    def delete(self, tus: bool) -> None:
        """Rarely: the upload is given up."""
        if len(self.held) % 7 != 3:
            return
        answer = self.ask("DELETE", self.url, **({"Tus-Resumable": "1.0.0"} if tus else {}))
        assert answer.status_code == (410 if self.gone else 204)
        self.gone = True

    @invariant()
    def both_protocols_tell_what_the_model_knows(self) -> None:
        """RUFH first, for tus takes an offset at the end for the end."""
        if not self.url:
            return
        head = self.ask("HEAD", self.url)
        if self.gone:
            assert head.status_code == 410
            return
        assert int(head.headers["Upload-Offset"]) == len(self.held)
        assert head.headers["Upload-Complete"] == ("?1" if self.complete else "?0")
        assert head.headers.get("Upload-Length") == (None if self.length is None else str(self.length))
        if self.complete:
            assert self.ask("GET", self.url).content == self.held


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    server = Server(tmp_path_factory.mktemp("walk") / "server", extra="[uploads]\nmax_open_per_principal = 1000000\n")
    SERVER.append(server.start())
    yield
    SERVER.clear()
    assert server.command("fsck").returncode == 0
    server.stop()
    assert "Traceback" not in Path(server.folder / "server.log").read_text()


def test_both_protocols_agree_with_a_model(walked: None) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis leaves it untyped
        UploadWalk,
        settings=settings(
            max_examples=40,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
