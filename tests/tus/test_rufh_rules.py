"""Rules of RUFH (draft-12), one test for each that docs/rufh-conformance.md names and no other file tests."""

import os
import re
import sqlite3
import time
import uuid
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server import Server, sha256, upload_metadata
from tests.support import eventually
from tests.tus.speaking_rufh import (
    PARTIAL,
    PROBLEMS,
    Line,
    append,
    arrives,
    begin,
    call,
    digest,
    held_open,
)
from tests.tus.speaking_tus import MIB, random_bytes

CURRENT = "Upload-Draft-Interop-Version: 9"
REFUSED = ("409", "410", "423", "503")
"""How an append is answered that somebody else has ended."""


def offset_of(server: Server, url: str) -> int:
    head = call(server, "HEAD", url)
    assert head.status_code == 200, head.headers
    return int(head.headers["Upload-Offset"])


# --- state ----------------------------------------------------------------------------------------------


async def test_an_upload_that_lost_its_bytes_is_deactivated(shared_server: Server) -> None:
    url = begin(shared_server, b"abcdef").headers["Location"]
    upload_id = url.rsplit("/", 1)[1]

    def noted() -> bool:
        with closing(sqlite3.connect(shared_server.folder / "data" / "packhorse.db", timeout=30)) as database:
            row = database.execute("SELECT offset_bytes FROM upload WHERE upload_id = ?", (upload_id,))
            return bool(row.fetchone()[0] == 6)

    await eventually(noted)
    os.truncate(shared_server.folder / "data" / "blobs" / "staging" / "site-default" / upload_id, 3)
    assert call(shared_server, "HEAD", url).status_code == 410
    assert append(shared_server, url, b"def", 3).status_code == 410
    assert call(shared_server, "DELETE", url).status_code == 410


@pytest.mark.parametrize("protocol", ["tus", "RUFH"])
async def test_a_creation_after_a_loss_tells_the_good_prefix_and_takes_no_body(
    shared_server: Server, protocol: str
) -> None:
    server, content = shared_server, uuid.uuid4().bytes

    def ask(body: bytes) -> Any:
        if protocol == "RUFH":
            return begin(server, body, Upload_Length="16", Repr_Digest=digest(content))
        metadata = upload_metadata(checksum_sha256=sha256(content))
        given = {"Upload_Length": "16", "Upload_Metadata": metadata, "Content_Type": "application/offset+octet-stream"}
        return server.tus("POST", "/files", body, **given)

    url = ask(content[:6]).headers["Location"]
    upload_id = url.rsplit("/", 1)[1]
    staged = server.folder / "data" / "blobs" / "staging" / "site-default" / upload_id

    def noted() -> bool:
        with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
            row = database.execute("SELECT offset_bytes FROM upload WHERE upload_id = ?", (upload_id,))
            return bool(row.fetchone()[0] == 6)

    await eventually(noted)
    os.truncate(staged, 3)
    assert call(server, "HEAD", url).status_code == 410
    staged.write_bytes(content[:6])  # as after an fsync that failed: what was durable before it is there
    answer = ask(content)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "6")
    assert answer.headers["Location"] != url
    assert append(server, answer.headers["Location"], content[6:], 6, "?1").headers["Packhorse-Status"] == "SYNCED"


async def test_the_offset_never_decreases_and_is_taken_as_it_was_told(shared_server: Server) -> None:
    content = random_bytes(400_000, 61)
    url = begin(shared_server).headers["Location"]
    seen = [0]
    for size in (70_000, 150_000):
        with held_open(shared_server, url, content[seen[-1] : seen[-1] + size], seen[-1]):
            await arrives(shared_server, url, seen[-1] + size)
            told = [offset_of(shared_server, url) for _ in range(3)]  # the first of them ends the append
            assert told == [seen[-1] + size] * 3
        assert append(shared_server, url, b"", seen[-1]).status_code == 409  # one that comes late
        seen.append(offset_of(shared_server, url))
    assert seen == sorted(seen)
    assert append(shared_server, url, content[seen[-1] :], seen[-1], "?1").headers["Packhorse-Status"] == "SYNCED"
    assert call(shared_server, "GET", url).content == content


