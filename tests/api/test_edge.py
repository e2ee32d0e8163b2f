"""What stands before every request: CORS, trusted proxies, headers that do not come or do not end."""

import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests

from server import config
from server.supervisor import running
from tests.server import Server, sha256
from tests.support import eventually

EMR = "https://emr.example"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    extra = "[uploads]\nheader_timeout_s = 1\nprogress_floor_bytes_per_s = 100\nprogress_window_s = 1\n"
    server = Server(tmp_path_factory.mktemp("edge") / "server", extra=extra)
    server.http = f'cors_origins = ["{EMR}"]\ntrusted_proxies = ["127.0.0.0/8"]\n'
    server.start()
    yield server
    server.stop()


# --- CORS -----------------------------------------------------------------------------------------------


def preflight(server: Server, path: str, origin: str = EMR) -> Any:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "upload-offset",
    }
    return requests.options(server.url + path, headers=asked, timeout=10)


@pytest.mark.parametrize("path", ["/files", "/files/x", "/api/v1/upload-sessions/create_session/"])
def test_a_page_of_an_allowed_origin_may_call(edge: Server, path: str) -> None:
    answer = preflight(edge, path)
    assert answer.status_code == 204 and answer.headers["Access-Control-Allow-Origin"] == EMR
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
    allowed = answer.headers["Access-Control-Allow-Headers"]
    for name in ("Authorization", "Idempotency-Key", "Last-Event-ID", "Tus-Resumable", "Upload-Offset", "Repr-Digest"):
        assert name in allowed
    assert answer.headers["X-Request-Id"]


def test_what_a_page_may_read_is_exposed_on_failures_too(edge: Server) -> None:
    for headers in ({"Origin": EMR}, {"Origin": EMR, **edge.auth}):
        answer = requests.post(f"{edge.url}/files", headers=headers, timeout=10)
        assert answer.status_code in (401, 412)
        assert answer.headers["Access-Control-Allow-Origin"] == EMR and "Origin" in answer.headers["Vary"]
        exposed = answer.headers["Access-Control-Expose-Headers"]
        for name in (
            "Location",
            "Upload-Offset",
            "Tus-Version",
            "Packhorse-Status",
            "X-Request-Id",
            "Retry-After",
            "ETag",
        ):
            assert name in exposed


def test_another_origin_is_refused_and_the_line_to_add_is_logged(edge: Server) -> None:
    answer = preflight(edge, "/files", "https://evil.example")
    assert "Access-Control-Allow-Origin" not in answer.headers
    log = (edge.folder / "server.log").read_text()
    assert 'cors_origins = [\\"https://evil.example\\"]' in log


# --- no tokens ------------------------------------------------------------------------------------------


@pytest.fixture
async def open_server(tmp_path: Path) -> AsyncIterator[str]:
    path = tmp_path / "packhorse.toml"
    http = f'[http]\nport = 0\npublic_url = "https://pacs.example"\ncors_origins = ["{EMR}"]\n'
    path.write_text(f'{http}[auth]\nmode = "none"\n[dicom]\nenabled = false\n')
    async with running(config.load(path)) as server:
        yield server.url


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "SELF"}, 200),
        ({"Origin": EMR}, 200),
        ({"Origin": "https://pacs.example", "Host": "pacs.example"}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Host": "[", "Origin": "http://["}, 403),
    ],
)
async def test_without_tokens_other_sites_pages_and_foreign_names_are_refused(
    open_server: str, headers: dict[str, str], status: int
) -> None:
    fields = {name: open_server if value == "SELF" else value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session:
        for method, path in (("GET", "/api/v1/"), ("GET", "/api/v1/upload-sessions/")):
            async with session.request(method, open_server + path, headers=fields) as answer:
                assert answer.status == status, await answer.text()
                assert status == 200 or (await answer.json())["code"] == "foreign_page"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain;charset=UTF-8", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/x-www-form-urlencoded", 201),
        ("application/json", 201),
        ("application/vnd.emr+json", 201),
    ],
)
def test_what_is_surely_no_json_is_refused(shared_server: Server, kind: str, status: int) -> None:
    body = json.dumps({"file_name": "a.bin", "file_size": 1, "checksum_sha256": sha256(kind.encode())})
    path = f"{shared_server.url}/api/v1/upload-sessions/create_session/"
    answer = requests.post(path, body, headers={**shared_server.auth, "Content-Type": kind}, timeout=10)
    assert answer.status_code == status, answer.text


# --- trusted proxies ------------------------------------------------------------------------------------


def located(server: Server, **headers: str) -> str:
    words = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = requests.post(
        f"{server.url}/files",
        headers={**server.auth, "Tus-Resumable": "1.0.0", "Upload-Length": "5", **words},
        timeout=10,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"]).rsplit("/files/", 1)[0]


def test_a_trusted_proxy_tells_the_url_that_clients_use(edge: Server) -> None:
    given = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "pacs.example", "X_Forwarded_For": "10.1.2.3"}
    assert located(edge, **given) == "https://pacs.example"
    assert located(edge, Forwarded='for=10.1.2.3;host="pacs.example:8443";proto=https') == "https://pacs.example:8443"
    assert located(edge) == edge.url


def test_a_forwarded_that_the_proxy_passes_on_is_not_believed_beside_its_own_fields(edge: Server) -> None:
    passed_on = {"Forwarded": "for=6.6.6.6;host=evil.example;proto=https"}
    told = located(edge, **passed_on, X_Forwarded_Host="pacs.clinic.example", X_Forwarded_Proto="https")
    assert told == "https://pacs.clinic.example"
    assert located(edge, **passed_on, X_Forwarded_For="10.1.2.3") == edge.url


