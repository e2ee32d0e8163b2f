"""`/api/v1/events` of real servers: in order, nothing missed over a reconnect, and only what the caller may see."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from storage import audit
from storage.backends import migrate, open_store
from storage.records import AuditEntry
from tests import builders
from tests.server import Server, create, patch, sha256, upload_url
from tests.support import eventually


class Listener:
    """A client of the stream in a thread of its own: what it heard, as (id, kind, body)."""

    def __init__(
        self, server: Server, query: str = "", token: str | None = None, last: int | None = None, *, bare: bool = False
    ) -> None:
        headers = {"Accept": "text/event-stream"}
        if not bare:
            headers["Authorization"] = f"Bearer {token or server.token}"
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        self.heard: list[tuple[int, str, dict[str, Any]]] = []
        self.last = last or 0
        self.ended = False
        self.answer = requests.get(f"{server.url}/api/v1/events{query}", headers=headers, stream=True, timeout=60)
        assert self.answer.status_code == 200, self.answer.text
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        block: dict[str, str] = {}
        try:
            for line in self.answer.iter_lines(chunk_size=1):
                if line:
                    name, _, value = line.decode().partition(": ")
                    block[name] = value
                    continue
                if "id" in block:
                    self.last = int(block["id"])
                if "data" in block:
                    self.heard.append((int(block["id"]), block["event"], json.loads(block["data"])))
                block = {}
        except (requests.exceptions.RequestException, AttributeError, ValueError):
            pass  # the line was cut, or we closed it
        self.ended = True

    def kinds(self) -> list[str]:
        return [kind for _, kind, _ in self.heard]

    def close(self) -> None:
        self.answer.raw.shutdown()  # close() alone would wait for what the thread reads: the next heartbeat
        self._thread.join()
        self.answer.close()


def store(server: Server, content: bytes, name: str = "a.bin", token: str | None = None, **fields: Any) -> str:
    """Bring a file in; gives its session."""
    if token is None:
        session = create(server, content, file_name=name, **fields)
        patch(server, upload_url(server, session["session_id"]), content)
        return str(session["session_id"])
    body = {"file_name": name, "file_size": len(content), "checksum_sha256": sha256(content), **fields}
    made = server.api("POST", "/upload-sessions/create_session/", body, token=token).json()["session_id"]
    server.api("POST", f"/upload-sessions/{made}/upload_metadata/", {}, token=token)
    url = server.api("POST", f"/upload-sessions/{made}/upload_binary/", {}, token=token).json()["upload_url"]
    server.tus("PATCH", url, content, token=token, Upload_Offset="0", Content_Type="application/offset+octet-stream")
    return str(made)


def token_of(server: Server, *words: str) -> str:
    made = server.command("token", "create", *words)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def polled(server: Server, query: str, token: str | None = None) -> list[dict[str, Any]]:
    """Every event from `after` on, page by page."""
    found: list[dict[str, Any]] = []
    place, more = 0, True
    while more:
        answer = server.api("GET", f"/events?after={place}&{query}", token=token).json()
        found += answer["results"]
        place, more = answer["next_after"], answer["more"]
    return found


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[Server]:
    extra = "[events]\nstudy_stable_s = 0.5\n"
    running = Server(tmp_path / "server", extra=extra, arguments=("--workers", "2")).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in (running.folder / "server.log").read_text()


STEPS = ["session.status", "session.status", "session.status", "image.stored", "session.synced"]


async def test_each_step_of_a_session_is_told_in_order_by_any_worker(two_workers: Server, ct: bytes) -> None:
    server = two_workers
    listeners = [Listener(server) for _ in range(4)]  # some on each worker
    session_id = store(server, ct, "a.dcm")
    for one in listeners:
        await eventually(lambda one=one: "study.stable" in one.kinds(), 5)  # type: ignore[misc]
        assert one.kinds() == [*STEPS, "study.stable"]
        assert [seq for seq, _, _ in one.heard] == sorted(body["data"]["seq"] for _, _, body in one.heard)
        statuses = [body["data"]["status"] for _, kind, body in one.heard if kind.startswith("session.")]
        assert statuses == ["METADATA_UPLOADING", "METADATA_UPLOADED", "BINARY_UPLOADING", "SYNCED"]
        synced = one.heard[-2][2]["data"]
        assert (synced["session_id"], synced["radiology_order_id"], synced["visit_id"]) == (session_id, 123, 77)
        assert synced["links"]["session"] == f"{server.url}/api/v1/upload-sessions/{session_id}/"
        stable = one.heard[-1][2]["data"]
        assert stable["images"] == 1 and stable["orders"] == [123]
        assert "CompressedSamples" not in json.dumps(one.heard), "the patient's name"
        one.close()
    assert [body["type"] for body in polled(server, "")] == [*STEPS, "study.stable"]


async def test_who_comes_again_with_the_last_id_misses_nothing_and_hears_nothing_twice(two_workers: Server) -> None:
    server, heard = two_workers, list[tuple[int, str, dict[str, Any]]]()
    done = threading.Event()

    def send() -> None:
        for _ in range(30):
            store(server, uuid.uuid4().bytes, radiology_order_id=uuid.uuid4().hex)
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    last = 0
    while True:
        over = done.is_set()
        listener = Listener(server, last=last)
        await eventually(lambda one=listener: len(one.heard) >= 7 or done.is_set(), 30)  # type: ignore[misc]
        left = 150 - len(heard)
        if over:
            await eventually(lambda one=listener, left=left: len(one.heard) >= left)  # type: ignore[misc]
        listener.close()
        taken = list(listener.heard)
        heard += taken
        last = taken[-1][0] if taken else last
        if over:
            break
    sender.join()
    assert [body["data"]["seq"] for body in polled(server, "")] == [seq for seq, _, _ in heard]
    assert len(heard) == 150


async def test_a_restart_and_a_kill_lose_no_event(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    try:
        first = Listener(server)
        store(server, b"one", radiology_order_id="1")
        await eventually(lambda: len(first.heard) == 5)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5, "streams end when the server does"
        await eventually(lambda: first.ended)
        server.restart()
        store(server, b"two", radiology_order_id="2")
        server.kill()
        server.restart()
        second = Listener(server, "?after=0", last=first.last)
        await eventually(lambda: len(second.heard) >= 5)
        assert second.heard[0][0] > first.last
        assert [*first.kinds(), *second.kinds()] == [body["type"] for body in polled(server, "")]
        second.close()
    finally:
        server.stop()


async def test_only_what_was_asked_for_is_told(shared_server: Server, tmp_path: Path) -> None:
    server = shared_server
    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    path = builders.ct(tmp_path / "one.dcm", rows=16, columns=16)
    session_id = store(server, path.read_bytes(), "a.dcm", radiology_order_id=one)
    store(server, b"another", radiology_order_id=other)
    image = server.api("GET", f"/upload-sessions/{session_id}/").json()["images"][0]
    of_order = polled(server, f"radiology_order_id={one}")
    assert [body["type"] for body in of_order] == STEPS
    assert polled(server, f"session_id={session_id}") == of_order
    assert polled(server, f"study_instance_uid={image['study_instance_uid']}") == of_order
    assert polled(server, f"radiology_order_id={other}&session_id={session_id}") == []
    listener = Listener(server, f"?after=0&radiology_order_id={one}")
    await eventually(lambda: listener.kinds() == STEPS)
    listener.close()


def test_nobody_hears_of_what_is_not_shown_to_him(shared_server: Server) -> None:
    server = shared_server
    maker, stranger = token_of(server, "--role", "uploader"), token_of(server, "--role", "uploader")
    viewer, auditor = token_of(server, "--role", "viewer"), token_of(server, "--role", "auditor")
    visit, other_visit = (token_of(server, "--role", "viewer", "--visit", name) for name in ("v1", "v2"))
    elsewhere = token_of(server, "--role", "admin", "--site", "elsewhere")
    order = uuid.uuid4().hex
    server.api("PUT", f"/orders/{order}", {"visit_id": "v1"})
    store(server, uuid.uuid4().bytes, token=maker, radiology_order_id=order)
    query = f"radiology_order_id={order}"
    for token, hears in ((maker, True), (stranger, False), (viewer, True), (auditor, True), (visit, True),
                         (other_visit, False), (elsewhere, False)):
        assert [body["type"] for body in polled(server, query, token)] == (STEPS if hears else [])
    assert requests.get(f"{server.url}/api/v1/events", timeout=5).status_code == 401
    assert server.api("HEAD", "/events", Accept="text/event-stream").headers["Content-Type"] == "text/event-stream"


async def test_a_study_is_told_stable_once_for_each_time_that_it_falls_quiet(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra="[events]\nstudy_stable_s = 1.0\n").start()
    try:
        listener = Listener(server)

        def stable() -> list[int]:
            return [body["data"]["images"] for _, kind, body in listener.heard if kind == "study.stable"]

        def send(number: int) -> None:
            path = builders.ct(tmp_path / f"{number}.dcm", rows=16, columns=16, StudyInstanceUID="1.2.3", seed=number)
            store(server, path.read_bytes(), "a.dcm", radiology_order_id="5")

        send(1)
        send(2)
        assert stable() == []
        await eventually(lambda: stable() == [2], 5)
        send(3)
        await eventually(lambda: stable() == [2, 3], 5)
        server.stop()
        server.restart()
        store(server, b"something else", radiology_order_id="6")
        assert [body["data"].get("images") for body in polled(server, "") if body["type"] == "study.stable"] == [2, 3]
    finally:
        server.stop()


def test_an_order_is_told_complete_when_its_images_are_there(shared_server: Server, tmp_path: Path) -> None:
    order = uuid.uuid4().hex
    assert shared_server.api("PUT", f"/orders/{order}", {"expected_images": 2}).status_code in (200, 201)
    for number in range(2):
        assert "order.complete" not in [body["type"] for body in polled(shared_server, f"radiology_order_id={order}")]
        path = builders.ct(tmp_path / f"{number}.dcm", rows=16, columns=16, seed=number)
        store(shared_server, path.read_bytes(), "a.dcm", radiology_order_id=order)
    told = [body["data"] for body in polled(shared_server, f"radiology_order_id={order}")
            if body["type"] == "order.complete"]
    assert [(one["radiology_order_id"], one["images"], one["expected_images"]) for one in told] == [(order, 2, 2)]


def test_pollers_go_on_from_where_they_were(shared_server: Server) -> None:
    server = shared_server
    place = server.api("GET", "/events", Accept="application/json").json()
    assert (place["results"], place["more"]) == ([], False)
    store(server, uuid.uuid4().bytes, radiology_order_id=uuid.uuid4().hex)
    after, seen = place["next_after"], []
    for _ in range(3):
        answer = server.api("GET", f"/events/?after={after}&limit=2")
        assert answer.headers["Cache-Control"] == "no-store"
        seen += [body["type"] for body in answer.json()["results"]]
        after = answer.json()["next_after"]
    assert seen == STEPS and answer.json()["more"] is False
    assert server.api("GET", f"/events?after={10**14}").json()["next_after"] < 10**14


@pytest.mark.parametrize(
    "query", ["after=x", "after=-1", "after=1&limit=0", "after=1&limit=501", "after=1&study_instance_uid=a",
              "after=1&session_id=%20", "after=1&radiology_order_id=a/b", f"after={'9' * 16}"])
def test_what_cannot_be_a_place_or_an_id_is_refused(shared_server: Server, query: str) -> None:
    refused = shared_server.api("GET", f"/events?{query}")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_field")


async def test_so_many_may_listen_and_no_more(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra="[events]\nmax_streams = 2\n").start()
    try:
        listeners = [Listener(server) for _ in range(2)]
        refused = server.api("GET", "/events", Accept="text/event-stream")
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
        assert refused.headers["Retry-After"]
        assert server.api("GET", "/events?after=0").status_code == 200, "pollers are not counted"
        listeners[0].close()

        def is_let_in() -> bool:
            store(server, uuid.uuid4().bytes, radiology_order_id=uuid.uuid4().hex)  # who left is noticed at a write
            answer = requests.get(f"{server.url}/api/v1/events", headers=server.auth, stream=True, timeout=5)
            answer.close()
            return answer.status_code == 200

        await eventually(is_let_in)
    finally:
        server.stop()


async def test_one_token_keeps_nobody_else_from_listening(tmp_path: Path) -> None:
    limits = "[events]\nmax_streams = 3\nmax_streams_per_principal = 2\n"
    server = Server(tmp_path / "server", extra=limits).start()
    try:
        token = token_of(server, "--role", "viewer")
        listeners = [Listener(server, token=token) for _ in range(2)]
        refused = server.api("GET", "/events", token=token, Accept="text/event-stream")
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
        listeners.append(Listener(server))
        for one in listeners:
            one.close()
    finally:
        server.stop()


def test_a_narrowed_token_hears_of_no_link_that_was_undone_and_of_no_order_of_others(shared_server: Server) -> None:
    server, prefix = shared_server, uuid.uuid4().hex
    mine, wrong, other = (f"{prefix}-{name}" for name in ("mine", "wrong", "other"))
    for order, visit in ((mine, "77"), (wrong, "v9"), (other, "v10")):
        server.api("PUT", f"/orders/{order}", {"visit_id": visit})
    session_id = store(server, uuid.uuid4().bytes, radiology_order_id=mine)
    image_id = server.api("GET", f"/upload-sessions/{session_id}/").json()["server_image_id"]
    for order, verb in ((wrong, "link"), (other, "link"), (wrong, "unlink")):
        body = {"radiology_order_id": order, "reason": "wrong patient"}
        assert server.api("POST", f"/images/{image_id}/{verb}/", body).status_code == 200
    own = token_of(server, "--role", "viewer", "--visit", "77")
    of_wrong = server.api("POST", "/tokens/", {"role": "viewer", "radiology_order_id": wrong}).json()["token"]
    heard = polled(server, f"radiology_order_id={mine}", own)
    assert [body["data"]["orders"] for body in heard if body["type"] == "image.stored"] == [[mine]]
    assert polled(server, "", of_wrong) == []
    mixed = server.api("POST", "/tokens/", {"role": "viewer", "visit_id": "77", "radiology_order_id": other})
    assert polled(server, "", mixed.json()["token"]) == []  # that order belongs to another visit


async def test_a_token_that_is_revoked_hears_no_more(shared_server: Server) -> None:
    token = token_of(shared_server, "--role", "viewer")
    listener = Listener(shared_server, token=token)
    assert shared_server.command("token", "revoke", token, "--reason", "it is lost").returncode == 0
    await eventually(lambda: listener.ended, 5)


@pytest.mark.slow
async def test_who_reads_too_slowly_is_dropped_and_others_are_told_on(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    (folder / "data").mkdir(parents=True)
    migrate(folder / "data" / "packhorse.db")
    opened = open_store(folder / "data" / "packhorse.db", folder / "data" / "blobs")

    def many(tx: Any) -> None:
        for _ in range(2000):
            audit.append(tx, AuditEntry("default", "session.status", subject=uuid.uuid4().hex * 2, detail={
                "from": "QUEUED", "to": "FAILED", "error_code": "X" * 300}))

    for _ in range(15):
        await opened.write(many)
    await opened.close()
    server = Server(folder).start()
    try:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect((host, int(port)))
            line.sendall(f"GET /api/v1/events?after=0 HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n"
                         f"Authorization: Bearer {server.token}\r\n\r\n".encode())
            log = server.folder / "server.log"
            good = Listener(server)
            store(server, b"one")
            await eventually(lambda: len(good.heard) == 5)
            await eventually(lambda: "events.slow_reader" in log.read_text(), 30)
            good.close()
    finally:
        server.stop()


async def test_every_row_that_is_told_has_its_name_and_its_ids(tmp_path: Path) -> None:
    from server.event_rows import events_of

    migrate(tmp_path / "p.db")
    opened = open_store(tmp_path / "p.db", tmp_path / "blobs")
    entries = [
        AuditEntry("default", "delivery.attempt", subject="image/7", outcome="delivered", detail={
            "destination": "main-pacs", "attempt": 1, "status": "0000"}),
        AuditEntry("default", "delivery.attempt", subject="image/7", outcome="retry", detail={"attempt": 1}),
        AuditEntry("default", "delivery.attempt", subject="image/7", outcome="parked", detail={"attempt": 2}),
        AuditEntry("default", "integrity.alarm", subject=f"blob/{'a' * 64}", detail={
            "sha256": "a" * 64, "image_ids": [7], "session_ids": ["s"], "damage": "gone"}),
        AuditEntry("default", "order.complete", subject="order/5", detail={"images": 3, "expected_images": 3}),
        AuditEntry("default", "study.stable", subject="1.2.3", detail={"images": 3}),
        AuditEntry("default", "image.read", subject="image/7"),
    ]
    try:
        await opened.write(lambda tx: [audit.append(tx, entry) for entry in entries])
        told = [event.body("") for event in await opened.read(lambda tx: events_of(tx, audit.after(tx, 0, 100)))]
    finally:
        await opened.close()
    assert [body["type"] for body in told] == [
        "forward.delivered", "forward.parked", "integrity.alarm", "order.complete", "study.stable"]
    data = {body["type"]: body["data"] for body in told}
    assert data["forward.delivered"]["destination"] == "main-pacs" and data["forward.delivered"]["image_id"] == 7
    assert data["integrity.alarm"]["sha256"] == "a" * 64 and data["integrity.alarm"]["session_ids"] == ["s"]
    assert data["order.complete"] | {"radiology_order_id": "5", "images": 3} == data["order.complete"]
    assert data["study.stable"]["links"] == {"study": "/api/v1/studies/1.2.3/"}
