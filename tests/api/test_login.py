"""A browser logs in with a one-time code; its cookie is good for our own pages, and for no other page."""

import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.chromium import Chromium
from tests.server import Server, packhorse, sha256, upload_metadata
from tests.support import eventually


class Browser:
    """What a browser does for a page of `origin`: keeps cookies, and says which page asks."""

    def __init__(self, server: Server, origin: str = "", site: str = "same-origin") -> None:
        self.server, self.session = server, requests.Session()
        self.session.headers.update({"Origin": origin or server.url, "Sec-Fetch-Site": site})
        self.csrf: dict[str, str] = {}

    def log_in(self, code: str) -> requests.Response:
        answer = self.call("POST", "/api/v1/login", json={"code": code})
        if answer.status_code == 200:
            self.csrf = {"X-CSRF-Token": answer.json()["csrf_token"]}
        return answer

    def call(self, method: str, path: str, **given: Any) -> requests.Response:
        headers = {**self.csrf, **given.pop("headers", {})}
        return self.session.request(method, self.server.url + path, headers=headers, timeout=30, **given)


def token(server: Server, **fields: Any) -> dict[str, Any]:
    return dict(server.api("POST", "/tokens/", {"role": "uploader", **fields}).json())


def code_of(server: Server, token_id: str) -> str:
    answer = server.api("POST", f"/tokens/{token_id}/code/")
    assert answer.status_code == 201 and answer.json()["url"] == f"{server.url}/login#code={answer.json()['code']}"
    return str(answer.json()["code"])


@pytest.fixture
def browser(shared_server: Server) -> Browser:
    one = Browser(shared_server)
    assert one.log_in(code_of(shared_server, token(shared_server)["token_id"])).status_code == 200
    return one


def test_a_code_gives_a_cookie_that_no_script_reads(shared_server: Server) -> None:
    told, one = token(shared_server, visit_id=77, created_by_id="u7"), Browser(shared_server)
    code = code_of(shared_server, told["token_id"])
    answer = one.log_in(code)
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("packhorse=") and all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert "Secure" not in cookie and "Domain" not in cookie
    assert 3500 < int(cookie.split("Max-Age=")[1].split(";")[0]) <= 3600  # no longer than its token
    assert (answer.json()["token_id"], answer.json()["visit_id"]) == (told["token_id"], "77")
    secret = one.session.cookies["packhorse"]
    assert secret not in answer.text and answer.headers["Cache-Control"] == "no-store"
    stored = b"".join(path.read_bytes() for path in (shared_server.folder / "data").glob("packhorse.db*"))
    for hidden in (secret, code, answer.json()["csrf_token"]):
        assert hidden.encode() not in stored
    shown = one.call("GET", "/api/v1/login").json()
    assert shown["csrf_token"] == answer.json()["csrf_token"] and shown["token_id"] == told["token_id"]
    assert shown["expires_at"] == answer.json()["expires_at"] is not None
    assert "csrf_token" not in shared_server.api("GET", "/login", token=told["token"]).json()


def test_over_https_the_cookie_is_for_this_host_and_https_only(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.http = 'public_url = "https://pacs.example"\n'
    server.start()
    try:
        answer = server.api("POST", f"/tokens/{server.token.split('_')[1]}/code/").json()
        assert answer["url"].startswith("https://pacs.example/login#code=")
        one = Browser(server, "https://pacs.example")
        cookie = one.log_in(answer["code"]).headers["Set-Cookie"]
        assert cookie.startswith("__Host-packhorse=") and "Secure" in cookie and "Path=/" in cookie
        secret = cookie.split("=", 1)[1].split(";")[0]
        for name, status in (("__Host-packhorse", 200), ("packhorse", 401)):
            asked = requests.get(f"{server.url}/api/v1/", headers={"Cookie": f"{name}={secret}"}, timeout=10)
            assert asked.status_code == status
    finally:
        server.stop()


def test_a_code_is_good_once_whoever_comes_first(shared_server: Server) -> None:
    code = code_of(shared_server, token(shared_server)["token_id"])
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: Browser(shared_server).log_in(code).status_code, range(40)))
    assert sorted(statuses) == [200] + [401] * 39


