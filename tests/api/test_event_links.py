"""`links.events`: a stream for a page that sends no header; of what it was signed for, for whom it was told."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from server.auth import Principal, Role
from server.errors import RequestError
from server.identity import signatures
from server.identity.attempts import Attempts
from server.identity.authenticator import Authenticator
from server.identity.signatures import Signatures
from storage.backends import migrate, open_store
from storage.records import now, timestamp
from tests import builders
from tests.api.test_events import Listener, store
from tests.server import Server
from tests.support import eventually

FILTERS = ("session_id", "radiology_order_id", "study_instance_uid")


@pytest.fixture
def order() -> str:
    """An order id of its own for each test."""
    return uuid.uuid4().hex


class Page(Listener):
    """A page that opens a link as it is, without a header."""

    def __init__(self, server: Server, url: str) -> None:
        assert url.startswith(f"{server.url}/api/v1/events?")
        super().__init__(server, url.removeprefix(f"{server.url}/api/v1/events"), token=None, bare=True)


def told(url: str, more: str = "", **headers: str) -> requests.Response:
    """What the link tells as JSON."""
    return requests.get(f"{url}{more}", headers={"Accept": "application/json", **headers}, timeout=30)


def links_of(server: Server, session_id: str, order: str, token: str | None = None) -> dict[str, str]:
    """The links of a session, its order, its study; the study's also as the list has it."""

    def got(path: str) -> Any:
        return server.api("GET", path, token=token).json()

    session = got(f"/upload-sessions/{session_id}/")
    uid = session["images"][0]["study_instance_uid"]
    listed = next(one for one in got("/studies/?limit=500")["results"] if one["study_instance_uid"] == uid)
    links = {
        "session_id": session["links"]["events"],
        "radiology_order_id": got(f"/orders/{order}/")["links"]["events"],
        "study_instance_uid": got(f"/studies/{uid}/")["links"]["events"]}  # fmt: skip
    assert listed["links"]["events"].partition("&")[0] == links["study_instance_uid"].partition("&")[0]
    return links


@pytest.fixture
def links(shared_server: Server, tmp_path: Path, order: str) -> Iterator[dict[str, str]]:
    """The links of a stored CT, by their filters."""
    content = builders.ct(tmp_path / "ct.dcm").read_bytes()
    yield links_of(shared_server, store(shared_server, content, "ct.dcm", radiology_order_id=order), order)


async def test_a_page_hears_of_its_order_without_a_header(shared_server: Server, order: str) -> None:
    store(shared_server, uuid.uuid4().bytes, radiology_order_id=order)
    url = shared_server.api("GET", f"/orders/{order}/").json()["links"]["events"]
    assert shared_server.token.split("_", 2)[2] not in url
    page = Page(shared_server, url)
    store(shared_server, uuid.uuid4().bytes, radiology_order_id=f"{order}x")
    mine = store(shared_server, uuid.uuid4().bytes, radiology_order_id=order)
    await eventually(lambda: "session.synced" in page.kinds(), 10)
    page.close()
    assert {body["data"]["session_id"] for _, _, body in page.heard if "session_id" in body["data"]} == {mine}


def test_each_link_tells_of_what_it_was_signed_for(links: dict[str, str]) -> None:
    for name, url in links.items():
        assert [one for one in parse_qs(urlsplit(url).query) if one != "signed"] == [name]
        answer = told(url, "&after=0&limit=500")  # the place is the reader's own choice
        assert answer.status_code == 200
        kinds = {event["type"] for event in answer.json()["results"]}
        assert {"session.synced", "image.stored"} & kinds, name


