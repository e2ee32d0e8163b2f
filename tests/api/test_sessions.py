"""The session calls when all goes well: dedup, retry, idempotency, lists, receipts, roles."""

import asyncio
import gzip
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from joserfc import jws
from joserfc.jwk import KeySet

from tests.server import Server, create, patch, sha256, upload_url
from tests.support import eventually

ROOT = "/visits/77/radiology/upload-sessions"


@pytest.fixture
def content() -> bytes:
    """Bytes of its own for each test, no DICOM."""
    return uuid.uuid4().bytes * 100


def stored(server: Server, content: bytes, **fields: Any) -> dict[str, Any]:
    """A session that is SYNCED."""
    session = create(server, content, **{"file_name": "a.bin", **fields})
    patch(server, upload_url(server, session["session_id"]), content)
    return dict(server.api("GET", f"/upload-sessions/{session['session_id']}/").json())


def call(server: Server, session: dict[str, Any], name: str, body: Any = None, **headers: str) -> Any:
    return server.api("POST", f"/upload-sessions/{session['session_id']}/{name}/", body, **headers)


def test_the_same_creation_again_is_the_same_session(shared_server: Server, content: bytes) -> None:
    session_id = str(uuid.uuid4())
    one = create(shared_server, content, session_id=session_id)
    two = create(shared_server, content, session_id=session_id)
    assert one["session_id"] == two["session_id"] == session_id and two["duplicate"] is False


def test_the_same_file_for_the_same_order_is_a_duplicate_and_the_asked_id_stays_an_alias(
    shared_server: Server, content: bytes
) -> None:
    first, alias = create(shared_server, content), str(uuid.uuid4())
    again = create(shared_server, content, session_id=alias)
    assert again["session_id"] == first["session_id"] and again["duplicate"] is True
    assert shared_server.api("GET", f"{ROOT}/{alias}/").json()["session_id"] == first["session_id"]


def test_another_order_sends_the_bytes_again_and_shares_the_blob(shared_server: Server, content: bytes) -> None:
    one = stored(shared_server, content)
    other = create(shared_server, content, radiology_order_id=124, file_name="a.bin")
    assert other["session_id"] != one["session_id"] and other["bytes_received"] == 0
    other = stored(shared_server, content, radiology_order_id=124)
    assert other["server_image_id"] == one["server_image_id"]
    assert set(other["images"][0]["orders"]) == {123, 124}


def test_ids_answer_in_the_form_first_received(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content, radiology_order_id="0123", created_by_id=7, device_id="clinic7-tab2")
    assert (session["radiology_order_id"], session["created_by_id"], session["device_id"]) == (
        "0123",
        7,
        "clinic7-tab2",
    )


def test_a_failed_session_keeps_its_progress_over_a_retry(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content, file_name="a.bin")
    url = upload_url(shared_server, session["session_id"])
    patch(shared_server, url, content[:500])
    assert (
        call(shared_server, session, "report_failure", {"error_code": "LOCAL_READ_ERROR"}).json()["status"] == "FAILED"
    )
    assert create(shared_server, content, file_name="a.bin")["hint"] == "retry"
    answer = call(shared_server, session, "retry").json()
    assert answer["resume"] == {"next": "upload_binary", "upload_offset": 500, "progress_preserved": True}
    assert (answer["retry_count"], answer["retries_left"]) == (1, 4)
    binary = call(shared_server, session, "upload_binary").json()
    assert (binary["upload_url"], binary["upload_offset"]) == (url, 500)
    assert patch(shared_server, url, content[500:], 500).headers["Packhorse-Status"] == "SYNCED"


def test_a_lost_answer_to_retry_burns_no_retry(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content)
    call(shared_server, session, "report_failure", {"error_code": "LOCAL_READ_ERROR"})
    key = str(uuid.uuid4())
    one = call(shared_server, session, "retry", None, Idempotency_Key=key).json()
    two = call(shared_server, session, "retry", None, Idempotency_Key=key).json()
    assert one["retry_count"] == two["retry_count"] == 1 and two["replayed"] is True


def test_a_lost_answer_to_cancel_can_be_asked_for_again(shared_server: Server, content: bytes) -> None:
    session, key = create(shared_server, content), str(uuid.uuid4())
    for _ in range(2):
        answer = call(shared_server, session, "cancel", {"reason": "wrong file"}, Idempotency_Key=key)
        assert (answer.status_code, answer.json()["error_code"]) == (200, "CLIENT_ABORTED")
    other = call(shared_server, create(shared_server, content + b"x"), "cancel", {"reason": "x"}, Idempotency_Key=key)
    assert other.json()["code"] == "idempotency_key_reused"