@pytest.mark.parametrize("change", ["expired", "revoked", "token expired", "made up"])
def test_a_code_that_is_not_good_any_more_is_refused(server: Server, change: str) -> None:
    told = token(server)
    code = code_of(server, told["token_id"])
    if change == "revoked":
        assert server.api("DELETE", f"/tokens/{told['token_id']}/", {"reason": "lost"}).status_code == 200
    if change.endswith("expired"):
        with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
            if change == "expired":
                database.execute("DROP TRIGGER login_code_expires_at_immutable")
            table = "login_code" if change == "expired" else "token"
            database.execute(f"UPDATE {table} SET expires_at = '2026-01-01T00:00:00.000Z'")
    answer = Browser(server).log_in("x" * 43 if change == "made up" else code)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert "Set-Cookie" not in answer.headers


def test_a_code_that_is_wrong_is_a_refused_login(server: Server) -> None:
    assert Browser(server).log_in("no-such-code").status_code == 401
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db")) as database:
        rows = database.execute("SELECT actor, peer FROM audit WHERE action = 'login.refused'").fetchall()
    assert rows == [("anonymous", "127.0.0.1")]


def test_our_own_page_uploads_by_cookie(browser: Browser) -> None:
    given = {"Tus-Resumable": "1.0.0", "Upload-Metadata": upload_metadata(filename="a.bin"), "Upload-Length": "16"}
    made = browser.call("POST", "/files", headers=given)
    path = made.headers["Location"].removeprefix(browser.server.url)
    given = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    answer = browser.call("PATCH", path, data=uuid.uuid4().bytes, headers=given)
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    assert len(browser.call("GET", "/api/v1/upload-sessions/").json()["results"]) == 1