def test_the_length_is_recorded_when_it_is_told(shared_server: Server) -> None:
    def length(url: str) -> str | None:
        told: str | None = call(shared_server, "HEAD", url).headers.get("Upload-Length")
        return told

    assert length(begin(shared_server, b"abc", Upload_Length="6").headers["Location"]) == "6"
    url = begin(shared_server, b"abc").headers["Location"]
    assert length(url) is None
    assert append(shared_server, url, b"d", 3, Upload_Length="7").status_code == 204
    assert length(url) == "7"


async def test_the_length_that_content_length_tells_is_recorded_before_the_end(shared_server: Server) -> None:
    url = begin(shared_server, b"abc").headers["Location"]
    with held_open(shared_server, url, b"d", 3, rest=5, complete="?1"):
        pass
    await arrives(shared_server, url, 4)
    head = call(shared_server, "HEAD", url)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("4", "9")
    with Line(shared_server, "POST", "/files", CURRENT, length=10, complete="?1") as creation:
        url = creation.until(1)[0]["Location"]
    assert call(shared_server, "HEAD", url).headers["Upload-Length"] == "10"


@pytest.mark.parametrize("chunked", [False, True])
def test_the_offset_never_passes_the_length(shared_server: Server, chunked: bool) -> None:
    url = begin(shared_server, b"abc", Upload_Length="6").headers["Location"]
    body: Any = iter([b"de", b"fgh"]) if chunked else b"defgh"
    answer = append(shared_server, url, body, 3)
    assert answer.status_code == 413 and "max-size=" in answer.headers["Upload-Limit"]
    # it is invalid from now on, and takes no more (§4.4.2)
    for method in ("HEAD", "GET", "DELETE"):
        assert call(shared_server, method, url).status_code == 410
    assert append(shared_server, url, b"d", 3).json()["error_code"] == "SIZE_MISMATCH"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_length_told_with_an_append_holds_for_its_own_body(shared_server: Server, chunked: bool) -> None:
    url = begin(shared_server).headers["Location"]
    body: Any = iter([bytes(30), bytes(20)]) if chunked else bytes(50)
    assert append(shared_server, url, body, 0, Upload_Length="10").status_code == 413
    assert call(shared_server, "HEAD", url).status_code == 410


def test_a_wrong_offset_ends_nothing_however_long_its_body_is(shared_server: Server) -> None:
    url = begin(shared_server, b"abc", Upload_Length="6").headers["Location"]
    for offset in (0, 7):
        assert append(shared_server, url, bytes(50), offset).status_code == 409
    assert offset_of(shared_server, url) == 3


@pytest.mark.parametrize("fields", [{}, {"Upload_Length": "6"}, {"Upload_Length": "4"}])
def test_an_end_that_contradicts_the_length_stores_no_byte(shared_server: Server, fields: dict[str, str]) -> None:
    url = begin(shared_server, b"abc", Upload_Length="6").headers["Location"]
    answer = append(shared_server, url, b"d", 3, "?1", **fields)
    assert (answer.status_code, answer.json()["type"]) == (400, PROBLEMS + "inconsistent-upload-length")
    assert offset_of(shared_server, url) == 3
    open_url = begin(shared_server, b"abc").headers["Location"]
    assert append(shared_server, open_url, b"d", 3, "?1", Upload_Length="9").status_code == 400
    head = call(shared_server, "HEAD", open_url).headers
    assert head["Upload-Offset"] == "3" and "Upload-Length" not in head


@pytest.mark.parametrize("how", ["by a creation", "by an append", "by an append to what tus made"])
def test_all_bytes_are_no_end_until_it_is_said_not_even_after_a_crash(server: Server, how: str) -> None:
    content = uuid.uuid4().bytes
    if how == "by a creation":
        url = begin(server, content, Upload_Length="16").headers["Location"]
    else:
        ask = server.tus("POST", "/files", Upload_Length="16") if "tus" in how else begin(server, Upload_Length="16")
        url = ask.headers["Location"]
        assert append(server, url, content, 0).headers["Upload-Complete"] == "?0"
    server.kill()
    server.restart()
    head = call(server, "HEAD", url).headers
    assert (head["Upload-Offset"], head["Upload-Length"], head["Upload-Complete"]) == ("16", "16", "?0")
    assert append(server, url, b"", 16, "?1").headers["Packhorse-Status"] == "SYNCED"


