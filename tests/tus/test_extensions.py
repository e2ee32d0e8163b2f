"""tus extensions against a real server: deferred length, concatenation, checksums, method override, compression."""

import base64
import gzip
import hashlib
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
import zstandard

from server.tus.checksum import ALGORITHMS
from tests.server import Server, create, patch, sha256, upload_metadata
from tests.support import eventually
from tests.tus.speaking_tus import MIB, OFFSET_TYPE, begin, deferred, join, part, random_bytes, stored

# --- creation-defer-length ------------------------------------------------------------------------------


def test_a_deferred_length_is_told_by_a_later_patch_and_ends_the_upload(shared_server: Server) -> None:
    content = uuid.uuid4().bytes * 100
    url = deferred(shared_server)
    head = shared_server.tus("HEAD", url)
    assert head.headers["Upload-Defer-Length"] == "1" and "Upload-Length" not in head.headers
    assert patch(shared_server, url, content[:500]).status_code == 204
    answer = patch(shared_server, url, content[500:], 500, Upload_Length=str(len(content)))
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    head = shared_server.tus("HEAD", url)
    assert head.headers["Upload-Length"] == str(len(content)) and "Upload-Defer-Length" not in head.headers
    assert stored(shared_server, url) == content


def test_a_length_once_told_cannot_be_changed(shared_server: Server) -> None:
    url = deferred(shared_server)
    assert patch(shared_server, url, b"12345", Upload_Length="10").status_code == 204
    answer = patch(shared_server, url, b"6", 5, Upload_Length="11")
    assert (answer.status_code, answer.json()["code"]) == (400, "inconsistent_upload_length")
    assert shared_server.tus("HEAD", url).headers["Upload-Length"] == "10"


def test_a_length_below_what_is_there_is_refused(shared_server: Server) -> None:
    url = deferred(shared_server)
    assert patch(shared_server, url, b"12345").status_code == 204
    answer = patch(shared_server, url, b"", 5, Upload_Length="4")
    assert (answer.status_code, answer.json()["code"]) == (400, "inconsistent_upload_length")
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "5"


def test_a_deferred_length_may_not_pass_the_largest_size(shared_server: Server) -> None:
    url = deferred(shared_server)
    answer = patch(shared_server, url, b"", Upload_Length=str(2**47))
    assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")


def test_the_session_of_a_deferred_length_learns_its_size(shared_server: Server) -> None:
    session_id = str(uuid.uuid4())
    url = deferred(shared_server, session_id=session_id)
    root = f"/upload-sessions/{session_id}/"
    assert shared_server.api("GET", root).json()["file_size"] is None
    patch(shared_server, url, b"abc", Upload_Length="3")
    assert shared_server.api("GET", root).json()["file_size"] == 3


def test_bytes_of_a_deferred_length_that_pass_the_limit_of_a_principal_are_refused_unread(tmp_path: Path) -> None:
    server = Server(tmp_path, extra="[uploads]\nmax_staged_bytes_per_principal = 100000\n").start()
    try:
        url, other = deferred(server), deferred(server)
        announced = {"Upload_Length": "100001"}
        for content, headers in ((bytes(100_001), {}), (b"", announced), (b"12345", announced)):
            answer = patch(server, url, content, **headers)
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_uploads")
            assert answer.headers["Retry-After"]
        assert server.tus("HEAD", url).headers["Upload-Offset"] == "0"
        assert patch(server, url, b"12345", Upload_Length="99000").status_code == 204
        assert patch(server, other, bytes(1001)).status_code == 503
        assert patch(server, other, bytes(1000)).status_code == 204
    finally:
        server.stop()


# --- concatenation --------------------------------------------------------------------------------------


def test_parts_are_joined_in_the_order_named(shared_server: Server) -> None:
    one, two = random_bytes(700_000, 31), random_bytes(300_000, 32)
    urls = [part(shared_server, one), part(shared_server, two)]
    answer = join(shared_server, *urls, checksum_sha256=sha256(one + two))
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    again = join(shared_server, urls[1], urls[0], urls[1], checksum_sha256=sha256(two + one + two))
    assert again.headers["Packhorse-Status"] == "SYNCED"
    assert stored(shared_server, again.headers["Location"]) == two + one + two


