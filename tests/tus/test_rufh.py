"""RUFH (draft-ietf-httpbis-resumable-upload-12) against a real server, and uploads that change protocol midway."""

import gzip
import socket
import uuid

import pytest
import requests

from tests.server import Server, create, patch, sha256, upload_url
from tests.tus.speaking_rufh import PROBLEMS, append, begin, call, digest
from tests.tus.speaking_tus import MIB, random_bytes


def test_one_request_is_enough(shared_server: Server) -> None:
    content = uuid.uuid4().bytes
    answer = begin(shared_server, content, "?1", Content_Disposition='attachment; filename="a b.bin"')
    assert answer.status_code == 201 and answer.headers["Packhorse-Status"] == "SYNCED"
    assert answer.headers["Upload-Complete"] == "?1" and "max-size=" in answer.headers["Upload-Limit"]
    file = call(shared_server, "GET", answer.headers["Location"])
    assert file.content == content and "a%20b.bin" in file.headers["Content-Disposition"]


def test_an_upload_in_parts_is_complete_only_when_it_is_said(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", Upload_Length="6")
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (201, "?0")
    url = answer.headers["Location"]
    answer = append(shared_server, url, b"def", 3)
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (204, "?0")
    head = call(shared_server, "HEAD", url)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("6", "6")
    assert head.headers["Upload-Complete"] == "?0" and head.headers["Cache-Control"] == "no-store"
    answer = append(shared_server, url, b"", 6, "?1")
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (204, "?1")
    assert call(shared_server, "HEAD", url).headers["Upload-Complete"] == "?1"


def test_the_length_may_be_told_by_the_end_alone(shared_server: Server) -> None:
    url = begin(shared_server, b"abc").headers["Location"]
    assert "Upload-Length" not in call(shared_server, "HEAD", url).headers
    answer = append(shared_server, url, b"defg", 3, "?1")
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    assert call(shared_server, "HEAD", url).headers["Upload-Length"] == "7"


def test_a_chunked_body_may_be_all_of_it(shared_server: Server) -> None:
    answer = call(shared_server, "POST", "/files", iter([b"ab", b"cd"]), Upload_Complete="?1")
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    assert call(shared_server, "GET", answer.headers["Location"]).content == b"abcd"


def test_a_wrong_offset_is_told_the_right_one(shared_server: Server) -> None:
    url = begin(shared_server, b"abc", Upload_Length="6").headers["Location"]
    for offset in (0, 2, 4, 100):
        answer = append(shared_server, url, b"d", offset)
        assert answer.status_code == 409
        assert (answer.headers["Upload-Offset"], answer.headers["Upload-Complete"]) == ("3", "?0")
        body = answer.json()
        assert body["type"] == PROBLEMS + "mismatching-upload-offset"
        assert (body["expected-offset"], body["provided-offset"]) == (3, offset)


def test_a_complete_upload_is_not_changed(shared_server: Server) -> None:
    url = begin(shared_server, b"abc", "?1").headers["Location"]
    answer = append(shared_server, url, b"d", 3, "?1")
    assert answer.status_code in (400, 413)
    answer = append(shared_server, url, b"", 3, "?1")  # the answer was lost, and is asked for again
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (204, "?1")


def test_lengths_that_contradict_each_other_are_refused(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", "?1", Upload_Length="4")
    assert (answer.status_code, answer.json()["type"]) == (400, PROBLEMS + "inconsistent-upload-length")
    url = begin(shared_server, b"abc", Upload_Length="6").headers["Location"]
    answer = append(shared_server, url, b"d", 3, Upload_Length="7")
    assert answer.json()["type"] == PROBLEMS + "inconsistent-upload-length"
    answer = append(shared_server, url, b"d", 3, "?1")
    assert answer.json()["type"] == PROBLEMS + "inconsistent-upload-length"
    assert call(shared_server, "HEAD", url).headers["Upload-Complete"] == "?0"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload_Offset": "0"}, 400),
        ({"Upload_Complete": "?1"}, 400),
        ({"Upload_Offset": "-1", "Upload_Complete": "?0"}, 400),
        ({"Upload_Offset": "0", "Upload_Complete": "true"}, 400),
        ({"Upload_Offset": "0", "Upload_Complete": "?0", "Content_Type": "text/plain"}, 415),
    ],
)
def test_an_append_without_its_fields_is_refused(shared_server: Server, headers: dict[str, str], status: int) -> None:
    url = begin(shared_server, b"", Upload_Length="6").headers["Location"]
    given = {"Content_Type": "application/partial-upload", **headers}
    assert call(shared_server, "PATCH", url, b"abc", **given).status_code == status
    assert call(shared_server, "HEAD", url).headers["Upload-Offset"] == "0"