def test_for_a_tus_client_the_length_is_the_end(shared_server: Server) -> None:
    url = begin(shared_server, b"abc", Upload_Length="3").headers["Location"]
    assert call(shared_server, "HEAD", url).headers["Upload-Complete"] == "?0"
    assert shared_server.tus("HEAD", url).headers["Upload-Complete"] == "?1"  # it sends no PATCH after that


async def test_an_end_that_was_said_is_kept_after_a_crash(server: Server) -> None:
    content = uuid.uuid4().bytes
    url = begin(server, b"", Upload_Length="16").headers["Location"]
    with held_open(server, url, content[:8], 0, rest=8, complete="?1"):
        pass
    await eventually(lambda: offset_of(server, url) == 8)
    server.kill()
    staging = server.folder / "data" / "blobs" / "staging" / "site-default" / url.rsplit("/", 1)[1]
    staging.write_bytes(content)  # as a crash between the last byte and the seal leaves it
    server.restart()
    await eventually(lambda: call(server, "HEAD", url).headers["Upload-Complete"] == "?1")
    assert call(server, "GET", url).content == content


@pytest.mark.parametrize("complete", ["?0", "?1"])
async def test_of_a_creation_that_is_cut_all_is_kept_and_it_is_not_complete(
    shared_server: Server, complete: str
) -> None:
    for length in (100_000, None):
        with Line(shared_server, "POST", "/files", CURRENT, length=length, complete=complete) as line:
            url = line.until(1)[0]["Location"]
            content = bytes(70_000)
            line.send(content if length else f"{len(content):x}\r\n".encode() + content + b"\r\n")
        await arrives(shared_server, url, 70_000)
        head = call(shared_server, "HEAD", url)
        assert (head.headers["Upload-Offset"], head.headers["Upload-Complete"]) == ("70000", "?0")


@pytest.mark.parametrize("complete", ["?0", "?1"])
async def test_of_an_append_that_is_cut_all_is_kept_and_it_is_not_complete(
    shared_server: Server, complete: str
) -> None:
    url = begin(shared_server, b"abc").headers["Location"]
    with held_open(shared_server, url, b"defgh", 3, complete=complete):
        pass
    await arrives(shared_server, url, 8)
    head = call(shared_server, "HEAD", url)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Complete"]) == ("8", "?0")
    assert call(shared_server, "GET", url).status_code == 409


def test_a_digest_on_a_second_line_counts_too(shared_server: Server) -> None:
    def appended(url: str, *digests: str) -> str:
        fields = ("Upload-Offset: 0", f"Content-Type: {PARTIAL}", *(f"Content-Digest: {one}" for one in digests))
        with Line(shared_server, "PATCH", url, *fields, length=3, complete="?1") as line:
            line.send(b"abc")
            return line.until(1)[0][""]

    for digests in ((digest(b"abc"), digest(b"abd", "sha-512")), ("unixsum=:AAAA:", digest(b"abd"))):
        url = begin(shared_server, Upload_Length="3").headers["Location"]
        assert appended(url, *digests) == "422"
        assert offset_of(shared_server, url) == 0
        assert appended(url, digest(b"abc"), digest(b"abc", "sha-512")) == "204"