def test_a_part_has_no_session_and_tells_that_it_is_one(shared_server: Server) -> None:
    before = shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"]
    url = part(shared_server, b"abc")
    assert shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"] == before
    head = shared_server.tus("HEAD", url)
    assert head.headers["Upload-Concat"] == "partial" and head.headers["Upload-Offset"] == "3"


def test_a_final_upload_of_unfinished_parts_is_done_when_the_last_of_them_is(shared_server: Server) -> None:
    content = uuid.uuid4().bytes
    urls = [part(shared_server, content[:8]), part(shared_server, b"", of=8)]
    session_id = str(uuid.uuid4())
    answer = join(shared_server, *urls, session_id=session_id)
    assert answer.status_code == 201 and "Packhorse-Status" not in answer.headers
    url = answer.headers["Location"]
    head = shared_server.tus("HEAD", url)
    assert "Upload-Offset" not in head.headers and head.headers["Upload-Length"] == "16"
    assert head.headers["Upload-Concat"] == f"final;{' '.join(urls)}"
    assert patch(shared_server, urls[1], content[8:]).status_code == 204
    head = shared_server.tus("HEAD", url)
    assert head.headers["Upload-Offset"] == head.headers["Upload-Length"] == "16"
    assert shared_server.api("GET", f"/upload-sessions/{session_id}/").json()["status"] == "SYNCED"
    assert stored(shared_server, url) == content


def test_a_final_upload_takes_no_bytes_of_its_own(shared_server: Server) -> None:
    url = join(shared_server, part(shared_server, b"abc", of=6)).headers["Location"]
    answer = patch(shared_server, url, b"def")
    assert (answer.status_code, answer.json()["code"]) == (403, "final_upload")


def test_a_final_upload_with_a_length_is_refused(shared_server: Server) -> None:
    url = part(shared_server, b"abc")
    answer = begin(shared_server, Upload_Concat=f"final;{url}", Upload_Length="3")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")


@pytest.mark.parametrize("text", ["final", "final;", "final;/files/none", "partially", "", "final;/files/../../etc"])
def test_a_concatenation_that_names_no_parts_is_refused(shared_server: Server, text: str) -> None:
    answer = begin(shared_server, Upload_Concat=text, Upload_Length="3")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")