def test_another_filter_than_the_signed_one_is_refused(links: dict[str, str], order: str) -> None:
    for name, url in links.items():
        place, _, query = url.partition("?")
        filter_, _, signed = query.partition("&")
        value = filter_.partition("=")[2]
        other = next(one for one in FILTERS if one != name)
        for wrong in (signed, f"{name}={value}x&{signed}", f"{name}=&{signed}", f"{name}={order}0&{signed}",
                      f"{other}={value}&{signed}", f"{filter_}&{filter_}&{signed}", f"{name}=1&{filter_}&{signed}",
                      f"{filter_}&{other}=1&{signed}"):  # fmt: skip
            assert told(f"{place}?{wrong}").status_code == 401, wrong
        assert told(f"{place}/?{query}").status_code == 200
        assert told(f"{place}?{signed}&{filter_}").status_code == 200
    signatures_of = [url.rpartition("=")[2] for url in links.values()]
    assert len(set(signatures_of)) == 3


def test_a_filter_that_is_moved_into_the_signature_is_no_filter(links: dict[str, str]) -> None:
    for name, url in links.items():
        (value,), (signature,) = (parse_qs(urlsplit(url).query)[field] for field in (name, "signed"))
        answer = requests.get(
            url.partition("?")[0],
            params={"signed": f"{name}={value}\n{signature}", "after": "0"},
            headers={"Accept": "application/json"},
            timeout=30,
        )
        assert answer.status_code == 401, (name, answer.text)


def test_a_link_of_events_is_good_for_events_only(shared_server: Server, links: dict[str, str]) -> None:
    query = urlsplit(links["radiology_order_id"]).query
    for path in ("/", "/orders/", "/upload-sessions/", "/images/1/thumbnail"):
        assert told(f"{shared_server.url}/api/v1{path}?{query}").status_code == 401, path


async def test_the_stream_hears_as_its_principal_and_dies_with_its_token(shared_server: Server, order: str) -> None:
    server = shared_server
    made = server.api("POST", "/tokens/", {"role": "uploader"}).json()
    session_id = store(server, uuid.uuid4().bytes, token=made["token"], radiology_order_id=order)
    url = server.api("GET", f"/upload-sessions/{session_id}/", token=made["token"]).json()["links"]["events"]
    of_order = server.api("GET", f"/orders/{order}/", token=made["token"]).json()["links"]["events"]
    store(server, uuid.uuid4().bytes, radiology_order_id=order)  # somebody else's, whom an uploader does not see
    heard = told(of_order, "&after=0&limit=500").json()["results"]
    assert {event["data"].get("session_id", session_id) for event in heard} == {session_id}
    page = Page(server, url)
    server.api("DELETE", f"/tokens/{made['token_id']}/", {"reason": "lost"})
    await eventually(lambda: page.ended, 5)
    await eventually(lambda: told(url).status_code == 401, 3)


async def test_what_a_url_opened_in_its_time_ends_with_the_token_and_not_with_its_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000_000_000.0]
    monkeypatch.setattr(signatures.time, "time", lambda: clock[0])
    ours, path = Signatures(b"k" * 32), "/api/v1/events"
    query = "session_id=s"
    migrate(tmp_path / "p.db")
    opened = open_store(tmp_path / "p.db", tmp_path / "blobs")
    try:
        known = Authenticator(opened, "token", ours, Attempts())
        for left, expired in ((timedelta(days=1), False), (-timedelta(days=1), True), (None, False)):
            expires_at = timestamp(now() + left) if left is not None else None
            url = ours.signed(f"{path}?{query}", Principal("oidc:jane", "default", Role.VIEWER, expires_at=expires_at))
            text, begun = url.rpartition("signed=")[2], clock[0]
            assert known.of_url(path, query, text, None).expired is expired
            clock[0] += 10 * signatures.PERIOD_S
            assert known.of_url(path, query, text, None, goes_on=True).expired is expired
            for asked, goes_on in ((query, False), ("", True), ("session_id=t", True)):
                with pytest.raises(RequestError):
                    known.of_url(path, asked, text, None, goes_on=goes_on)
            clock[0] = begun
    finally:
        await opened.close()
