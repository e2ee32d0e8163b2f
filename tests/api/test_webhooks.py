"""Webhooks against a real receiver: signed, repeated until taken, each event under one id, nothing lost by a crash."""

import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from standardwebhooks import Webhook, WebhookVerificationError

from server.auth import Principal, Role
from server.webhooks.service import Webhook as Receiving
from server.webhooks.service import Webhooks
from storage import jobs, webhooks
from storage.backends import migrate, open_store
from storage.records import WebhookDeliveryRecord, now, timestamp
from storage.store import Store
from storage.tables import job, webhook_delivery
from tests.server import Server, create, patch, upload_url
from tests.support import eventually, free_port

SECRET = "whsec_bWFrZSBhIGxvbmcgcmFuZG9tIG9uZQ=="


class Receiver:
    """An HTTP server that answers with `status` and remembers what it was sent."""

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.hangs_s = 0.0
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                threading.Event().wait(receiver.hangs_s)
                self.send_response(receiver.status)
                if receiver.status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Stay quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def events(self) -> list[dict[str, Any]]:
        """What was sent, each verified by an independent library."""
        return [dict(Webhook(SECRET).verify(body, headers)) for headers, body in self.got]

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


def telling(folder: Path, url: str, events: str = '["*"]') -> Server:
    """A server that tells `url`; it repeats itself quickly."""
    extra = f'[forward]\nfirst_retry_s = 0.05\n[[webhooks]]\nurl = "{url}"\nsecret = "{SECRET}"\nevents = {events}\n'
    return Server(folder / "server", extra=extra).start()


def store(server: Server, content: bytes, name: str = "a.dcm") -> str:
    """Bring one file in; gives its session."""
    session = create(server, content, file_name=name, radiology_order_id=uuid.uuid4().hex)
    patch(server, upload_url(server, session["session_id"]), content)
    return str(session["session_id"])


async def test_what_happens_is_told_once_and_signed(tmp_path: Path, receiver: Receiver, ct: bytes) -> None:
    server = telling(tmp_path, receiver.url)
    try:
        session_id = store(server, ct)
        refused = store(server, b"no DICOM", "b.dcm")
        await eventually(lambda: len(receiver.got) >= 3)
        events = receiver.events()
        assert sorted(one["type"] for one in events) == ["image.stored", "session.failed", "session.synced"]
        by_type = {one["type"]: one["data"] for one in events}
        assert by_type["session.synced"]["session_id"] == session_id
        assert (by_type["session.failed"]["session_id"], by_type["session.failed"]["error_code"]) == (
            refused,
            "NOT_DICOM",
        )
        assert by_type["image.stored"]["sop_instance_uid"]
        assert b"CompressedSamples" not in b"".join(body for _, body in receiver.got)  # the patient's name
        ids = [headers["webhook-id"] for headers, _ in receiver.got]
        assert len(set(ids)) == len(ids)

        def delivered() -> list[dict[str, Any]]:
            return list(server.api("GET", "/webhooks/deliveries/?status=delivered").json()["results"])

        await eventually(lambda: len(delivered()) == 3)
        rows = delivered()
        assert {row["event_id"] for row in rows} == set(ids) and {row["attempts"] for row in rows} == {1}
    finally:
        server.stop()