def test_only_parts_of_ones_own_can_be_joined(shared_server: Server) -> None:
    whole = begin(shared_server, Upload_Length="3").headers["Location"]
    assert join(shared_server, whole).json()["code"] == "invalid_header"
    token = shared_server.command("token", "create", "--role", "uploader").stdout.strip()
    mine = part(shared_server, b"abc")
    answer = shared_server.tus("POST", "/files", token=token, Upload_Concat=f"final;{mine}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_wrong_checksum_of_the_whole_fails_the_session_not_the_parts(shared_server: Server) -> None:
    url = part(shared_server, b"abc")
    session_id = str(uuid.uuid4())
    answer = join(shared_server, url, session_id=session_id, checksum_sha256="0" * 64)
    assert answer.status_code == 460
    assert shared_server.api("GET", f"/upload-sessions/{session_id}/").json()["error_code"] == "CHECKSUM_MISMATCH"
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "3"


def test_a_final_upload_whose_parts_were_complete_is_joined_after_a_crash(server: Server) -> None:
    content = random_bytes(3 * MIB, 33)
    urls = [part(server, content[:MIB]), part(server, content[MIB:-1], of=2 * MIB)]
    url = join(server, *urls).headers["Location"]
    server.kill()
    staged = server.folder / "data" / "blobs" / "staging" / "site-default" / urls[1].rsplit("/", 1)[1]
    with staged.open("ab") as file:  # as if the last byte came and the server died before it noted that
        file.write(content[-1:])
    server.restart()
    assert server.tus("HEAD", urls[1]).headers["Upload-Offset"] == str(2 * MIB)
    assert patch(server, urls[1], b"", 2 * MIB).status_code == 204
    assert stored(server, url) == content


def failure(server: Server, session_id: str) -> Any:
    return server.api("GET", f"/upload-sessions/{session_id}/").json()["error_code"]


def test_a_sum_of_parts_that_is_too_large_writes_nothing_and_fails_the_session(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra=f"[uploads]\nmax_size_bytes = {10 * MIB}\n").start()
    try:
        one = begin(server, Upload_Concat="partial", Upload_Defer_Length="1").headers["Location"]
        session_id = str(uuid.uuid4())
        url = join(server, *[one] * 60, session_id=session_id).headers["Location"]
        assert patch(server, one, random_bytes(MIB, 34), Upload_Length=str(MIB)).status_code == 204
        assert failure(server, session_id) == "POLICY_REJECTED"
        assert server.tus("HEAD", url).status_code == 410
        folder = server.folder / "data" / "blobs" / "staging" / "site-default"
        assert [file.name for file in folder.iterdir()] == [one.rsplit("/", 1)[1]]
    finally:
        server.stop()


def test_parts_that_are_not_the_file_of_their_session_fail_it_and_are_joined_no_more(shared_server: Server) -> None:
    session_id = str(uuid.uuid4())
    body = {"session_id": session_id, "file_name": "whole.bin", "file_size": 10, "checksum_sha256": sha256(b"x")}
    assert shared_server.api("POST", "/upload-sessions/create_session/", body).status_code == 201
    assert shared_server.api("POST", f"/upload-sessions/{session_id}/upload_metadata/", {}).status_code == 200
    late = str(begin(shared_server, Upload_Concat="partial", Upload_Defer_Length="1").headers["Location"])
    final = join(shared_server, part(shared_server, b"abc"), late, session_id=session_id)
    assert final.status_code == 201, final.text
    patch(shared_server, late, b"de", Upload_Length="2")
    state = shared_server.api("GET", f"/upload-sessions/{session_id}/").json()
    assert (state["status"], state["error_code"]) == ("FAILED", "SIZE_MISMATCH")
    assert shared_server.tus("HEAD", final.headers["Location"]).status_code == 410


def test_a_final_upload_whose_part_is_deleted_fails_its_session(shared_server: Server) -> None:
    urls = [part(shared_server, b"abc"), part(shared_server, b"", of=3)]
    session_id = str(uuid.uuid4())
    join(shared_server, *urls, session_id=session_id)
    assert shared_server.tus("DELETE", urls[0]).status_code == 204
    assert patch(shared_server, urls[1], b"def").status_code == 204
    assert failure(shared_server, session_id) == "CLIENT_ABORTED"


# --- checksum -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_on_offer_is_verified(shared_server: Server, algorithm: str) -> None:
    content = uuid.uuid4().bytes
    url = begin(shared_server, Upload_Length="16").headers["Location"]
    good = base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
    bad = base64.b64encode(hashlib.new(algorithm, b"other").digest()).decode()
    answer = patch(shared_server, url, content, Upload_Checksum=f"{algorithm} {bad}")
    assert (answer.status_code, answer.json()["code"]) == (460, "chunk_checksum_mismatch")
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "0"
    assert patch(shared_server, url, content, Upload_Checksum=f"{algorithm} {good}").status_code == 204


# --- X-HTTP-Method-Override -----------------------------------------------------------------------------


def test_a_post_that_says_patch_is_a_patch(shared_server: Server) -> None:
    url = begin(shared_server, Upload_Length="3").headers["Location"]
    answer = shared_server.tus(
        "POST", url, b"abc", X_HTTP_Method_Override="PATCH", Upload_Offset="0", Content_Type=OFFSET_TYPE
    )
    assert answer.status_code == 204 and answer.headers["Packhorse-Status"] == "SYNCED"
    head = shared_server.tus("POST", url, X_HTTP_Method_Override="HEAD")
    assert (head.status_code, head.headers["Upload-Offset"]) == (200, "3")
    assert shared_server.tus("POST", url, X_HTTP_Method_Override="DELETE").status_code == 204
    assert shared_server.tus("HEAD", url).status_code == 410


def test_a_method_that_does_not_exist_there_is_refused(shared_server: Server) -> None:
    url = begin(shared_server, Upload_Length="3").headers["Location"]
    for method in ("POST", "PUT", "TRACE"):
        assert shared_server.tus("POST", url, X_HTTP_Method_Override=method).status_code == 405


# --- compressed representations -------------------------------------------------------------------------


def packed(coding: str, content: bytes) -> bytes:
    return gzip.compress(content) if coding == "gzip" else zstandard.compress(content)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_compressed_representation_becomes_the_file_that_was_declared(server: Server, coding: str, ct: bytes) -> None:
    session = create(server, ct)
    root = f"/upload-sessions/{session['session_id']}"
    assert server.api("POST", f"{root}/upload_metadata/", {"metadata": {}}).status_code == 200
    wire = packed(coding, ct)
    body = {"resume_from": 0, "chunk_size": 65536, "content_encoding": coding, "encoded_size": len(wire)}
    handed = server.api("POST", f"{root}/upload_binary/", body).json()
    assert handed["upload_length"] == len(wire)
    assert patch(server, handed["upload_url"], wire[:1000]).status_code == 204
    answer = patch(server, handed["upload_url"], wire[1000:], 1000)
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    view = server.api("GET", f"{root}/").json()
    assert (view["checksum_sha256"], view["file_size"]) == (sha256(ct), len(ct))
    file = server.api("GET", f"/images/{view['server_image_id']}/file")
    assert file.content == ct


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (zstandard.compress(bytes(2_000_000)), "SIZE_MISMATCH"),
        (gzip.compress(bytes(1000), mtime=0), "SIZE_MISMATCH"),
        (gzip.compress(random_bytes(1500, 3), mtime=0)[:-9], "CHECKSUM_MISMATCH"),
        (b"no gzip at all", "CHECKSUM_MISMATCH"),
        (b"", "CHECKSUM_MISMATCH"),
    ],
    ids=["a zstd bomb", "a file that is shorter", "cut short", "no gzip at all", "nothing"],
)
def test_a_representation_that_is_not_the_file_declared_is_refused(server: Server, wire: bytes, code: str) -> None:
    coding = "zstd" if wire.startswith(zstandard.FRAME_HEADER) else "gzip"
    session = create(server, bytes(1500), file_name="a.bin", metadata={})
    answer = server.tus(
        "POST",
        "/files",
        wire,
        Upload_Length=str(len(wire)),
        Content_Type=OFFSET_TYPE,
        Upload_Metadata=upload_metadata(session_id=session["session_id"], content_encoding=coding),
    )
    assert answer.json()["code"] == code
    assert server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["error_code"] == code


