"""Links that prove by themselves: one picture, for minutes, for whom they were told, and nothing else."""

import base64
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from server.auth import Principal, Role
from server.errors import RequestError
from server.identity import signatures
from server.identity.signatures import Signatures
from storage.records import timestamp
from tests.builders import ct
from tests.server import Server, create, patch, upload_url
from tests.support import eventually


@pytest.fixture
def image(shared_server: Server, tmp_path: Path) -> dict[str, Any]:
    """A stored CT of order `o`, in visit 77, as the admin sees it."""
    content = ct(tmp_path / "ct.dcm").read_bytes()
    made = create(shared_server, content, radiology_order_id=f"o{uuid.uuid4().hex[:8]}")
    url = upload_url(shared_server, made["session_id"])
    assert patch(shared_server, url, content).headers["Packhorse-Status"] == "SYNCED"
    session = shared_server.api("GET", f"/upload-sessions/{made['session_id']}/").json()
    return dict(session["images"][0])


def get(url: str, method: str = "GET", **headers: str) -> requests.Response:
    return requests.request(method, url, headers=headers, timeout=30)


def minted(server: Server, **fields: Any) -> dict[str, Any]:
    return dict(server.api("POST", "/tokens/", fields).json())


def test_a_page_shows_pictures_without_a_token_in_their_urls(shared_server: Server, image: dict[str, Any]) -> None:
    for name in ("thumbnail", "rendered"):
        url = image["links"][name]
        assert shared_server.token.split("_", 2)[2] not in url
        answer = get(url)
        assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/png", answer.text
        assert get(url, "HEAD").status_code == 200 and get(f"{url}&accept=image/jpeg").status_code == 200
        assert get(url.split("?")[0]).status_code == 401
        assert get(url.split("?")[0], **shared_server.auth).status_code == 200
    told = get(image["links"]["thumbnail"])
    assert get(image["links"]["thumbnail"], **{"If-None-Match": told.headers["ETag"]}).status_code == 304


def test_a_signature_is_good_for_its_path_and_for_reading_only(shared_server: Server, image: dict[str, Any]) -> None:
    query = urlsplit(image["links"]["thumbnail"]).query
    root = f"{shared_server.url}/api/v1"
    for path in (f"/images/{image['id']}/rendered", f"/images/{image['id']}/file", f"/images/{image['id']}/",
                 f"/images/{image['id'] + 1}/thumbnail", "/upload-sessions/", "/"):  # fmt: skip
        assert get(f"{root}{path}?{query}").status_code == 401, path
    assert get(f"{root}/images/{image['id']}/thumbnail/?{query}").status_code == 200
    for method in ("POST", "PUT", "DELETE"):
        assert get(image["links"]["thumbnail"], method).status_code in (401, 405)


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text.replace(".", ".."),
        lambda text: text.partition(".")[0],
        lambda text: "." + text.partition(".")[2],
        lambda text: "",
        lambda text: "\u00e4.\u00e4",
        lambda text: _changed(text, 0, 2**40),
        lambda text: _changed(text, 2, "south"),
        lambda text: _changed(text, 3, "admin"),
        lambda text: "x" * 5000,
    ],
)
def test_a_signature_that_is_not_ours_is_refused(
    shared_server: Server, image: dict[str, Any], forge: Callable[[str], str]
) -> None:
    url, _, text = image["links"]["thumbnail"].partition("?signed=")
    answer = get(f"{url}?signed={forge(text)}")
    assert answer.status_code in (401, 429) and answer.json()["code"] in ("unauthorized", "too_many_attempts")


def _changed(text: str, place: int, value: Any) -> str:
    claims, _, mac = text.partition(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=="))
    said[place] = value
    return f"{base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b'=').decode()}.{mac}"


async def test_the_links_see_what_their_principal_sees_and_die_with_its_token(
    shared_server: Server, image: dict[str, Any]
) -> None:
    server, path = shared_server, f"/images/{image['id']}/"
    viewer = minted(server, role="viewer", visit_id=77)
    auditor = minted(server, role="auditor")
    url = server.api("GET", path, token=viewer["token"]).json()["links"]["thumbnail"]
    assert get(url).status_code == 200
    assert get(server.api("GET", path, token=auditor["token"]).json()["links"]["thumbnail"]).status_code == 403
    server.api("DELETE", f"/tokens/{viewer['token_id']}/", {"reason": "lost"})
    await eventually(lambda: get(url).status_code == 401, 1.5)


def test_within_a_period_links_and_etags_stay_the_same(shared_server: Server, image: dict[str, Any]) -> None:
    while time.time() % signatures.PERIOD_S > signatures.PERIOD_S - 5:
        time.sleep(1)  # not across the moment at which they change
    first = shared_server.api("GET", f"/images/{image['id']}/")
    again = shared_server.api("GET", f"/images/{image['id']}/", If_None_Match=first.headers["ETag"])
    assert again.status_code == 304


def test_the_key_is_the_owners_alone_and_survives_a_restart(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    key = server.folder / "data" / "urls.secret"
    assert key.stat().st_mode & 0o777 == 0o600 and len(before := key.read_bytes()) == 32
    server.kill()
    server.restart()
    assert key.read_bytes() == before
    server.stop()


def test_a_url_ends_after_minutes_and_no_later_than_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000_000_000.0]
    monkeypatch.setattr(signatures.time, "time", lambda: clock[0])
    who = Principal("0123", "default", Role.VIEWER, "77")
    ours = Signatures(b"k" * 32)

    def is_over(url: str) -> bool:
        path, _, text = url.partition("?signed=")
        found, over = ours.check(path, text)
        assert (found.name, found.site, found.role, found.visit_id) == ("0123", "default", Role.VIEWER, "77")
        return over

    url = ours.signed("/a/b", who)
    began = clock[0]
    while not is_over(url):
        clock[0] += 1
    assert signatures.PERIOD_S <= clock[0] - began <= 2 * signatures.PERIOD_S
    from dataclasses import replace
    from datetime import UTC, datetime

    short = replace(who, expires_at=timestamp(datetime.fromtimestamp(clock[0] + 20, UTC)))
    url, began = ours.signed("/a/b", short), clock[0]
    while not is_over(url):
        clock[0] += 1
    assert clock[0] - began == 20
    with pytest.raises(RequestError):
        Signatures(b"l" * 32).check("/a/b", url.partition("?signed=")[2])