def test_of_two_proxies_the_one_that_the_client_met_tells_the_url(edge: Server) -> None:
    both = {"X_Forwarded_For": "10.1.2.3, 127.0.0.9", "X_Forwarded_Host": "public.example, inner.local:8080"}
    assert located(edge, **both, X_Forwarded_Proto="https, http") == "https://public.example"
    assert located(edge, **both, X_Forwarded_Proto="https") == "https://public.example"
    spoofed = {"X_Forwarded_For": "10.1.2.3", "X_Forwarded_Host": "evil.example, public.example"}
    assert located(edge, **spoofed, X_Forwarded_Proto="http, https") == "https://public.example"
    outer, inner = "for=10.1.2.3;host=public.example;proto=https", 'for=127.0.0.9;host="inner.local:8080"'
    assert located(edge, Forwarded=f"for=6.6.6.6;host=evil.example;proto=http, {outer}, {inner}") == (
        "https://public.example"
    )


@pytest.mark.parametrize("host", ["evil.example/path", "a b", "user@evil", "", "x" * 300])
def test_a_host_that_is_none_is_not_believed(edge: Server, host: str) -> None:
    assert located(edge, X_Forwarded_Proto="https", X_Forwarded_Host=host) == edge.url


def test_nobody_else_is_believed(shared_server: Server) -> None:
    given = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "evil.example"}
    assert located(shared_server, **given) == shared_server.url


def test_the_caller_behind_a_proxy_is_the_one_in_the_audit(edge: Server) -> None:
    answer = requests.post(
        f"{edge.url}/files",
        b"abc",
        headers={
            **edge.auth,
            "Tus-Resumable": "1.0.0",
            "Upload-Length": "3",
            "Content-Type": "application/offset+octet-stream",
            "X-Forwarded-For": "6.6.6.6, 10.1.2.3, 127.0.0.9",
        },
        timeout=10,
    )
    assert answer.status_code == 201
    newest = edge.api("GET", "/upload-sessions/?limit=1").json()["results"][0]["session_id"]
    rows = edge.api("GET", f"/upload-sessions/{newest}/history/").json()
    peers = {row["peer"] for row in rows["results"] if row["action"] == "upload.transfer"}
    assert peers == {"10.1.2.3"}


# --- what does not come, or does not end ----------------------------------------------------------------


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize("start", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"PATCH /fi"])
def test_a_header_that_does_not_come_ends_the_connection(edge: Server, start: bytes) -> None:
    with connect(edge) as line:
        line.sendall(start)
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert line.recv(1000) == b""
        assert time.monotonic() - began < 5


def test_a_second_request_has_its_own_time_for_its_header(edge: Server) -> None:
    with connect(edge) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET /healthz HTT")
        with suppress(ConnectionResetError):
            assert line.recv(1000) == b""


def test_a_refusal_is_read_however_long_the_body_is(edge: Server) -> None:
    url = edge.tus("POST", "/files", Upload_Length=str(60 << 20)).headers["Location"]
    body = bytes(50 << 20)
    with requests.Session() as session:
        fields = {"Tus-Resumable": "1.0.0", "Upload-Offset": "7", "Content-Type": "application/offset+octet-stream"}
        for authorization, status in (({"Authorization": "Bearer no"}, 401), (edge.auth, 409), (edge.auth, 409)):
            assert session.patch(url, body, headers={**fields, **authorization}, timeout=20).status_code == status


@pytest.mark.parametrize("body", [b"", b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("half", [b"GET /healthz HTT", b""])
def test_half_a_header_behind_a_request_has_its_time_too(edge: Server, body: bytes, half: bytes) -> None:
    path = b"/api/v1/upload-sessions/x/cancel/"
    content = b"" if not body else b"{}" if b"Length" in body else b"2\r\n{}\r\n0\r\n\r\n"
    with connect(edge) as line:
        line.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + body + b"\r\n" + content + half)
        assert line.recv(4000).startswith(b"HTTP/1.1 401")
        line.settimeout(3)
        if half:
            with suppress(ConnectionResetError):
                assert line.recv(1000) == b""
        else:  # an idle connection is not hurried
            with pytest.raises(TimeoutError):
                line.recv(1000)


def test_a_header_without_end_is_refused(edge: Server) -> None:
    with connect(edge) as line:
        fields = b"".join(b"X-%d: y\r\n" % number for number in range(110))
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
        assert line.recv(1000).split(b" ")[1] in (b"431", b"400")
    with connect(edge) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n")
        assert line.recv(1000).split(b" ")[1] == b"400"


@pytest.mark.parametrize("length", [1000, 8_000_000])
async def test_a_body_that_makes_no_progress_is_ended_and_what_came_is_kept(edge: Server, length: int) -> None:
    url = edge.tus("POST", "/files", Upload_Length=str(length)).headers["Location"]
    with connect(edge) as line:
        head = (
            f"PATCH {url.removeprefix(edge.url)} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Authorization: Bearer {edge.token}\r\nContent-Type: application/offset+octet-stream\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        line.sendall(head.encode() + b"x" * 50)
        answer = line.recv(1000)
        assert b"503" in answer.split(b"\r\n")[0], answer
    await eventually(lambda: edge.tus("HEAD", url).headers["Upload-Offset"] == "50")


def test_the_log_tells_no_traceback(edge: Server) -> None:
    assert "Traceback" not in Path(edge.folder / "server.log").read_text()