def test_a_bomb_costs_no_memory(server: Server) -> None:
    bomb = zstandard.compress(bytes(2**30))
    before = server.rss_bytes()
    answer = server.tus(
        "POST",
        "/files",
        bomb,
        Upload_Length=str(len(bomb)),
        Content_Type=OFFSET_TYPE,
        Upload_Metadata=upload_metadata(filename="a.bin", content_encoding="zstd"),
    )
    assert answer.json()["code"] == "POLICY_REJECTED"
    assert server.rss_bytes() - before < 128 * MIB


def test_a_coding_that_is_not_known_is_refused(shared_server: Server) -> None:
    answer = begin(shared_server, Upload_Length="3", Upload_Metadata=upload_metadata(content_encoding="br"))
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD"])
def test_a_method_that_is_let_in_does_not_let_another_in(shared_server: Server, method: str) -> None:
    url = begin(shared_server, Upload_Length="3").headers["Location"]
    for override in ("PATCH", "DELETE"):
        headers = {"Tus-Resumable": "1.0.0", "X-HTTP-Method-Override": override}
        assert requests.request(method, url, headers=headers, timeout=10).status_code == 401
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "0"


async def test_an_expired_token_reads_the_offset_and_nothing_else(server: Server) -> None:
    token = server.command("token", "create", "--role", "uploader", "--expires", "1h").stdout.strip()
    url = server.tus("POST", "/files", token=token, Upload_Length="3").headers["Location"]
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
        database.execute("UPDATE token SET expires_at = '2026-01-01T00:00:00.000Z' WHERE expires_at IS NOT NULL")
    # a token is remembered for a second
    await eventually(lambda: server.api("GET", "/", token=token).status_code == 401, timeout_s=5)
    assert server.tus("HEAD", url, token=token).headers["Upload-Offset"] == "0"
    for override in ("PATCH", "DELETE"):
        answer = server.tus(
            "HEAD", url, token=token, X_HTTP_Method_Override=override, Upload_Offset="0", Content_Type=OFFSET_TYPE
        )
        assert answer.status_code == 401
