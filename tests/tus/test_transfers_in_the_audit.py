"""Each byte that a server confirmed is in the audit: also after `kill -9`, of the server or of one of its workers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server, create, patch, upload_url
from tests.support import eventually
from tests.tus.speaking_tus import half_sent, random_bytes, wait_for_bytes

PIECE = 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server").start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server", arguments=("--workers", "2")).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in (running.folder / "server.log").read_text()


def rows_of(server: Server, session_id: str) -> list[dict[str, Any]]:
    return list(server.api("GET", f"/upload-sessions/{session_id}/history/").json()["results"])


def transfers(server: Server, session_id: str) -> list[tuple[int, int, str]]:
    return [
        (row["detail"]["offset_before"], row["detail"]["offset_after"], row["outcome"])
        for row in rows_of(server, session_id)
        if row["action"] == "upload.transfer"
    ]


def check_no_gap(found: list[tuple[int, int, str]], end: int) -> None:
    """Every row begins where the one before it ended."""
    assert [before for before, _, _ in found] == [0, *(after for _, after, _ in found[:-1])], found
    assert found[-1][1] == end, found


def begun(server: Server, content: bytes, pieces: int) -> tuple[str, str]:
    """A session whose first pieces were sent, each answered 204."""
    session_id = create(server, content, file_name="a.bin")["session_id"]
    url = upload_url(server, session_id)
    for offset in range(0, pieces * PIECE, PIECE):
        assert patch(server, url, content[offset : offset + PIECE], offset).status_code == 204
    return session_id, url


def test_what_was_confirmed_before_a_kill_is_told_at_the_next_start(server: Server) -> None:
    content = random_bytes(1000, 1)
    session_id, url = begun(server, content, 5)
    server.kill()
    server.restart()
    assert transfers(server, session_id) == [(0, 500, "crashed")]
    assert server.tus("HEAD", url).headers["Upload-Offset"] == "500"
    assert patch(server, url, content[500:], 500).headers["Packhorse-Status"] == "SYNCED"
    assert transfers(server, session_id) == [(0, 500, "crashed"), (500, 1000, "ok")]


def test_a_body_that_a_kill_cut_is_told_up_to_what_is_held(server: Server) -> None:
    content = random_bytes(1000, 2)
    session_id, url = begun(server, content, 2)
    half_sent(server, url, content[200:], 300, 200)
    wait_for_bytes(server, session_id, 500)
    server.kill()
    server.restart()
    assert transfers(server, session_id) == [(0, 500, "crashed")]


def test_an_upload_that_is_ended_after_a_kill_tells_its_bytes_before_its_end(server: Server) -> None:
    content = random_bytes(1000, 3)
    session_id, url = begun(server, content, 2)
    server.kill()
    server.restart()
    assert server.tus("DELETE", url).status_code == 204
    actions = [row["action"] for row in rows_of(server, session_id)]
    assert actions.index("upload.transfer") < actions.index("upload.terminated")


def test_restarts_in_turn_tell_each_byte_once(server: Server) -> None:
    content = random_bytes(1000, 4)
    session_id, url = begun(server, content, 1)
    for offset in range(PIECE, 5 * PIECE, PIECE):
        server.kill()
        server.restart()
        assert patch(server, url, content[offset : offset + PIECE], offset).status_code == 204
    server.stop()
    server.restart()
    check_no_gap(transfers(server, session_id), 500)


def test_a_refused_request_loses_no_account_of_those_before_it(server: Server) -> None:
    content = random_bytes(1000, 7)
    session_id, url = begun(server, content, 1)
    assert patch(server, url, content[100:200], 100, Upload_Length="7").status_code == 400
    assert server.stop() == 0
    server.restart()
    assert transfers(server, session_id) == [(0, 100, "ok")]


def test_pieces_that_land_on_two_workers_are_told_without_a_gap_and_by_who_took_them(workers: Server) -> None:
    content = random_bytes(2000, 5)
    session_id, url = begun(workers, content, 19)
    assert patch(workers, url, content[1900:], 1900).headers["Packhorse-Status"] == "SYNCED"
    found = transfers(workers, session_id)
    check_no_gap(found, 2000)
    assert {outcome for _, _, outcome in found} == {"ok"}


async def test_a_worker_that_was_killed_leaves_no_gap(workers: Server) -> None:
    content = random_bytes(2000, 6)
    session_id, url = begun(workers, content, 8)
    for pid in http_workers(workers):  # whichever had taken the last piece
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: answers(workers))
    assert patch(workers, url, content[800:], 800).headers["Packhorse-Status"] == "SYNCED"
    found = transfers(workers, session_id)
    check_no_gap(found, 2000)
    assert "crashed" in {outcome for _, _, outcome in found}


def http_workers(server: Server) -> list[int]:
    assert server.process is not None
    text = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(word) for word in text.split()[:2]]


def answers(server: Server) -> bool:
    try:
        return bool(server.api("GET", "/").status_code)
    except OSError:
        return False
