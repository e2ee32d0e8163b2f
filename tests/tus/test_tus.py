"""tus 1.0.0 over the wire against a real server; refusals are in tests/api/test_refusals.py."""

import base64
import hashlib
import http.client
import io
import uuid
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from tusclient.client import TusClient

from tests.server import Server, create, patch, sha256, upload_metadata, upload_url
from tests.support import eventually


@pytest.fixture
def content() -> bytes:
    """Bytes of its own for each test."""
    return uuid.uuid4().bytes * 5000


def made(server: Server, content: bytes, **pairs: str | bytes) -> str:
    """An upload without a session call; gives its URL."""
    answer = server.tus(
        "POST", "/files", Upload_Length=str(len(content)), Upload_Metadata=upload_metadata(filename="a.bin", **pairs)
    )
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def test_options_tells_version_extensions_limits_without_a_token(shared_server: Server) -> None:
    answer = shared_server.tus("OPTIONS", "/files", token="none", Tus_Resumable="")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0" and answer.headers["Tus-Resumable"] == "1.0.0"
    offered = {"creation", "creation-with-upload", "creation-defer-length", "termination", "checksum", "expiration"}
    assert set(answer.headers["Tus-Extension"].split(",")) == offered | {"concatenation", "concatenation-unfinished"}
    algorithms = answer.headers["Tus-Checksum-Algorithm"].split(",")
    assert {"sha1", "sha256", "sha512", "md5", "blake2b", "sha3_256"} <= set(algorithms)
    assert answer.headers["Tus-Max-Size"] == "107374182400"


def test_head_tells_offset_length_metadata_expiry_and_is_not_cached(shared_server: Server, content: bytes) -> None:
    url = made(shared_server, content, is_confidential=b"")
    assert patch(shared_server, url, content[:10]).headers["Upload-Offset"] == "10"
    head = shared_server.tus("HEAD", url)
    assert (head.status_code, head.headers["Upload-Offset"]) == (200, "10")
    assert head.headers["Upload-Length"] == str(len(content))
    assert head.headers["Upload-Metadata"] == "filename YS5iaW4=,is_confidential"
    assert head.headers["Cache-Control"] == "no-store" and head.headers["Tus-Resumable"] == "1.0.0"
    assert parsedate_to_datetime(head.headers["Upload-Expires"])


def test_an_unsupported_version_is_told_the_supported_one_and_nothing_is_processed(
    shared_server: Server, content: bytes
) -> None:
    url = made(shared_server, content)
    for method in ("HEAD", "PATCH", "DELETE"):
        answer = shared_server.tus(
            method, url, Tus_Resumable="0.2.2", Upload_Offset="0", Content_Type="application/offset+octet-stream"
        )
        assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "0"


def test_a_stock_client_without_a_session_lands_in_the_inbox_and_needs_a_checksum_to_acknowledge(
    shared_server: Server, content: bytes
) -> None:
    client = TusClient(f"{shared_server.url}/files", headers=shared_server.auth)
    uploader = client.uploader(file_stream=io.BytesIO(content), chunk_size=20_000, metadata={"filename": "clinic.bin"})
    uploader.upload()
    listed = shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"]
    session = next(row for row in listed if row["checksum_sha256"] == sha256(content))
    assert session["status"] == "SYNCED" and session["checksum_source"] == "server"
    assert session["visit_id"] is None and session["images"][0]["kind"] == "attachment"
    root = f"/upload-sessions/{session['session_id']}/acknowledge/"
    body = {"server_image_id": session["server_image_id"]}
    assert shared_server.api("POST", root, body).json()["code"] == "checksum_required"
    assert shared_server.api("POST", root, {**body, "checksum_sha256": sha256(content)}).status_code == 200


def test_creation_with_upload_takes_the_first_bytes(shared_server: Server, content: bytes) -> None:
    answer = shared_server.tus(
        "POST", "/files", content[:100], Upload_Length=str(len(content)), Content_Type="application/offset+octet-stream"
    )
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "100")
    url = answer.headers["Location"]
    assert patch(shared_server, url, content[100:], 100).headers["Packhorse-Status"] == "SYNCED"


def test_an_empty_file_is_complete_at_creation(shared_server: Server) -> None:
    answer = shared_server.tus("POST", "/files", Upload_Length="0", Upload_Metadata=upload_metadata(filename="empty"))
    assert (answer.status_code, answer.headers["Packhorse-Status"]) == (201, "SYNCED")
    assert shared_server.tus("HEAD", answer.headers["Location"]).headers["Upload-Offset"] == "0"


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
def test_a_chunk_with_a_good_checksum_moves_the_offset(shared_server: Server, content: bytes, algorithm: str) -> None:
    url = made(shared_server, content)
    claim = base64.b64encode(hashlib.new(algorithm, content[:50]).digest()).decode()
    answer = patch(shared_server, url, content[:50], Upload_Checksum=f"{algorithm} {claim}")
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "50")