def test_another_secret_does_not_verify() -> None:
    from server.webhooks.signing import signed_headers

    headers = signed_headers("another", "evt_1", 1_700_000_000, b"{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b"{}", headers)


async def test_a_receiver_that_fails_is_told_again_under_the_same_id(tmp_path: Path, receiver: Receiver) -> None:
    receiver.status = 500
    server = telling(tmp_path, receiver.url, '["session.synced"]')
    try:
        store(server, b"a letter", "a.txt")
        await eventually(lambda: len(receiver.got) >= 2, 20)
        receiver.status = 200
        await eventually(lambda: server.api("GET", "/webhooks/deliveries/?status=delivered").json()["results"], 20)
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        assert receiver.events()[0]["type"] == "session.synced"
    finally:
        server.stop()


@pytest.mark.parametrize("status", [410, 302])
async def test_a_receiver_that_wants_no_more_is_left_alone(tmp_path: Path, receiver: Receiver, status: int) -> None:
    receiver.status = status
    server = telling(tmp_path, receiver.url, '["session.synced"]')
    try:
        store(server, b"a letter", "a.txt")
        await eventually(lambda: bool(receiver.got), 20)
        if status == 410:
            await eventually(lambda: server.api("GET", "/webhooks/deliveries/?status=parked").json()["results"])
            row = server.api("GET", "/webhooks/deliveries/").json()["results"][0]
            assert (row["last_status"], row["attempts"]) == (410, 1)
            receiver.status = 200
            path = f"/webhooks/deliveries/{row['id']}/resend/"
            assert server.api("POST", path, {}).status_code == 422
            assert server.api("POST", path, {"reason": "they are back"}).status_code == 200
            await eventually(lambda: len(receiver.got) == 2)
            assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]
        else:  # a redirect is not followed, and not taken for an answer
            await eventually(lambda: len(receiver.got) >= 2, 20)
    finally:
        server.stop()


async def test_what_was_not_told_before_a_crash_is_told_after_it(tmp_path: Path) -> None:
    port = free_port()
    server = telling(tmp_path, f"http://127.0.0.1:{port}/hook", '["session.synced"]')
    try:
        sessions = [store(server, uuid.uuid4().bytes, "a.bin") for _ in range(5)]
        server.kill()
        server.restart()
        receiver = Receiver(port)
        try:
            told: set[str] = set()

            def all_told() -> bool:
                told.update(event["data"]["session_id"] for event in receiver.events())
                return told == set(sessions)

            await eventually(all_told, 30)
        finally:
            receiver.close()
    finally:
        server.stop()


async def test_without_a_secret_calls_go_unsigned_with_a_warning(tmp_path: Path, receiver: Receiver) -> None:
    server = Server(tmp_path / "server", extra=f'[[webhooks]]\nurl = "{receiver.url}"\nsecret = ""\n').start()
    try:
        store(server, b"a letter", "a.txt")
        await eventually(lambda: bool(receiver.got))
        assert "webhook-signature" not in receiver.got[0][0] and receiver.got[0][0]["webhook-id"]
        assert "unsigned" in (server.folder / "server.log").read_text()
        checked = server.command("config", "check")
        assert checked.returncode == 0 and "unsigned" in checked.stderr
    finally:
        server.stop()


async def test_a_receiver_that_hangs_delays_no_other(tmp_path: Path, receiver: Receiver) -> None:
    slow = Receiver()
    slow.hangs_s = 5.0
    both = "".join(f'[[webhooks]]\nurl = "{one.url}"\nsecret = "{SECRET}"\n' for one in (slow, receiver))
    server = Server(tmp_path / "server", extra=both).start()
    try:
        for _ in range(6):
            store(server, uuid.uuid4().bytes, "a.bin")
        await eventually(lambda: len(receiver.got) == 12, 4)
        assert len(slow.got) <= 2
    finally:
        slow.hangs_s = 0.0
        server.stop()
        slow.close()


@pytest.fixture
async def facts(tmp_path: Path) -> AsyncIterator[Store]:
    migrate(tmp_path / "p.db")
    opened = open_store(tmp_path / "p.db", tmp_path / "blobs")
    yield opened
    await opened.close()


async def called(facts: Store, service: Webhooks, delivery_id: int) -> WebhookDeliveryRecord:
    """The delivery after one more call of its job."""
    kind = next(kind for kind in service.job_kinds() if kind != "webhook")
    job = await facts.write(lambda tx: jobs.enqueue(tx, "default", kind, str(delivery_id), 60))
    await service.run_job(job)
    return await facts.read(lambda tx: webhooks.get(tx, delivery_id))