def test_a_hopeless_session_is_superseded(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content)
    call(shared_server, session, "cancel", {"reason": "wrong order"})
    new = create(shared_server, content)
    assert new["session_id"] != session["session_id"] and new["supersedes"] == session["session_id"]


def test_metadata_given_at_creation_is_confirmed_by_upload_binary(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content, metadata={"view": "PA"})
    assert call(shared_server, session, "upload_binary").json()["status"] == "BINARY_UPLOADING"
    again = call(shared_server, session, "upload_metadata", {"metadata": {"view": "PA"}})
    assert (again.status_code, again.json()["replayed"]) == (200, True)
    rows = shared_server.api("GET", f"{ROOT}/{session['session_id']}/history/").json()["results"]
    moves = [(row["detail"]["from"], row["detail"]["to"]) for row in rows if row["action"] == "session.status"]
    assert moves == [
        ("QUEUED", "METADATA_UPLOADING"),
        ("METADATA_UPLOADING", "METADATA_UPLOADED"),
        ("METADATA_UPLOADED", "BINARY_UPLOADING"),
    ]


def test_without_metadata_the_upload_is_not_handed_out(shared_server: Server, content: bytes) -> None:
    assert call(shared_server, create(shared_server, content), "upload_binary").json()["code"] == "metadata_required"


def test_of_a_stored_session_the_finished_upload_is_handed_out_and_nothing_is_left_to_send(
    shared_server: Server, content: bytes
) -> None:
    session = stored(shared_server, content)
    for status in ("SYNCED", "ACK_RECEIVED"):
        handed = call(shared_server, session, "upload_binary", {"resume_from": 0}).json()
        assert (handed["status"], handed["upload_offset"]) == (status, len(content)), handed
        assert shared_server.tus("HEAD", handed["upload_url"]).headers["Upload-Offset"] == str(len(content))
        call(shared_server, session, "acknowledge", {"server_image_id": session["server_image_id"]})


def test_a_batch_answers_each_for_itself(shared_server: Server, content: bytes) -> None:
    good = {
        "file_name": "a",
        "file_size": 1,
        "checksum_sha256": sha256(content),
        "radiology_order_id": 9,
        "metadata": {},
    }
    answer = shared_server.api("POST", "/upload-sessions/batch/", {"sessions": [good, {"file_name": "b"}]}).json()
    assert answer["results"][0]["session"]["status"] == "METADATA_UPLOADED"
    assert answer["results"][1]["problem"]["code"] in ("invalid_field", "checksum_required")


def test_a_stored_session_waits_for_its_ack_and_each_device_has_its_own(shared_server: Server, content: bytes) -> None:
    session = stored(shared_server, content, device_id="tab1")
    pending = shared_server.api("GET", f"{ROOT}/pending/?limit=500").json()["results"]
    assert next(row for row in pending if row["session_id"] == session["session_id"])["awaiting_ack"] is True
    body = {"server_image_id": session["server_image_id"]}
    first = call(shared_server, session, "acknowledge", body).json()
    assert (first["status"], first["safe_to_delete_local"], first["replayed"]) == ("ACK_RECEIVED", True, False)
    assert call(shared_server, session, "acknowledge", body).json()["replayed"] is True
    path = f"{ROOT}/{session['session_id']}/"
    assert shared_server.api("GET", f"{path}?device_id=tab2").json()["safe_to_delete_local"] is False
    assert call(shared_server, session, "acknowledge", {**body, "device_id": "tab2"}).json()["safe_to_delete_local"]
    assert shared_server.api("GET", f"{path}?device_id=tab2").json()["safe_to_delete_local"] is True


def test_the_receipt_is_verified_by_any_jose_library(shared_server: Server, content: bytes) -> None:
    session = stored(shared_server, content)
    receipt = shared_server.api("GET", f"{ROOT}/{session['session_id']}/receipt/").json()["receipt"]
    import requests

    keys = KeySet.import_key_set(requests.get(f"{shared_server.url}/.well-known/jwks.json", timeout=10).json())
    signed = jws.deserialize_compact(receipt, keys, algorithms=["Ed25519"])
    assert sha256(content).encode() in signed.payload and session["session_id"].encode() in signed.payload