def test_the_digest_of_the_whole_is_told_when_it_is_complete(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", "?1", Want_Repr_Digest="sha-256=10")
    assert answer.headers["Repr-Digest"] == digest(b"abc")
    assert call(shared_server, "GET", answer.headers["Location"]).headers["Repr-Digest"] == digest(b"abc")
    answer = begin(shared_server, b"ab", Want_Repr_Digest="sha-256=10")
    assert "Repr-Digest" not in answer.headers
    assert append(shared_server, answer.headers["Location"], b"c", 2, "?1").headers["Repr-Digest"] == digest(b"abc")


def test_a_verdict_that_takes_longer_is_202_and_the_upload_complete(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra="[uploads]\nsync_wait_s = 0.000001\n").start()
    try:
        content = random_bytes(5 * MIB, 64)  # longer than what is filed together with its finish
        whole = begin(server, content, "?1")
        url = begin(server, content[:MIB]).headers["Location"]
        rest = append(server, url, content[MIB:], MIB, "?1")
        for answer in (whole, rest):
            assert (answer.status_code, answer.headers["Upload-Complete"]) == (202, "?1")
            assert "Packhorse-Status" not in answer.headers
        assert call(server, "HEAD", url).headers["Upload-Complete"] == "?1"
    finally:
        server.stop()


def test_an_upload_creation_that_fails_tells_where_the_upload_is(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", Content_Digest=digest(b"abd"))
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (422, "0")
    assert append(shared_server, answer.headers["Location"], b"abc", 0, "?1").headers["Packhorse-Status"] == "SYNCED"


# --- what answers carry ---------------------------------------------------------------------------------


def test_every_answer_of_an_upload_tells_whether_it_is_the_resources_own(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", Upload_Length="6")
    url = answer.headers["Location"]
    answers = [
        answer,
        append(shared_server, url, b"d", 3),
        append(shared_server, url, b"d", 3),
        append(shared_server, url, b"e", 4, Content_Type="text/plain"),
        append(shared_server, url, b"e", 4, Upload_Length="9"),
        append(shared_server, begin(shared_server, Upload_Length="6").headers["Location"], b"abcdefg", 0),
    ]
    assert [one.status_code for one in answers] == [201, 204, 409, 415, 400, 413]
    assert [one.headers["Upload-Complete"] for one in answers] == ["?0"] * 6
    assert append(shared_server, url, b"ef", 4, "?1").headers["Upload-Complete"] == "?1"
    assert append(shared_server, url, b"", 6, "?1").headers["Upload-Complete"] == "?1"  # said again


def test_a_creation_in_parts_tells_location_and_limits(shared_server: Server) -> None:
    for body in (b"", b"abc"):
        answer = begin(shared_server, body)
        assert answer.status_code == 201 and answer.headers["Location"].startswith(f"{shared_server.url}/files/")
        limit = answer.headers["Upload-Limit"]
        assert "max-size=" in limit and "min-size=0" in limit and "max-age=" in limit


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_the_state_tells_offset_completeness_length_and_limits(shared_server: Server, method: str) -> None:
    url = begin(shared_server, b"abc", "?1").headers["Location"]
    answer = call(shared_server, method, url)
    assert answer.status_code == 200
    told = {name: answer.headers.get(name) for name in ("Upload-Offset", "Upload-Complete", "Upload-Length")}
    assert told == {"Upload-Offset": "3", "Upload-Complete": "?1", "Upload-Length": "3"}
    assert "max-size=" in answer.headers.get("Upload-Limit", "nothing")


def test_head_of_an_unfinished_upload_tells_its_limits(shared_server: Server) -> None:
    head = call(shared_server, "HEAD", begin(shared_server, b"abc").headers["Location"])
    assert "max-size=" in head.headers["Upload-Limit"] and "max-age=" in head.headers["Upload-Limit"]
    assert head.headers["Cache-Control"] == "no-store"


def test_limits_do_not_tighten_while_the_upload_lives(shared_server: Server) -> None:
    def told(answer: Any) -> dict[str, int]:
        found = re.findall(r"([a-z-]+)=(\d+)", answer.headers["Upload-Limit"])
        return {name: int(value) for name, value in found}

    general = told(requests.options(f"{shared_server.url}/files", timeout=10))
    assert general["max-age"] == 30 * 86400
    made = begin(shared_server, b"abc")
    url, limits, ends = made.headers["Location"], [told(made)], [time.time() + told(made)["max-age"]]
    for answer in (call(shared_server, "HEAD", url), append(shared_server, url, b"d", 3)):
        limits.append(told(answer))
        ends.append(time.time() + limits[-1]["max-age"])
    for one in limits:
        assert (one["max-size"], one["min-size"]) == (general["max-size"], general["min-size"])
        assert one["max-age"] >= general["max-age"] - 2
    assert limits[0]["max-age"] >= general["max-age"]
    assert all(later >= earlier - 2 for earlier, later in pairwise(ends))  # told in whole seconds


def test_nothing_is_answered_by_a_redirect_that_loses_its_method(shared_server: Server) -> None:
    url = begin(shared_server, b"abc").headers["Location"]
    for where in (url, f"{url}/", f"{shared_server.url}/files//{url.rsplit('/', 1)[1]}", f"{shared_server.url}/files/"):
        for method in ("HEAD", "PATCH", "POST", "DELETE"):
            answer = requests.request(method, where, headers=shared_server.auth, timeout=10, allow_redirects=False)
            assert answer.status_code not in (301, 302)


def test_no_upload_url_is_used_again(shared_server: Server) -> None:
    urls = [begin(shared_server, b"abc", one).headers["Location"] for one in ("?0", "?1", "?0")]
    assert call(shared_server, "DELETE", urls[0]).status_code == 204
    urls += [begin(shared_server, b"abc").headers["Location"] for _ in range(3)]
    assert len(set(urls)) == 6
    assert call(shared_server, "HEAD", urls[0]).status_code == 410


# --- 104 (Upload Resumption Supported) ------------------------------------------------------------------


@pytest.mark.parametrize("version", ["8", "9"])
def test_104_carries_location_limits_and_the_interop_version(shared_server: Server, version: str) -> None:
    field = f"Upload-Draft-Interop-Version: {version}"
    with Line(shared_server, "POST", "/files", field, length=3, complete="?0") as line:
        interim = line.until(1)[0]
        assert interim[""] == "104" and interim["Upload-Draft-Interop-Version"] == version
        assert "max-size=" in interim["Upload-Limit"] and "max-age=" in interim["Upload-Limit"]
        line.send(b"abc")
        final = line.until(2)[1]
    assert final[""] == "201" and final["Location"] == interim["Location"]
    assert offset_of(shared_server, final["Location"]) == 3


def test_100_is_not_left_out_because_of_104(shared_server: Server) -> None:
    with Line(shared_server, "POST", "/files", CURRENT, "Expect: 100-continue", length=3, complete="?0") as line:
        assert [head[""] for head in line.until(2)] == ["104", "100"]
        line.send(b"abc")
        assert line.until(3)[2][""] == "201"


def test_progress_of_an_append_tells_the_offset_and_no_location(shared_server: Server) -> None:
    url, block = begin(shared_server, b"abc").headers["Location"], bytes(MIB)
    fields = (CURRENT, "Upload-Offset: 3", f"Content-Type: {PARTIAL}", "Connection: close")
    with Line(shared_server, "PATCH", url, *fields, length=130 * MIB, complete="?0") as line:
        for _ in range(130):
            line.send(block)
        *interims, final = line.ended()
    assert final[""] == "204" and final["Upload-Offset"] == str(130 * MIB + 3)
    assert interims
    for interim in interims:
        assert interim[""] == "104" and interim["Upload-Draft-Interop-Version"] == "9"
        assert 3 < int(interim["Upload-Offset"]) <= 130 * MIB + 3 and "Location" not in interim


# --- concurrency ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 5 * MIB])
async def test_a_question_for_the_offset_ends_the_append_before_it(shared_server: Server, size: int) -> None:
    content = random_bytes(size + 1000, 62)
    url = begin(shared_server).headers["Location"]
    with held_open(shared_server, url, content[:size], 0) as line:
        await arrives(shared_server, url, size)
        assert offset_of(shared_server, url) == size
        assert line.until(1)[0][""] in REFUSED
        answer = append(shared_server, url, content[size:], size, "?1")
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    assert call(shared_server, "GET", url).content == content


async def test_an_append_that_has_been_silent_for_a_while_is_ended_too(shared_server: Server) -> None:
    url = begin(shared_server).headers["Location"]
    with held_open(shared_server, url, bytes(50_000), 0) as line:
        await arrives(shared_server, url, 50_000)
        silent_since_s = time.monotonic()
        await eventually(lambda: time.monotonic() - silent_since_s > 1.0)  # silence is the case under test
        assert offset_of(shared_server, url) == 50_000
        assert line.until(1)[0][""] in REFUSED


async def test_a_newer_append_ends_the_older_one(shared_server: Server) -> None:
    content = random_bytes(90_000, 63)
    url = begin(shared_server).headers["Location"]
    with held_open(shared_server, url, content[:50_000], 0) as line:
        await arrives(shared_server, url, 50_000)
        answer = append(shared_server, url, content[50_000:], 50_000, "?1")
        assert (answer.status_code, answer.headers["Packhorse-Status"]) == (204, "SYNCED")
        with suppress(OSError):  # what the older one still brings is not taken
            line.send(bytes(40_000))
        assert line.until(1)[0][""] in REFUSED
    assert call(shared_server, "GET", url).content == content


async def test_a_cancellation_ends_the_append_before_it(shared_server: Server) -> None:
    url = begin(shared_server).headers["Location"]
    with held_open(shared_server, url, bytes(50_000), 0) as line:
        await arrives(shared_server, url, 50_000)
        assert call(shared_server, "DELETE", url).status_code == 204
        assert line.until(1)[0][""] in REFUSED
    for answer in (call(shared_server, "HEAD", url), append(shared_server, url, b"x", 50_000)):
        assert answer.status_code == 410
    await arrives(shared_server, url, 0)


# --- security -------------------------------------------------------------------------------------------


def test_nobody_but_its_owner_gets_at_an_upload(shared_server: Server) -> None:
    other = {"Authorization": f"Bearer {shared_server.command('token', 'create', '--role', 'uploader').stdout.strip()}"}
    url = begin(shared_server, b"abc").headers["Location"]
    for method in ("HEAD", "GET", "PATCH", "DELETE"):
        given = {"Upload-Offset": "3", "Upload-Complete": "?0", "Content-Type": PARTIAL} if method == "PATCH" else {}
        for who, statuses in ((other, (403, 404)), ({}, (401,)), ({"Authorization": "Bearer ph_0_0"}, (401,))):
            answer = requests.request(method, url, data=b"" if given else None, headers={**who, **given}, timeout=10)
            assert answer.status_code in statuses and "Upload-Length" not in answer.headers
    assert offset_of(shared_server, url) == 3


def test_an_upload_url_holds_a_random_id_and_nothing_else(shared_server: Server) -> None:
    ids = [begin(shared_server).headers["Location"].removeprefix(f"{shared_server.url}/files/") for _ in range(20)]
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in ids)
    assert len({one[-12:] for one in ids}) == 20  # the last 62 bits are random in every version that we use
    bits = [int(one[-12:], 16) for one in ids]
    assert all(abs(later - earlier) > 1000 for earlier, later in pairwise(bits))


def test_metadata_of_a_creation_are_taken_for_nothing_but_text(shared_server: Server) -> None:
    answer = call(
        shared_server,
        "POST",
        "/files",
        uuid.uuid4().bytes,
        Upload_Complete="?1",
        Content_Type="text/html",
        Content_Disposition="inline; filename*=UTF-8''..%2F..%2Fetc%2Fx%0D%0AX-Evil%3A%20yes",
    )
    assert answer.status_code == 201, answer.text
    file = call(shared_server, "GET", answer.headers["Location"])
    assert "X-Evil" not in file.headers and file.headers["Content-Type"] == "application/octet-stream"
    assert not list(shared_server.folder.parent.rglob("etc"))


async def test_a_token_that_was_revoked_midway_ends_nothing(server: Server) -> None:
    token = server.command("token", "create", "--role", "uploader").stdout.strip()
    mine = {"Authorization": f"Bearer {token}"}
    url = call(server, "POST", "/files", b"abc", Upload_Complete="?0", **mine).headers["Location"]
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
        database.execute("UPDATE token SET revoked_at = '2026-01-01T00:00:00.000Z' WHERE role = 'uploader'")
    await eventually(lambda: call(server, "HEAD", url, **mine).status_code == 401)
    assert append(server, url, b"def", 3, "?1", **mine).status_code == 401
    head = call(server, "HEAD", url)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Complete"]) == ("3", "?0")


def test_one_caller_has_no_more_than_so_many_open_uploads(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Server(tmp_path_factory.mktemp("few") / "server", extra="[uploads]\nmax_open_per_principal = 2\n").start()
    try:
        answers = [begin(server, b"abc") for _ in range(3)]
        assert [one.status_code for one in answers[:2]] == [201, 201] and answers[2].status_code >= 400
        assert call(server, "DELETE", answers[0].headers["Location"]).status_code == 204
        assert begin(server, b"abc").status_code == 201
    finally:
        server.stop()


def test_a_whole_that_fails_its_digest_is_not_processed(shared_server: Server) -> None:
    answer = begin(shared_server, b"abc", Repr_Digest=digest(b"abcdeX"))
    url = answer.headers["Location"]
    answer = append(shared_server, url, b"def", 3, "?1")
    assert (answer.status_code, answer.headers["Upload-Complete"]) == (422, "?1")
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert call(shared_server, "GET", url).status_code == 410
    wrong = append(shared_server, begin(shared_server, b"abc").headers["Location"], b"d", 9)
    assert wrong.json()["type"] == PROBLEMS + "mismatching-upload-offset"
