"""Rules of tus 1.0.0, one test for each that docs/tus-conformance.md names and no other file tests."""

import base64
import hashlib
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from server.tus.tus_fields import EXTENSIONS
from tests.server import Server, patch, sha256, upload_metadata
from tests.support import eventually
from tests.tus.speaking_tus import OFFSET_TYPE, begin, deferred, join, part, stored

HTTP_DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
"""IMF-fixdate (RFC 9110 §5.6.7)."""


def told(server: Server) -> Any:
    """The header of OPTIONS."""
    return requests.options(f"{server.url}/files", timeout=10).headers


def made(server: Server, length: int, **headers: str) -> str:
    answer = begin(server, Upload_Length=str(length), **headers)
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def staged(server: Server, url: str) -> Path:
    """Where the bytes of an unfinished upload lie."""
    return server.folder / "data" / "blobs" / "staging" / "site-default" / url.rpartition("/")[2]


def staged_size(server: Server, url: str) -> int:
    return staged(server, url).stat().st_size if staged(server, url).exists() else 0


def raw(server: Server, method: str, url: str, *fields: str, length: int) -> socket.socket:
    """A connection on which the header of a tus request was sent, and none of its body."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = [
        f"{method} {url.removeprefix(server.url)} HTTP/1.1",
        "Host: x",
        "Tus-Resumable: 1.0.0",
        f"Authorization: Bearer {server.token}",
        f"Content-Type: {OFFSET_TYPE}",
        f"Content-Length: {length}",
        *fields,
    ]
    line = socket.create_connection((host, int(port)), timeout=10)
    line.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    return line


def checksum(content: bytes, algorithm: str = "sha1") -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


# --- core -----------------------------------------------------------------------------------------------


def test_the_versions_are_a_comma_list_the_preferred_one_first(shared_server: Server) -> None:
    versions = told(shared_server)["Tus-Version"].split(",")
    assert versions == ["1.0.0"]  # a list of one is sorted; another version is to be put behind it
    refused = shared_server.tus("HEAD", "/files/x", Tus_Resumable="0.2.2")
    assert refused.headers["Tus-Version"].split(",") == versions


def test_the_extensions_are_a_comma_list_without_spaces(shared_server: Server) -> None:
    text = told(shared_server)["Tus-Extension"]
    assert re.fullmatch(r"[a-z-]+(,[a-z-]+)*", text)
    names = text.split(",")
    assert len(names) == len(set(names)) and tuple(names) == EXTENSIONS


@pytest.mark.parametrize(
    "name",
    [
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "termination",
        "checksum",
        "expiration",
        "concatenation",
        "concatenation-unfinished",
    ],
)
def test_each_extension_is_announced(shared_server: Server, name: str) -> None:
    assert name in told(shared_server)["Tus-Extension"].split(",")


def test_creation_with_upload_is_offered_together_with_creation_only(shared_server: Server) -> None:
    names = told(shared_server)["Tus-Extension"].split(",")
    assert {"creation", "creation-with-upload"} <= set(names)
    for body, offset in ((b"", "0"), (b"abc", "3")):
        kind = {"Content_Type": OFFSET_TYPE} if body else {}
        answer = shared_server.tus("POST", "/files", body, Upload_Length="5", **kind)
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, offset)


def test_the_largest_size_is_a_non_negative_integer(shared_server: Server) -> None:
    assert re.fullmatch(r"[0-9]+", told(shared_server)["Tus-Max-Size"])


@pytest.mark.parametrize("version", ["1.0.0", "0.2.2", "none"])
@pytest.mark.parametrize("path", ["/files", "/files/x"])
def test_options_ignores_the_version_of_its_request(shared_server: Server, path: str, version: str) -> None:
    answer = requests.options(shared_server.url + path, headers={"Tus-Resumable": version}, timeout=10)
    assert (answer.status_code, answer.headers["Tus-Version"]) == (204, "1.0.0")


def test_every_response_says_the_version_that_it_speaks(shared_server: Server) -> None:
    def answers() -> Iterator[tuple[int, Any]]:
        server, url = shared_server, made(shared_server, 6)
        yield 200, server.tus("HEAD", url)
        yield 204, patch(server, url, b"abc")
        yield 409, patch(server, url, b"abc")
        yield 460, patch(server, url, b"d", 3, Upload_Checksum=checksum(b"other"))
        yield 400, patch(server, url, b"d", 3, Upload_Checksum="crc7 AAAA")
        yield 413, patch(server, url, b"defg", 3)
        yield 415, server.tus("PATCH", url, b"d", Upload_Offset="3", Content_Type="text/plain")
        yield 405, server.tus("PUT", url, b"d", X_HTTP_Method_Override="PUT")
        yield 409, server.tus("GET", url)
        yield 412, server.tus("HEAD", url, Tus_Resumable="0.2.2")
        yield 401, server.tus("HEAD", url, token="ph_0_0")
        yield 204, server.tus("DELETE", url)
        yield 410, server.tus("HEAD", url)
        yield 404, server.tus("HEAD", f"/files/{uuid.uuid4()}")
        yield 201, begin(server, Upload_Length="3")
        yield 400, begin(server)
        final = join(server, part(server, b"abc"))
        yield 201, final
        yield 403, patch(server, final.headers["Location"], b"abc")
        yield 200, server.tus("GET", final.headers["Location"])

    silent = []
    for number, (status, answer) in enumerate(answers()):
        assert answer.status_code == status, (number, answer.text)
        if answer.headers.get("Tus-Resumable") != "1.0.0":
            silent.append(status)
    assert silent == []


def test_refusals_from_before_the_routes_say_it_too_and_405_says_what_is_taken(shared_server: Server) -> None:
    url = made(shared_server, 3)
    answers = [shared_server.tus(method, "/files") for method in ("PUT", "HEAD", "GET")]
    answers += [shared_server.tus("PUT", url), shared_server.tus("POST", url, X_HTTP_Method_Override="PUT")]
    for answer in answers:
        assert answer.status_code == 405 and "POST" in answer.headers["Allow"]  # RFC 9110 §15.5.6, MUST
    answers.append(begin(shared_server, **{f"X-{number}": "y" for number in range(110)}))
    for answer in answers:
        assert answer.headers.get("Tus-Resumable") == "1.0.0", answer.status_code


def test_a_creation_in_another_version_makes_nothing(shared_server: Server) -> None:
    before = shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"]
    answer = begin(shared_server, Upload_Length="3", Tus_Resumable="0.2.2")
    assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"] == before


def test_head_tells_the_offset_of_nothing_of_a_half_and_of_all(shared_server: Server) -> None:
    url = made(shared_server, 6)
    for offset in (0, 3, 6):
        head = shared_server.tus("HEAD", url)
        assert head.status_code in (200, 204)
        assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == (str(offset), "6")
        assert head.headers["Cache-Control"] == "no-store"
        assert patch(shared_server, url, b"abc" if offset < 6 else b"", offset).status_code == 204


def test_head_of_what_is_not_there_tells_no_offset(shared_server: Server) -> None:
    url = made(shared_server, 6)
    assert patch(shared_server, url, b"abc").status_code == 204
    assert shared_server.tus("DELETE", url).status_code == 204
    for where, status in ((url, 410), (f"/files/{uuid.uuid4()}", 404), ("/files/x", 404)):
        head = shared_server.tus("HEAD", where)
        assert head.status_code == status and "Upload-Offset" not in head.headers


def test_patch_of_what_never_was_is_not_found(shared_server: Server) -> None:
    for where in (f"/files/{uuid.uuid4()}", "/files/x"):
        assert patch(shared_server, where, b"abc").status_code == 404


@pytest.mark.parametrize("how", ["plain", "with its first bytes", "deferred", "partial"])
def test_patch_is_taken_on_every_upload_url(shared_server: Server, how: str) -> None:
    server, start = shared_server, 0
    if how == "plain":
        url = made(server, 9)
    elif how == "deferred":
        url = deferred(server)
    elif how == "partial":
        url = part(server, b"", of=9)
    else:
        answer = server.tus("POST", "/files", b"ab", Upload_Length="9", Content_Type=OFFSET_TYPE)
        url, start = answer.headers["Location"], 2
    assert patch(server, url, b"xyz", start).headers["Upload-Offset"] == str(start + 3)
    assert server.tus("HEAD", url).headers["Upload-Offset"] == str(start + 3)


@pytest.mark.parametrize("chunked", [False, True])
def test_the_new_offset_is_the_old_one_and_what_came(shared_server: Server, chunked: bool) -> None:
    sizes, offset = (1, 0, 70_000, 17, 300_000), 0
    url = made(shared_server, sum(sizes) + 1)
    for size in sizes:
        body: Any = iter([bytes(size)]) if chunked and size else bytes(size)
        answer = patch(shared_server, url, body, offset)
        offset += size
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, str(offset))
        assert staged_size(shared_server, url) == offset


async def test_a_connection_that_times_out_is_closed_and_what_came_is_kept(tmp_path: Path) -> None:
    extra = "[uploads]\nprogress_floor_bytes_per_s = 100\nprogress_window_s = 1\n"
    server = Server(tmp_path / "server", extra=extra).start()
    try:
        url = made(server, 1000)
        with raw(server, "PATCH", url, "Upload-Offset: 0", length=1000) as line:
            line.sendall(bytes(50))
            answer = b""
            while chunk := line.recv(65536):  # ends, for the server closes
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 503 ")
        await eventually(lambda: server.tus("HEAD", url).headers["Upload-Offset"] == "50")
    finally:
        server.stop()


async def test_what_came_before_a_line_was_cut_is_kept(shared_server: Server) -> None:
    url = made(shared_server, 200_000)
    with raw(shared_server, "PATCH", url, "Upload-Offset: 0", length=200_000) as line:
        line.sendall(bytes(60_000))
    await eventually(lambda: staged_size(shared_server, url) == 60_000)
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "60000"


# --- creation -------------------------------------------------------------------------------------------


def test_a_creation_is_answered_201_with_the_url_of_a_new_upload(shared_server: Server) -> None:
    answers = [begin(shared_server, Upload_Length="3") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    urls = {answer.headers["Location"] for answer in answers}
    assert len(urls) == 2
    for url in urls:
        assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "0"


def test_no_length_is_called_deferred_that_is_known(shared_server: Server) -> None:
    final = join(shared_server, part(shared_server, b"abc", of=6)).headers["Location"]
    for url in (made(shared_server, 6), part(shared_server, b"abc"), final):
        assert "Upload-Defer-Length" not in shared_server.tus("HEAD", url).headers


@pytest.mark.parametrize("text", ["a YQ==,", "a YQ==,,b YQ==", "a YQ", "a\tYQ==", "a YQ== YQ==", "ä YQ==", "a YQ==,a"])
def test_metadata_that_breaks_its_form_are_refused(shared_server: Server, text: str) -> None:
    answer = requests.post(
        f"{shared_server.url}/files",
        headers={
            "Tus-Resumable": "1.0.0",
            "Upload-Length": "3",
            **shared_server.auth,
            "Upload-Metadata": text.encode(),  # type: ignore[dict-item]  # requests takes bytes, and these are no ASCII
        },
        timeout=10,
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_metadata")


def test_metadata_smuggle_no_header(shared_server: Server) -> None:
    evil = 'x"\r\nX-Evil: yes\r\n\r\n<script>\x00ä'
    refused = begin(shared_server, Upload_Length="3", Upload_Metadata=upload_metadata(filetype=f"text/html{evil}"))
    assert (refused.status_code, refused.json()["field"]) == (422, "content_type")
    pairs = {"filename": evil, "filetype": "text/html", "name": evil, "x": evil}
    answer = shared_server.tus(
        "POST", "/files", b"abc", Upload_Length="3", Content_Type=OFFSET_TYPE, Upload_Metadata=upload_metadata(**pairs)
    )
    assert answer.headers["Packhorse-Status"] == "SYNCED", answer.text
    url = answer.headers["Location"]
    head, file = shared_server.tus("HEAD", url), shared_server.tus("GET", url)
    assert head.headers["Upload-Metadata"] == upload_metadata(**pairs)
    for one in (answer, head, file):
        assert "X-Evil" not in one.headers
        assert all(value.isascii() and value.isprintable() for value in one.headers.values())
    assert file.content == b"abc" and file.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/partial-upload", None])
def test_a_body_of_another_type_makes_no_upload(shared_server: Server, content_type: str | None) -> None:
    before = shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"]
    given = {} if content_type is None else {"Content_Type": content_type}
    answer = shared_server.tus("POST", "/files", b"abc", Upload_Length="3", **given)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "Location" not in answer.headers
    assert shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"] == before


async def test_of_a_creation_that_is_cut_every_byte_that_came_is_kept(shared_server: Server) -> None:
    content = uuid.uuid4().bytes * 10_000
    metadata = upload_metadata(filename="a.bin", radiology_order_id="cut", checksum_sha256=sha256(content))
    fields = (f"Upload-Length: {len(content)}", f"Upload-Metadata: {metadata}")
    with raw(shared_server, "POST", "/files", *fields, length=len(content)) as line:
        line.sendall(content[:70_000])

    folder = staged(shared_server, "x").parent
    await eventually(lambda: 70_000 in {path.stat().st_size for path in folder.glob("*-*")})
    found = begin(shared_server, Upload_Length=str(len(content)), Upload_Metadata=metadata)
    assert found.headers["Upload-Offset"] == "70000"
    answer = patch(shared_server, found.headers["Location"], content[70_000:], 70_000)
    assert answer.headers["Packhorse-Status"] == "SYNCED"


def test_a_client_that_expects_100_gets_it_or_the_refusal_before_its_body(shared_server: Server) -> None:
    wanted = ("Expect: 100-continue", "Upload-Length: 3")
    with raw(shared_server, "POST", "/files", *wanted, length=3) as line:
        assert line.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(b"abc")
        assert line.recv(1000).startswith(b"HTTP/1.1 201 ")
    with raw(shared_server, "POST", "/files", "Expect: 100-continue", "Upload-Length: 2", length=3) as line:
        assert line.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_creation_that_fails_tells_where_the_upload_is(shared_server: Server) -> None:
    whole = {"Upload_Length": "3", "Content_Type": OFFSET_TYPE}
    answer = shared_server.tus("POST", "/files", b"abc", Upload_Checksum=checksum(b"other"), **whole)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (460, "0")
    url = answer.headers["Location"]
    assert patch(shared_server, url, b"abc").headers["Packhorse-Status"] == "SYNCED"


def test_a_creation_whose_whole_is_not_what_was_declared_tells_the_verdict(shared_server: Server) -> None:
    declared = upload_metadata(filename="a.bin", checksum_sha256=sha256(uuid.uuid4().bytes))
    answer = shared_server.tus(
        "POST", "/files", b"abc", Upload_Length="3", Content_Type=OFFSET_TYPE, Upload_Metadata=declared)
    assert (answer.status_code, answer.headers["Packhorse-Status"]) == (460, "FAILED")
    assert "again from 0" in answer.json()["detail"]
    assert shared_server.tus("HEAD", answer.headers["Location"]).status_code == 410


def test_a_wrong_offset_is_told_as_such_also_when_the_body_would_not_fit_there(shared_server: Server) -> None:
    url = made(shared_server, 10)
    answer = patch(shared_server, url, bytes(10), 5)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "0")


# --- a finished upload as a file ------------------------------------------------------------------------


def test_get_of_an_unfinished_upload_tells_where_it_stands(shared_server: Server) -> None:
    url = made(shared_server, 6)
    patch(shared_server, url, b"abc")
    answer = shared_server.tus("GET", url)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_synced")
    assert (answer.headers["Upload-Offset"], answer.headers["Upload-Length"]) == ("3", "6")
    assert answer.headers["Upload-Complete"] == "?0" and "max-age=" in answer.headers["Upload-Limit"]


def test_the_digest_of_a_finished_upload_is_its_strong_etag(shared_server: Server) -> None:
    content = uuid.uuid4().bytes
    url = made(shared_server, 16)
    patch(shared_server, url, content)
    tag, other = f'"{sha256(content)}"', f'"{"0" * 64}"'
    answer = shared_server.tus("GET", url)
    assert (answer.status_code, answer.headers["ETag"], answer.content) == (200, tag, content)
    assert answer.headers["Cache-Control"] == "private, no-store"
    for known in (tag, f"W/{tag}", f"{other}, {tag}", "*"):
        answer = shared_server.tus("GET", url, If_None_Match=known)
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
    assert shared_server.tus("GET", url, If_None_Match=other).status_code == 200
    assert shared_server.tus("GET", url, If_Match=tag).status_code == 200
    assert shared_server.tus("GET", url, If_Match=other).status_code == 412
    part = shared_server.tus("GET", url, Range="bytes=5-9", If_Range=tag)
    assert (part.status_code, part.content, part.headers["ETag"]) == (206, content[5:10], tag)
    assert shared_server.tus("GET", url, Range="bytes=5-9", If_Range=other).content == content
    assert shared_server.tus("GET", url, Range="bytes=16-").status_code == 416


# --- expiration, checksum, termination ------------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 409, 460])
def test_every_answer_to_a_patch_tells_when_the_upload_expires(shared_server: Server, status: int) -> None:
    url = made(shared_server, 6)
    claim = checksum(b"other" if status == 460 else b"abc")
    answer = patch(shared_server, url, b"abc", 1 if status == 409 else 0, Upload_Checksum=claim)
    assert answer.status_code == status
    assert HTTP_DATE.fullmatch(answer.headers.get("Upload-Expires", "nothing"))


def test_a_creation_tells_when_the_upload_expires_as_an_http_date(shared_server: Server) -> None:
    whole = {"Upload_Length": "6", "Content_Type": OFFSET_TYPE}
    for answer in (
        begin(shared_server, Upload_Length="6"),
        begin(shared_server, Upload_Defer_Length="1"),
        begin(shared_server, Upload_Length="6", Upload_Concat="partial"),
        shared_server.tus("POST", "/files", b"abc", **whole),
    ):
        assert answer.status_code == 201 and HTTP_DATE.fullmatch(answer.headers["Upload-Expires"])
        head = shared_server.tus("HEAD", answer.headers["Location"])
        assert HTTP_DATE.fullmatch(head.headers["Upload-Expires"])


def test_the_algorithms_are_a_comma_list_of_lower_case_ascii_names(shared_server: Server) -> None:
    names = told(shared_server)["Tus-Checksum-Algorithm"].split(",")
    assert "sha1" in names
    for name in names:
        assert name and name.isascii() and name == name.lower() and not re.search(r"\s", name)


@pytest.mark.parametrize("text", ["sha1", "sha1:{}", "sha1,{}", "SHA1 {}", "{}", "sha1 {} {}", "sha1 {}="])
def test_an_upload_checksum_that_breaks_its_form_is_refused(shared_server: Server, text: str) -> None:
    url, digest = made(shared_server, 3), checksum(b"abc").split(" ")[1]
    assert patch(shared_server, url, b"abc", Upload_Checksum=text.replace("{}", digest)).status_code == 400
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "0"


@pytest.mark.parametrize(("claim", "status"), [(checksum(b"other"), 460), ("crc7 AAAA", 400)])
def test_a_chunk_whose_checksum_is_refused_leaves_no_byte(shared_server: Server, claim: str, status: int) -> None:
    url = made(shared_server, 6)
    assert patch(shared_server, url, b"abc").status_code == 204
    assert patch(shared_server, url, b"xyz", 3, Upload_Checksum=claim).status_code == status
    assert staged(shared_server, url).read_bytes() == b"abc"
    assert not staged(shared_server, f"{url}.chunk").exists()
    assert shared_server.tus("HEAD", url).headers["Upload-Offset"] == "3"


async def test_delete_frees_the_staged_bytes(shared_server: Server) -> None:
    for url in (made(shared_server, 6), part(shared_server, b"", of=6)):
        assert patch(shared_server, url, b"abc").status_code == 204
        assert staged(shared_server, url).read_bytes() == b"abc"
        assert shared_server.tus("DELETE", url).status_code == 204
        await eventually(lambda url=url: not staged(shared_server, url).exists())  # type: ignore[misc]
        for method in ("HEAD", "GET", "DELETE"):
            assert shared_server.tus(method, url).status_code in (404, 410)


# --- concatenation --------------------------------------------------------------------------------------


def test_parts_are_not_processed_before_they_are_joined(shared_server: Server, ct: bytes) -> None:
    before = shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"]
    urls = [part(shared_server, ct), part(shared_server, b"")]  # the first of them is a whole image
    assert shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"] == before
    assert staged(shared_server, urls[0]).read_bytes() == ct
    assert shared_server.tus("GET", urls[0]).json()["code"] == "not_synced"
    answer = join(shared_server, *urls)
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    assert len(shared_server.api("GET", "/upload-sessions/?limit=500").json()["results"]) == len(before) + 1


def test_the_length_of_the_whole_is_the_sum_of_its_parts(shared_server: Server) -> None:
    one, two, open_ = part(shared_server, b"abc"), part(shared_server, b"defg"), part(shared_server, b"", of=100)
    for urls, length in (((one, two), 7), ((two, one, two), 11), ((one, open_), 103)):
        url = join(shared_server, *urls).headers["Location"]
        head = shared_server.tus("HEAD", url)
        assert head.headers["Upload-Length"] == str(length)
        assert head.headers.get("Upload-Offset") == (None if open_ in urls else str(length))


def test_metadata_of_parts_are_not_those_of_the_whole(shared_server: Server) -> None:
    given = upload_metadata(filename="part.dcm", filetype="application/dicom", colour="red")
    answer = shared_server.tus(
        "POST",
        "/files",
        b"abc",
        Upload_Concat="partial",
        Upload_Length="3",
        Upload_Metadata=given,
        Content_Type=OFFSET_TYPE,
    )
    url = answer.headers["Location"]
    assert shared_server.tus("HEAD", url).headers["Upload-Metadata"] == given
    whole = join(shared_server, url).headers["Location"]
    assert shared_server.tus("HEAD", whole).headers["Upload-Metadata"] == upload_metadata(filename="whole.bin")
    bare = begin(shared_server, Upload_Concat=f"final;{url}").headers["Location"]
    assert "Upload-Metadata" not in shared_server.tus("HEAD", bare).headers
    assert "part.dcm" not in shared_server.tus("GET", bare).headers["Content-Disposition"]


def test_head_of_a_part_always_tells_offset_and_upload_concat(shared_server: Server) -> None:
    url = part(shared_server, b"", of=6)
    final = join(shared_server, url).headers["Location"]
    for offset in (0, 3, 6):
        head = shared_server.tus("HEAD", url)
        assert (head.headers["Upload-Offset"], head.headers["Upload-Concat"]) == (str(offset), "partial")
        assert head.headers["Upload-Length"] == "6"
        assert ("Upload-Offset" in shared_server.tus("HEAD", final).headers) == (offset == 6)
        patch(shared_server, url, b"abc" if offset < 6 else b"", offset)


@pytest.mark.parametrize("relative", [False, True])
def test_a_final_upload_gives_upload_concat_back_as_it_came(shared_server: Server, relative: bool) -> None:
    urls = [part(shared_server, b"abc"), part(shared_server, b"", of=3)]
    named = [url.removeprefix(shared_server.url) for url in urls] if relative else urls
    answer = join(shared_server, *named)
    assert answer.status_code == 201, answer.text
    url = answer.headers["Location"]
    for body in (b"def", b""):
        assert shared_server.tus("HEAD", url).headers["Upload-Concat"] == f"final;{' '.join(named)}"
        if body:
            assert patch(shared_server, urls[1], body).status_code == 204
    assert stored(shared_server, url) == b"abcdef"


@pytest.mark.parametrize("form", ["Partial", "partial;", "final {}", "final,{}", "FINAL;{}", "{}"])
def test_an_upload_concat_that_breaks_its_form_is_refused(shared_server: Server, form: str) -> None:
    url = part(shared_server, b"abc")
    answer = begin(shared_server, Upload_Concat=form.replace("{}", url))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")


def test_two_urls_with_a_comma_between_them_are_not_taken_for_one(shared_server: Server) -> None:
    urls = [part(shared_server, b"abc"), part(shared_server, b"def")]
    answer = begin(shared_server, Upload_Concat=f"final;{','.join(urls)}")
    assert answer.status_code == 400, shared_server.tus("HEAD", answer.headers["Location"]).headers["Upload-Length"]


def test_a_patch_of_a_final_upload_changes_neither_it_nor_its_parts(shared_server: Server) -> None:
    urls = [part(shared_server, b"abc"), part(shared_server, b"d", of=3)]
    url = join(shared_server, *urls).headers["Location"]

    def state() -> list[dict[str, str]]:
        heads = [shared_server.tus("HEAD", one).headers for one in (*urls, url)]
        return [{name: head[name] for name in head if name.startswith("Upload-")} for head in heads]

    before = state()
    for offset in (0, 4, 6):
        assert patch(shared_server, url, b"xy", offset).status_code == 403
    assert state() == before
    assert staged(shared_server, urls[1]).read_bytes() == b"d" and not staged(shared_server, url).exists()
    assert patch(shared_server, urls[1], b"ef", 1).status_code == 204
    for offset in (0, 6):
        assert patch(shared_server, url, b"xy", offset).status_code == 403
    assert stored(shared_server, url) == b"abcdef"