def test_malformed_fields_are_ignored(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", "?0", Upload_Length="six", Repr_Digest="sha-256=nothing")
    assert answer.status_code == 201
    assert "Upload-Length" not in call(shared_server, "HEAD", answer.headers["Location"]).headers


@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
def test_a_question_states_no_offset(shared_server: Server, method: str) -> None:
    url = begin(shared_server, b"abc").headers["Location"]
    assert call(shared_server, method, url, Upload_Offset="3").status_code == 400
    assert call(shared_server, method, url, Upload_Complete="?0").status_code == 400


def test_a_cancelled_upload_is_gone(shared_server: Server) -> None:
    url = begin(shared_server, b"abc").headers["Location"]
    assert call(shared_server, "DELETE", url).status_code == 204
    assert call(shared_server, "HEAD", url).status_code == 410
    assert append(shared_server, url, b"d", 3).status_code == 410


def test_a_digest_of_an_append_is_verified_before_the_offset_moves(shared_server: Server) -> None:
    url = begin(shared_server, b"", Upload_Length="3").headers["Location"]
    answer = append(shared_server, url, b"abc", 0, Content_Digest=digest(b"abd"))
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (422, "?0")
    assert call(shared_server, "HEAD", url).headers["Upload-Offset"] == "0"
    both = f"{digest(b'abc')}, {digest(b'abc', 'sha-512')}, unknown=:AAAA:"
    assert append(shared_server, url, b"abc", 0, "?1", Content_Digest=both).headers["Packhorse-Status"] == "SYNCED"


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
def test_the_digest_of_the_whole_is_verified_at_the_end(shared_server: Server, algorithm: str) -> None:
    content = uuid.uuid4().bytes
    url = begin(shared_server, content[:8], Repr_Digest=digest(content, algorithm)).headers["Location"]
    assert append(shared_server, url, content[8:], 8, "?1").headers["Packhorse-Status"] == "SYNCED"
    answer = begin(shared_server, content[:15], "?1", Repr_Digest=digest(content[:14], algorithm))
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (422, "?1")
    assert answer.json()["code"] == "CHECKSUM_MISMATCH"


def test_a_content_coding_is_undone(shared_server: Server) -> None:
    content = uuid.uuid4().bytes * 50
    wire = gzip.compress(content)
    answer = begin(shared_server, wire, "?1", Content_Encoding="gzip", Repr_Digest=digest(wire))
    assert answer.headers["Packhorse-Status"] == "SYNCED", answer.text
    assert call(shared_server, "GET", answer.headers["Location"]).content == content


def test_what_is_too_large_is_told_the_limit(server: Server) -> None:
    answer = begin(server, b"", Upload_Length=str(2**47))
    assert answer.status_code == 413 and "max-size=107374182400" in answer.headers["Upload-Limit"]


def test_a_post_in_no_protocol_is_told_both(shared_server: Server) -> None:
    answer = call(shared_server, "POST", "/files", b"abc")
    assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert "Upload-Complete" in answer.json()["detail"]


def test_options_tells_the_limits_of_both_protocols(shared_server: Server) -> None:
    answer = requests.options(f"{shared_server.url}/files", timeout=10)
    assert "max-size=" in answer.headers["Upload-Limit"] and answer.headers["Tus-Version"] == "1.0.0"
    assert "application/partial-upload" in answer.headers["Accept-Patch"]


# --- interim responses ----------------------------------------------------------------------------------


def raw(server: Server, head: str, body: bytes) -> bytes:
    """Everything that the server answers to one request."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(head.replace("\n", "\r\n").encode() + body)
        answer = b""
        while chunk := line.recv(65536):
            answer += chunk
    return answer


def creation(server: Server, *fields: str, length: int) -> str:
    lines = [
        "POST /files HTTP/1.1",
        "Host: x",
        "Connection: close",
        f"Authorization: Bearer {server.token}",
        "Upload-Complete: ?1",
        f"Content-Length: {length}",
        *fields,
    ]
    return "\n".join(lines) + "\n\n"


@pytest.mark.parametrize("version", ["8", "9"])
def test_a_client_of_our_version_is_told_the_location_before_its_body_is_read(
    shared_server: Server, version: str
) -> None:
    answer = raw(shared_server, creation(shared_server, f"Upload-Draft-Interop-Version: {version}", length=3), b"abc")
    interim, final = answer.split(b"\r\n\r\n")[:2]
    assert interim.startswith(b"HTTP/1.1 104 ") and b"\r\nLocation: http" in interim
    assert final.startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("fields", [(), ("Upload-Draft-Interop-Version: 5",)])
def test_nobody_else_is_sent_104(shared_server: Server, fields: tuple[str, ...]) -> None:
    answer = raw(shared_server, creation(shared_server, *fields, length=3), b"abc")
    assert answer.startswith(b"HTTP/1.1 201 ")


def test_progress_is_told_while_a_long_body_comes(server: Server) -> None:
    content = random_bytes(160 * MIB, 41)
    head = creation(server, "Upload-Draft-Interop-Version: 9", length=len(content))
    answer = raw(server, head, content)
    offsets = [
        int(line.split(b": ")[1])
        for part in answer.split(b"\r\n\r\n")
        if part.startswith(b"HTTP/1.1 104 ")
        for line in part.split(b"\r\n")
        if line.startswith(b"Upload-Offset")
    ]
    assert offsets and offsets == sorted(offsets) and offsets[-1] <= len(content)
    assert b"Packhorse-Status: SYNCED" in answer


def test_a_body_is_invited_only_when_it_is_wanted(shared_server: Server) -> None:
    wanted = raw(shared_server, creation(shared_server, "Expect: 100-continue", length=3), b"abc")
    assert wanted.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")
    refused = creation(shared_server, "Expect: 100-continue", length=3).replace("Bearer ph_", "Bearer no_")
    assert raw(shared_server, refused, b"").startswith(b"HTTP/1.1 401 ")


# --- two protocols, one upload --------------------------------------------------------------------------


def test_an_upload_begun_by_tus_is_continued_by_rufh(shared_server: Server) -> None:
    content = uuid.uuid4().bytes
    url = shared_server.tus("POST", "/files", Upload_Length="16").headers["Location"]
    assert patch(shared_server, url, content[:5]).status_code == 204
    head = call(shared_server, "HEAD", url)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Complete"]) == ("5", "?0")
    assert append(shared_server, url, content[5:], 5, "?1").headers["Packhorse-Status"] == "SYNCED"
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "16"


def test_an_upload_begun_by_rufh_is_continued_by_tus(shared_server: Server) -> None:
    content = uuid.uuid4().bytes
    url = begin(shared_server, content[:5]).headers["Location"]
    assert shared_server.tus("HEAD", url).headers["Upload-Defer-Length"] == "1"
    answer = patch(shared_server, url, content[5:], 5, Upload_Length="16")
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    assert call(shared_server, "HEAD", url).headers["Upload-Complete"] == "?1"


def test_a_session_is_completed_by_rufh(shared_server: Server) -> None:
    content = uuid.uuid4().bytes
    session = create(shared_server, content, file_name="a.bin")
    url = upload_url(shared_server, session["session_id"])
    assert append(shared_server, url, content, 0, "?1").headers["Packhorse-Status"] == "SYNCED"
    view = shared_server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    assert (view["status"], view["checksum_sha256"]) == ("SYNCED", sha256(content))