async def test_it_is_given_up_after_days_and_many_calls_and_a_resend_counts_anew(
    facts: Store, receiver: Receiver
) -> None:
    receiver.status = 500
    service = Webhooks(facts, (Receiving(receiver.url, SECRET, ("*",)),))
    one = await facts.write(lambda tx: webhooks.add(tx, "default", receiver.url, "evt_1", "image.stored", "{}"))

    def aged(days: int, attempts: int) -> Callable[[Connection], object]:
        values = {"created_at": timestamp(now() - timedelta(days=days)), "attempts": attempts}
        return lambda tx: tx.execute(webhook_delivery.update().values(**values))

    for days, attempts, state in ((4, 5, "waiting"), (1, 500, "waiting"), (4, 398, "waiting"), (4, 399, "parked")):
        await facts.write(aged(days, attempts))
        assert (await called(facts, service, one)).state == state, (days, attempts)
    operator = Principal("o", "default", Role.OPERATOR)
    assert (await service.resend(one, "they are back", operator, None)).attempts == 0
    again = await called(facts, service, one)
    assert (again.state, again.attempts) == ("waiting", 1)


async def test_what_waits_for_a_receiver_that_is_configured_no_more_is_parked(facts: Store, receiver: Receiver) -> None:
    old = Receiving(receiver.url, SECRET, ("*",))
    one = await facts.write(lambda tx: webhooks.add(tx, "default", old.url, "evt_1", "image.stored", "{}"))
    await facts.write(lambda tx: jobs.enqueue(tx, "default", old.job_kind, str(one)))
    await Webhooks(facts, (old,)).begin()
    assert (await facts.read(lambda tx: webhooks.get(tx, one))).state == "waiting"
    await Webhooks(facts, ()).begin()
    found = await facts.read(lambda tx: webhooks.get(tx, one))
    assert found.state == "parked" and "configured" in str(found.last_error)
    assert await facts.read(jobs.backlog) == {}


async def test_a_clock_that_was_set_back_holds_up_no_job(facts: Store) -> None:
    await facts.write(lambda tx: jobs.enqueue(tx, "default", "webhook", "1"))

    def waits(pause: timedelta) -> Callable[[Connection], object]:
        return lambda tx: tx.execute(job.update().values(run_after=timestamp(now() + pause)))

    for pause, is_due in ((timedelta(minutes=10), False), (timedelta(hours=1), True)):
        await facts.write(waits(pause))
        assert await facts.read(lambda tx: jobs.is_due(tx, "webhook")) is is_due
        assert (await facts.write(lambda tx: jobs.claim(tx, ("webhook",), 60)) is not None) is is_due


def test_only_operators_see_and_resend(shared_server: Server) -> None:
    token = shared_server.command("token", "create", "--role", "uploader").stdout.strip()
    assert shared_server.api("GET", "/webhooks/deliveries/", token=token).status_code == 403
    path = "/webhooks/deliveries/1/resend/"
    assert shared_server.api("POST", path, {"reason": "x"}, token=token).status_code == 403
    assert shared_server.api("POST", path, {"reason": "x"}).status_code == 404
    assert shared_server.api("GET", "/webhooks/deliveries/?status=lost").status_code == 422


def test_the_command_sends_a_signed_test_event(tmp_path: Path, receiver: Receiver) -> None:
    server = telling(tmp_path, receiver.url)
    try:
        done = server.command("webhook", "test", receiver.url)
        assert done.returncode == 0 and "answered 200" in done.stdout
        assert receiver.events()[0]["type"] == "webhook.test"
        receiver.status = 403
        assert server.command("webhook", "test", receiver.url).returncode == 1
        other = server.command("webhook", "test", "http://127.0.0.1:1/x", "--secret", "a")
        assert other.returncode == 1 and "does not answer" in other.stderr
        assert server.command("webhook", "test", "http://127.0.0.1:1/x").returncode == 2
        for bad in (
            ("nonsense",),
            ("nonsense", "--secret", "a"),
            ("http://[", "--secret", "a"),
            (receiver.url, "--secret", "whsec_!"),
        ):
            refused = server.command("webhook", "test", *bad)
            assert refused.returncode == 2 and refused.stderr.startswith("configuration: "), refused.stderr
            assert "answer" not in refused.stderr and "pydantic" not in refused.stderr
        told = (server.folder / "server.log").read_text() + done.stdout + other.stderr
        assert SECRET not in told and SECRET not in server.api("GET", "/webhooks/deliveries/").text
    finally:
        server.stop()