def test_damage_on_the_disk_is_found_before_anybody_deletes_and_a_resend_repairs_it(
    server: Server, content: bytes
) -> None:
    session = stored(server, content)
    blob = next(Path(server.folder, "data/blobs/sealed").rglob(sha256(content)))
    blob.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    answer = call(server, session, "acknowledge", {"server_image_id": session["server_image_id"]})
    assert (answer.status_code, answer.json()["code"]) == (503, "readback_failed")
    assert server.api("GET", f"{ROOT}/{session['session_id']}/").json()["safe_to_delete_local"] is False
    again = stored(server, content)
    assert again["supersedes"] == session["session_id"] and blob.read_bytes() == content
    assert call(server, again, "acknowledge", {"server_image_id": again["server_image_id"]}).status_code == 200


def test_lists_come_in_pages(shared_server: Server) -> None:
    order = uuid.uuid4().hex
    made = {create(shared_server, uuid.uuid4().bytes, radiology_order_id=order)["session_id"] for _ in range(5)}
    seen: list[str] = []
    cursor = ""
    while True:
        page = shared_server.api("GET", f"/upload-sessions/?radiology_order_id={order}&limit=2{cursor}").json()
        seen += [row["session_id"] for row in page["results"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(seen) == 5 and set(seen) == made


def test_what_changed_since_a_moment_is_found_whatever_its_offset(shared_server: Server, content: bytes) -> None:
    order = uuid.uuid4().hex
    made = create(shared_server, content, radiology_order_id=order)
    changed = datetime.fromisoformat(made["updated_at"])

    def found(moment: datetime, zone: str) -> int:
        since = moment.astimezone(timezone(timedelta(hours=int(zone)))).isoformat(timespec="milliseconds")
        query = f"radiology_order_id={order}&updated_after={quote(since)}"
        return len(shared_server.api("GET", f"/upload-sessions/?{query}").json()["results"])

    second = timedelta(seconds=1)
    for zone in ("14", "-12", "0", "5"):
        assert (found(changed - second, zone), found(changed + second, zone)) == (1, 0), zone
    for path in ("", "pending/"):
        query = f"?radiology_order_id={order}&updated_after=2001-01-01t00:00:00.123456789z"
        assert len(shared_server.api("GET", f"/upload-sessions/{path}{query}").json()["results"]) == 1


@pytest.mark.parametrize(
    "since",
    ["foo", "", "2026-11-25", "2026-11-25T23:00:00", "2026-11-25T23:00:00 14:00", "2026-02-31T00:00:00Z",
     "0001-01-01T00:00:00+14:00", "2026-11-25T23:00:00+25:00", "20261125T230000Z", "2026-W48-3T23:00:00Z"],
)  # fmt: skip
def test_a_moment_that_is_none_is_refused(shared_server: Server, since: str) -> None:
    for path in ("", "pending/", "failed/"):
        answer = shared_server.api("GET", f"/upload-sessions/{path}?updated_after={quote(since)}")
        assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
            422, "invalid_field", "updated_after")  # fmt: skip


def test_the_failed_are_those_that_can_be_retried_unless_all_are_asked_for(shared_server: Server) -> None:
    order, failed = uuid.uuid4().hex, {"error_code": "LOCAL_READ_ERROR"}
    given = {"radiology_order_id": order, "file_name": "a.bin"}
    waits, spent, given_up = (
        create(shared_server, uuid.uuid4().bytes, max_retries=most, **given) for most in (1, 0, 1)
    )
    for session in (waits, spent):
        assert call(shared_server, session, "report_failure", failed).status_code == 200
    assert call(shared_server, given_up, "cancel", {"reason": "wrong file"}).status_code == 200

    def listed(query: str) -> set[str]:
        found = shared_server.api("GET", f"/upload-sessions/failed/?radiology_order_id={order}{query}").json()
        return {one["session_id"] for one in found["results"]}

    assert listed("") == {waits["session_id"]}
    assert listed("&include_exhausted=true") == {one["session_id"] for one in (waits, spent, given_up)}


def test_an_order_is_announced_and_keeps_its_visit(shared_server: Server) -> None:
    order = uuid.uuid4().hex
    body = {"visit_id": 5, "patient_id": "P9", "accession_number": "A1", "modality": "CT"}
    assert shared_server.api("PUT", f"/orders/{order}/", body).status_code == 201
    assert shared_server.api("PUT", f"/orders/{order}/", body).status_code == 200
    known = shared_server.api("GET", f"/orders/{order}/").json()
    assert (known["visit_id"], known["accession_number"], known["verified"]) == (5, "A1", True)
    moved = shared_server.api("PUT", f"/orders/{order}/", {**body, "visit_id": 6})
    assert (moved.status_code, moved.json()["code"]) == (409, "order_visit_mismatch")
    assert shared_server.api("PUT", f"/orders/{order}/", {"colour": 1}).status_code == 422


def token(server: Server, *words: str) -> str:
    answer = server.command("token", "create", *words)
    assert answer.returncode == 0 and len(answer.stdout.split()) == 1, answer.stderr
    return answer.stdout.strip()


def test_roles_sites_and_visits_are_kept_apart(server: Server, content: bytes) -> None:
    session = stored(server, content)
    image = f"/images/{session['server_image_id']}/"
    uploader, viewer = token(server, "--role", "uploader"), token(server, "--role", "viewer")
    auditor, elsewhere = token(server, "--role", "auditor"), token(server, "--role", "admin", "--site", "other")
    in_visit, out_of_visit = (token(server, "--role", "uploader", "--visit", visit) for visit in ("77", "78"))
    path = f"/upload-sessions/{session['session_id']}/"
    seen = {
        name: server.api("GET", path, token=secret).status_code
        for name, secret in {
            "uploader": uploader,
            "viewer": viewer,
            "auditor": auditor,
            "elsewhere": elsewhere,
            "in": in_visit,
            "out": out_of_visit,
        }.items()
    }
    assert seen == {"uploader": 404, "viewer": 200, "auditor": 200, "elsewhere": 404, "in": 200, "out": 404}
    files = {
        name: server.api("GET", f"{image}file", token=secret).status_code
        for name, secret in {
            "uploader": uploader,
            "viewer": viewer,
            "auditor": auditor,
            "elsewhere": elsewhere,
            "in": in_visit,
            "out": out_of_visit,
        }.items()
    }
    assert files == {"uploader": 404, "viewer": 200, "auditor": 403, "elsewhere": 404, "in": 200, "out": 404}
    body = {"file_name": "a", "file_size": 1, "checksum_sha256": "3" * 64, "radiology_order_id": 900}
    assert server.api("POST", f"{ROOT}/create_session/", body, token=viewer).status_code == 403
    assert server.api("POST", f"{ROOT}/create_session/", body, token=out_of_visit).status_code == 403
    own = server.api("POST", f"{ROOT}/create_session/", body, token=uploader)
    assert own.status_code == 201
    assert server.api("GET", f"/upload-sessions/{own.json()['session_id']}/", token=uploader).status_code == 200


def test_an_expired_token_may_still_ask_for_the_offset_of_its_upload_and_nothing_else(
    server: Server, content: bytes
) -> None:
    import sqlite3
    from contextlib import closing

    secret, other = (token(server, "--role", role, "--expires", "1h") for role in ("uploader", "admin"))
    made = server.tus("POST", "/files", token=secret, Upload_Length="100", Upload_Metadata="filename YQ==")
    url = made.headers["Location"]
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
        database.execute("UPDATE token SET expires_at = '2020-01-01T00:00:00.000Z' WHERE expires_at IS NOT NULL")
    # a token is known for a second
    asyncio.run(eventually(lambda: server.tus("GET", url, token=secret).status_code == 401))
    told = server.tus("HEAD", url, token=secret).headers
    assert (told["Upload-Offset"], told["Upload-Length"]) == ("0", "100") and "Upload-Metadata" not in told
    assert server.tus("HEAD", url, token=other).status_code == 401
    assert patch(server, url, content[:5], Authorization=f"Bearer {secret}").status_code == 401


def test_secrets_and_patients_stay_out_of_the_log(server: Server, ct: bytes) -> None:
    session = create(server, ct)
    patch(server, upload_url(server, session["session_id"]), ct)
    log = (server.folder / "server.log").read_text()
    assert server.token not in log and "CompressedSamples" not in log


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (gzip.compress(b"{}", mtime=0), 422, "invalid_field"),
        (gzip.compress(bytes(3_000_000), mtime=0), 413, "body_too_large"),
        (gzip.compress(b"{}", mtime=0)[:-5], 400, "invalid_json"),
        (b"no gzip", 400, "invalid_json"),
    ],
)
def test_a_gzip_body_is_taken_within_bounds(shared_server: Server, body: bytes, status: int, code: str) -> None:
    answer = requests.post(
        f"{shared_server.url}/api/v1/upload-sessions/create_session/",
        body,
        timeout=10,
        headers={**shared_server.auth, "Content-Encoding": "gzip", "Content-Type": "application/json"},
    )
    assert (answer.status_code, answer.json()["code"]) == (status, code)
