"""A hundred identical POSTs at once, over two workers, and each sent again when its answer was lost: one effect."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from tests.server import Server, create, patch, sha256, upload_metadata

COUNT = 100


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), arguments=("--workers", "2")).start()
    yield running
    running.stop()


@pytest.fixture
def content() -> bytes:
    return uuid.uuid4().bytes * 100


def at_once(call: Callable[[], Any]) -> list[Any]:
    """The answers of a hundred calls that begin together."""
    with ThreadPoolExecutor(20) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(COUNT)]]


def rows(server: Server, session_id: str) -> list[tuple[str, str | None]]:
    """Each step of the session: the action, and the status that it came to."""
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
        found = database.execute(
            "SELECT action, detail FROM audit WHERE subject = ? ORDER BY seq", [session_id]
        ).fetchall()
    return [(action, json.loads(detail).get("to")) for action, detail in found if action != "session.refused"]


def session_call(server: Server, session_id: str, name: str, body: Any, **headers: str) -> Callable[[], Any]:
    return lambda: server.api("POST", f"/upload-sessions/{session_id}/{name}/", body, **headers)


def test_each_step_of_a_session_is_made_once(two_workers: Server, content: bytes) -> None:
    server, order = two_workers, uuid.uuid4().hex
    body = {"file_name": "a.bin", "file_size": len(content), "checksum_sha256": sha256(content)}
    made = at_once(
        lambda: server.api("POST", "/upload-sessions/create_session/", {**body, "radiology_order_id": order})
    )
    assert [answer.status_code for answer in made].count(201) == 1
    (session_id,) = {answer.json()["session_id"] for answer in made}

    answers = at_once(session_call(server, session_id, "upload_metadata", {"metadata": {"view": "PA"}}))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(not answer.json().get("replayed", False) for answer in answers) == 1

    answers = at_once(session_call(server, session_id, "upload_binary", {"resume_from": 0}))
    (url,) = {answer.json()["upload_url"] for answer in answers}
    patch(server, url, content)
    image = server.api("GET", f"/upload-sessions/{session_id}/").json()["server_image_id"]

    answers = at_once(session_call(server, session_id, "acknowledge", {"server_image_id": image}))
    assert {answer.json()["safe_to_delete_local"] for answer in answers} == {True}
    steps = rows(server, session_id)
    assert len([step for step in steps if step[0] == "upload.created"]) == 1
    statuses = [status for action, status in steps if action == "session.status"]
    assert len(statuses) == len(set(statuses)), steps


@pytest.mark.parametrize("name", ["cancel", "report_failure", "retry"])
def test_what_ends_a_session_or_begins_it_anew_is_done_once(two_workers: Server, content: bytes, name: str) -> None:
    server = two_workers
    session_id = create(server, content, radiology_order_id=uuid.uuid4().hex)["session_id"]
    bodies = {"cancel": {"reason": "wrong file"}, "report_failure": {"error_code": "LOCAL_READ_ERROR"}, "retry": None}
    if name == "retry":
        told = session_call(server, session_id, "report_failure", {"error_code": "LOCAL_READ_ERROR"})()
        assert told.status_code == 200, told.text
    before = len(rows(server, session_id))
    key = {"Idempotency_Key": uuid.uuid4().hex}
    answers = at_once(session_call(server, session_id, name, bodies[name], **key))
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert len(rows(server, session_id)) == before + 1
    view = server.api("GET", f"/upload-sessions/{session_id}/").json()
    assert view["retry_count"] == (1 if name == "retry" else 0)


def test_a_batch_makes_each_session_once(two_workers: Server, content: bytes) -> None:
    server, order = two_workers, uuid.uuid4().hex
    one = {
        "file_name": "a.bin",
        "file_size": len(content),
        "checksum_sha256": sha256(content),
        "radiology_order_id": order,
        "metadata": {},
    }
    answers = at_once(lambda: server.api("POST", "/upload-sessions/batch/", {"sessions": [one]}))
    assert {answer.status_code for answer in answers} == {200}
    listed = server.api("GET", f"/upload-sessions/?radiology_order_id={order}").json()["results"]
    assert len(listed) == 1


def test_a_creation_by_tus_makes_one_upload(two_workers: Server, content: bytes) -> None:
    server, order = two_workers, uuid.uuid4().hex
    raw = upload_metadata(filename="a.bin", radiology_order_id=order, checksum_sha256=sha256(content))
    answers = at_once(lambda: server.tus("POST", "/files", Upload_Length=str(len(content)), Upload_Metadata=raw))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.headers["Location"] for answer in answers}) == 1