FORGED: dict[str, dict[str, Any]] = {
    "no CSRF token": {"X-CSRF-Token": None},
    "another CSRF token": {"X-CSRF-Token": "0" * 64},
    "a CSRF token that is no text": {"X-CSRF-Token": "\u00ff"},
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "another site that hides": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    "a neighbour": {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    "a neighbour, in an old browser": {"Sec-Fetch-Site": None, "Origin": "http://127.0.0.1:1"},
    "an origin that cannot be read": {"Sec-Fetch-Site": None, "Origin": "http://["},
    "no page at all": {"Sec-Fetch-Site": "none"},
    "a browser that does not say": {"Sec-Fetch-Site": None, "Origin": None},
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
def test_what_another_page_sends_changes_nothing(browser: Browser, headers: dict[str, Any]) -> None:
    body = {"file_name": "a.bin", "file_size": 16, "checksum_sha256": sha256(uuid.uuid4().bytes)}
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
    before = len(browser.call("GET", "/api/v1/upload-sessions/").json()["results"])
    for method, path, given in (
        ("POST", "/api/v1/upload-sessions/create_session/", {"json": body}),
        ("POST", "/files", {"headers": tus}),
        ("POST", "/api/v1/logout", {}),
        ("GET", "/files/0", {"headers": {**tus, "X-HTTP-Method-Override": "DELETE"}}),
    ):
        answer = browser.call(method, path, **{**given, "headers": {**given.get("headers", {}), **headers}})
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf_refused"), (method, path)
    found = browser.call("GET", "/api/v1/upload-sessions/")
    assert found.status_code == 200 and len(found.json()["results"]) == before


@pytest.mark.parametrize("headers", list(FORGED.values())[3:8], ids=list(FORGED)[3:8])
def test_another_page_reads_nothing_and_logs_nobody_in(browser: Browser, headers: dict[str, Any]) -> None:
    assert browser.call("GET", "/api/v1/login", headers=headers).status_code == 403
    code = code_of(browser.server, token(browser.server)["token_id"])
    answer = browser.call("POST", "/api/v1/login", json={"code": code}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf_refused")
    assert Browser(browser.server).log_in(code).status_code == 200  # it was not used up


def test_a_bearer_needs_no_csrf_token_whatever_cookie_comes_along(browser: Browser) -> None:
    answer = browser.call("POST", "/api/v1/tokens/", json={"role": "viewer"}, headers={
        **browser.server.auth, "X-CSRF-Token": None, "Origin": "https://evil.example"})  # fmt: skip
    assert answer.status_code == 201


async def test_logging_out_ends_the_cookie_and_not_the_token(shared_server: Server) -> None:
    told, one = token(shared_server), Browser(shared_server)
    one.log_in(code_of(shared_server, told["token_id"]))
    cookie = {"Cookie": f"packhorse={one.session.cookies['packhorse']}"}
    answer = one.call("POST", "/api/v1/logout")
    assert answer.status_code == 204 and "Max-Age=0" in answer.headers["Set-Cookie"]

    def status() -> int:
        return requests.get(f"{shared_server.url}/api/v1/", headers=cookie, timeout=10).status_code

    await eventually(lambda: status() == 401, 1.5)
    assert shared_server.api("GET", "/", token=told["token"]).status_code == 200
    with closing(sqlite3.connect(shared_server.folder / "data" / "packhorse.db", timeout=30)) as database:
        query = "SELECT action FROM audit WHERE subject = ? ORDER BY seq"
        actions = [row[0] for row in database.execute(query, (f"token/{told['token_id']}",))]
    assert actions == ["token.created", "token.code", "login.accepted", "login.ended"]


async def test_a_revoked_token_takes_its_browsers_along(shared_server: Server) -> None:
    told, one = token(shared_server), Browser(shared_server)
    one.log_in(code_of(shared_server, told["token_id"]))
    assert one.call("GET", "/api/v1/").status_code == 200
    shared_server.api("DELETE", f"/tokens/{told['token_id']}/", {"reason": "lost"})
    await eventually(lambda: one.call("GET", "/api/v1/").status_code == 401, 1.5)


def code_by(server: Server, secret: str, token_id: str) -> requests.Response:
    answer: requests.Response = server.api("POST", f"/tokens/{token_id}/code/", token=secret)
    return answer


def test_a_code_is_for_oneself_and_what_one_minted_whatever_else_is_covered(shared_server: Server) -> None:
    server = shared_server
    maker, sibling, uploader = token(server, role="operator"), token(server, role="operator"), token(server)
    child = dict(server.api("POST", "/tokens/", {"role": "operator"}, token=maker["token"]).json())
    grandchild = dict(server.api("POST", "/tokens/", {"role": "uploader"}, token=child["token"]).json())
    for victim in (maker, sibling, uploader):
        answer = code_by(server, child["token"], victim["token_id"])
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    for by, whose in ((child, child), (child, grandchild), (maker, grandchild)):
        assert code_by(server, by["token"], whose["token_id"]).status_code == 201


def test_a_browser_ends_no_later_than_who_let_it_in(shared_server: Server) -> None:
    server, one = shared_server, Browser(shared_server)
    victim, brief = token(server, role="operator"), token(server, role="admin", expires_in_s=90)
    answer = one.log_in(code_by(server, brief["token"], victim["token_id"]).json()["code"])
    assert answer.json()["token_id"] == victim["token_id"] and answer.json()["expires_at"] <= brief["expires_at"]
    assert one.call("GET", "/api/v1/login").json()["expires_at"] == answer.json()["expires_at"]
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
        query = "SELECT detail FROM audit WHERE action = 'login.accepted' AND subject = ?"
        told = database.execute(query, (f"token/{victim['token_id']}",)).fetchall()
    assert [brief["token_id"] in detail for (detail,) in told] == [True]


def test_a_browser_that_another_let_in_makes_nothing_that_would_outlive_him(shared_server: Server) -> None:
    victim, one = token(shared_server, role="operator"), Browser(shared_server)
    one.log_in(code_of(shared_server, victim["token_id"]))
    for path, body in (("", {"role": "viewer"}), (f"{victim['token_id']}/code/", {})):
        answer = one.call("POST", f"/api/v1/tokens/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    own = Browser(shared_server)
    own.log_in(code_by(shared_server, victim["token"], victim["token_id"]).json()["code"])
    assert own.call("POST", "/api/v1/tokens/", json={"role": "viewer"}).status_code == 201


async def test_revoking_who_let_a_browser_in_logs_it_out_and_spoils_his_codes(shared_server: Server) -> None:
    server, one = shared_server, Browser(shared_server)
    victim, maker = token(server, role="operator"), token(server, role="admin")
    one.log_in(code_by(server, maker["token"], victim["token_id"]).json()["code"])
    unused = code_by(server, maker["token"], victim["token_id"]).json()["code"]
    assert one.call("GET", "/api/v1/").status_code == 200
    server.api("DELETE", f"/tokens/{maker['token_id']}/", {"reason": "stolen"})
    assert Browser(server).log_in(unused).status_code == 401
    assert code_by(server, maker["token"], maker["token_id"]).status_code == 401
    await eventually(lambda: one.call("GET", "/api/v1/").status_code == 401, 1.5)
    assert server.api("GET", "/", token=victim["token"]).status_code == 200


def test_a_new_login_ends_the_one_before(browser: Browser) -> None:
    old = {"Cookie": f"packhorse={browser.session.cookies['packhorse']}"}
    url = f"{browser.server.url}/api/v1/"
    assert browser.log_in(code_of(browser.server, token(browser.server)["token_id"])).status_code == 200
    assert requests.get(url, headers=old, timeout=10).status_code == 401
    assert browser.call("GET", "/api/v1/").status_code == 200


def test_the_command_line_makes_codes_too(shared_server: Server) -> None:
    told = token(shared_server, role="auditor")
    made = shared_server.command("token", "code", told["token"])  # the whole token will do
    assert made.returncode == 0 and told["token"] not in made.stdout
    assert Browser(shared_server).log_in(made.stdout.strip()).json()["role"] == "auditor"
    unknown = shared_server.command("token", "code", "0123456789abcdef")
    assert unknown.returncode == 1 and "no token" in unknown.stderr
    shared_server.api("DELETE", f"/tokens/{told['token_id']}/", {"reason": "lost"})
    revoked = shared_server.command("token", "code", told["token_id"])
    assert revoked.returncode == 1 and "revoked" in revoked.stderr


def test_in_a_wrong_folder_no_code_is_made(tmp_path: Path) -> None:
    told = packhorse(tmp_path, "token", "code", "0123456789abcdef")
    assert told.returncode == 1 and not (tmp_path / "data").exists()


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    running = Chromium(tmp_path / "chromium")
    yield running
    running.close()


@pytest.mark.peers
async def test_the_login_page_opens_with_a_code_in_chromium(shared_server: Server, chromium: Chromium) -> None:
    told = token(shared_server, role="viewer")
    url = shared_server.url.replace("127.0.0.1", "localhost")
    chromium.open(f"{url}/login#code={code_of(shared_server, told['token_id'])}")
    await eventually(lambda: "Signed in as viewer" in str(chromium.run("return document.body.innerText")), 20)
    assert chromium.run("return [location.hash, document.cookie]") == ["", ""]  # neither code nor cookie can be read
    chromium.reload()
    await eventually(lambda: "Signed in as viewer" in str(chromium.run("return document.body.innerText")), 20)
    year = told["expires_at"][:4]
    assert year in str(chromium.run("return document.body.innerText")), "the login's end"
    assert "//localhost" not in (shared_server.folder / "server.log").read_text(), "our own page, under another name"