def test_a_terminated_upload_is_gone_and_its_session_says_why(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content)
    url = upload_url(shared_server, session["session_id"])
    assert shared_server.tus("DELETE", url).status_code == 204
    assert shared_server.tus("HEAD", url).status_code == 410
    assert patch(shared_server, url, content).json()["error_code"] == "CLIENT_ABORTED"
    shown = shared_server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    assert (shown["status"], shown["error_code"]) == ("FAILED", "CLIENT_ABORTED")


def test_deleting_a_finished_upload_leaves_session_and_image(shared_server: Server, content: bytes) -> None:
    session = create(shared_server, content, file_name="a.bin")
    url = upload_url(shared_server, session["session_id"])
    patch(shared_server, url, content)
    assert shared_server.tus("DELETE", url).status_code == 204
    assert shared_server.tus("HEAD", url).status_code == 410
    shown = shared_server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    assert shown["status"] == "SYNCED"
    assert shared_server.api("GET", f"/images/{shown['server_image_id']}/file").content == content


def test_a_finished_upload_can_be_downloaded_in_parts(shared_server: Server, content: bytes) -> None:
    url = made(shared_server, content)
    assert shared_server.tus("GET", url).json()["code"] == "not_synced"
    patch(shared_server, url, content)
    assert shared_server.tus("GET", url).content == content
    part = shared_server.tus("GET", url, Range="bytes=5-9")
    assert (part.status_code, part.content) == (206, content[5:10])
    assert part.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a.bin"
    assert part.headers["X-Content-Type-Options"] == "nosniff"


def test_a_finished_upload_answers_head_with_its_full_offset_and_takes_no_more(
    shared_server: Server, content: bytes
) -> None:
    url = made(shared_server, content)
    patch(shared_server, url, content)
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == str(len(content))
    again = patch(shared_server, url, b"", len(content))
    assert (again.status_code, again.headers["Packhorse-Status"]) == (204, "SYNCED")


def test_a_client_that_lost_its_url_resumes_by_order_and_checksum(shared_server: Server, content: bytes) -> None:
    pairs = {"radiology_order_id": "55", "checksum_sha256": sha256(content)}
    url = made(shared_server, content, **pairs)
    patch(shared_server, url, content[:1000])
    again = shared_server.tus(
        "POST",
        "/files",
        content[:10],
        Upload_Length=str(len(content)),
        Content_Type="application/offset+octet-stream",
        Upload_Metadata=upload_metadata(filename="a.bin", **pairs),
    )
    assert (again.status_code, again.headers["Location"], again.headers["Upload-Offset"]) == (201, url, "1000")
    assert made(shared_server, content) != made(shared_server, content)  # without a checksum always a fresh one


def test_the_location_never_comes_from_a_host_header(shared_server: Server) -> None:
    answer = shared_server.tus("POST", "/files", Upload_Length="5", Host="evil.example")
    assert answer.headers["Location"].startswith(f"{shared_server.url}/files/")


def test_a_chunked_body_past_the_length_stops_at_the_length(shared_server: Server, content: bytes) -> None:
    url = made(shared_server, content[:100])
    host = shared_server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request(
        "PATCH",
        url.removeprefix(shared_server.url),
        body=iter([content[:60], content[60:200]]),
        headers={
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
            **shared_server.auth,
        },
        encode_chunked=True,
    )
    assert connection.getresponse().status == 413
    connection.close()
    assert int(shared_server.tus("HEAD", url).headers["Upload-Offset"]) <= 100


async def test_an_expired_upload_is_gone_and_its_session_can_be_retried_from_zero(
    tmp_path: Path, content: bytes
) -> None:
    server = Server(tmp_path / "server", extra="[uploads]\nexpires_after_days = 0.00001\n").start()
    try:
        session = create(server, content)
        url = upload_url(server, session["session_id"])
        await eventually(lambda: server.tus("HEAD", url).status_code == 410)
        root = f"/upload-sessions/{session['session_id']}"
        assert server.api("GET", f"{root}/").json()["error_code"] == "UPLOAD_EXPIRED"
        resume = server.api("POST", f"{root}/retry/").json()["resume"]
        assert resume == {"next": "upload_binary", "upload_offset": 0, "progress_preserved": False}
        assert server.api("POST", f"{root}/upload_binary/").json()["upload_url"] != url
    finally:
        server.stop()
