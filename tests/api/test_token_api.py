"""Tokens over the API: narrower than their maker, short-lived, told once, dead with their maker."""

import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from storage.records import now
from tests.server import Server, create, patch, sha256, upload_metadata
from tests.support import eventually


def mint(server: Server, token: str | None = None, key: str = "", **fields: Any) -> Any:
    headers = {"Idempotency_Key": key} if key else {}
    return server.api("POST", "/tokens/", {"role": "uploader", **fields}, token=token, **headers)


def minted(server: Server, token: str | None = None, **fields: Any) -> dict[str, Any]:
    answer = mint(server, token, **fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def revoke(server: Server, token_id: str, token: str | None = None) -> Any:
    return server.api("DELETE", f"/tokens/{token_id}/", {"reason": "the page was closed"}, token=token)


def rows(server: Server, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
        return database.execute(query).fetchall()


def seconds_left(told: dict[str, Any]) -> float:
    return (datetime.fromisoformat(told["expires_at"]) - now()).total_seconds()


def test_a_minted_token_tells_its_scopes_and_is_told_once(shared_server: Server) -> None:
    told = minted(
        shared_server, visit_id=77, radiology_order_id="123", created_by_id="u7", expires_in_s=600, label="page 7"
    )
    assert (told["visit_id"], told["radiology_order_id"], told["created_by_id"]) == (77, "123", "u7")
    assert 590 < seconds_left(told) <= 600 and told["maker"] == shared_server.token.split("_")[1]
    secret = told["token"].split("_", 2)[2]
    for path in ("/tokens/", f"/tokens/{told['token_id']}/"):
        answer = shared_server.api("GET", path)
        assert told["token_id"] in answer.text and secret not in answer.text
    listed = shared_server.command("token", "list").stdout
    assert told["token_id"] in listed and secret not in listed
    stored = (shared_server.folder / "data" / "packhorse.db").read_bytes()
    assert secret.encode() not in stored


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"role": "root"}, "role"),
        ({"expires_in_s": 86_401}, "expires_in_s"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": "600"}, "expires_in_s"),
        ({"visit_id": "a b"}, "visit_id"),
        ({"radiology_order_id": ""}, "radiology_order_id"),
        ({"label": "x" * 81}, "label"),
        ({"scope": "all"}, "scope"),
    ],
)
def test_what_cannot_be_minted_is_named(shared_server: Server, fields: dict[str, Any], field: str) -> None:
    answer = mint(shared_server, **fields)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "invalid_field", field)


def test_no_token_mints_a_wider_one(shared_server: Server) -> None:
    operator = minted(shared_server, role="operator")["token"]
    visit = minted(shared_server, operator, role="operator", visit_id=77)
    order = minted(shared_server, visit["token"], role="operator", radiology_order_id=123, created_by_id="u7")
    assert (order["visit_id"], order["radiology_order_id"]) == ("77", 123)  # what is left out is the maker's
    for maker, wider in (
        (operator, {"role": "admin"}),
        (operator, {"role": "auditor"}),
        (operator, {"site": "south"}),
        (shared_server.token, {"site": "south"}),
        (visit["token"], {"visit_id": 78}),
        (order["token"], {"radiology_order_id": 124}),
        (order["token"], {"created_by_id": "u8"}),
    ):
        answer = mint(shared_server, maker, **wider)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), wider
    for role in ("uploader", "viewer", "auditor"):
        assert mint(shared_server, minted(shared_server, role=role)["token"]).status_code == 403


def test_a_minted_token_ends_no_later_than_its_maker(shared_server: Server) -> None:
    maker = minted(shared_server, role="operator", expires_in_s=60)
    told = minted(shared_server, maker["token"], expires_in_s=3600)
    assert told["expires_at"] == maker["expires_at"]


async def test_it_dies_with_its_maker_and_so_does_what_it_minted(shared_server: Server) -> None:
    server = shared_server
    maker = minted(server, role="operator")
    child = minted(server, maker["token"], role="operator")
    grandchild = minted(server, child["token"])
    other = minted(server)
    for one in (maker, child, grandchild, other):
        assert server.api("GET", "/", token=one["token"]).status_code == 200
    answer = revoke(server, maker["token_id"])
    assert answer.status_code == 200 and answer.json()["revoked_at"]
    for one in (maker, child, grandchild):
        await eventually(lambda one=one: server.api("GET", "/", token=one["token"]).status_code == 401, 1.5)
    assert server.api("GET", "/", token=other["token"]).status_code == 200
    found = dict(rows(server, "SELECT subject, detail FROM audit WHERE action = 'token.revoked'"))
    for one in (maker, child, grandchild):
        assert "the page was closed" in found[f"token/{one['token_id']}"]
    again = revoke(server, maker["token_id"])
    assert again.status_code == 200 and again.json()["revoked_at"] == answer.json()["revoked_at"]
    assert mint(server, maker["token"]).status_code == 401


def test_a_maker_that_was_just_revoked_mints_nothing_though_it_is_remembered(shared_server: Server) -> None:
    for _ in range(5):
        maker = minted(shared_server, role="operator")
        assert mint(shared_server, maker["token"]).status_code == 201
        assert revoke(shared_server, maker["token_id"]).status_code == 200
        assert mint(shared_server, maker["token"]).status_code == 401  # within the second that it is remembered for


def test_revoking_says_why_and_reaches_only_what_is_covered(shared_server: Server) -> None:
    server = shared_server
    operator, visit = minted(server, role="operator"), minted(server, role="operator", visit_id=77)
    mine, auditor = minted(server, visit["token"]), minted(server, role="auditor")
    admin_id = server.token.split("_")[1]
    for token, token_id in (
        (operator["token"], admin_id),
        (operator["token"], auditor["token_id"]),
        (visit["token"], operator["token_id"]),
        (operator["token"], "0123456789abcdef"),
        (operator["token"], "%2e%2e"),
    ):
        assert revoke(server, token_id, token).status_code == 404
        assert server.api("POST", f"/tokens/{token_id}/code/", token=token).status_code == 404
        assert server.api("GET", f"/tokens/{token_id}/", token=token).status_code == 404
    listed = {
        one["token_id"] for one in server.api("GET", "/tokens/?limit=500", token=visit["token"]).json()["results"]
    }
    assert mine["token_id"] in listed and not listed & {operator["token_id"], auditor["token_id"], admin_id}
    assert server.api("DELETE", f"/tokens/{mine['token_id']}/", token=visit["token"]).status_code == 422
    assert revoke(server, mine["token_id"], visit["token"]).status_code == 200


def test_the_list_goes_on_where_it_ended_and_leaves_out_what_is_over(shared_server: Server) -> None:
    maker = minted(shared_server, role="operator", visit_id=f"v{uuid.uuid4().hex[:8]}")
    made = [minted(shared_server, maker["token"])["token_id"] for _ in range(5)]
    revoke(shared_server, made[2])

    def listing(**query: Any) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            words = "&".join(f"{name}={value}" for name, value in {"limit": 2, **query, "cursor": cursor}.items())
            page = shared_server.api("GET", f"/tokens/?{words}", token=maker["token"]).json()
            assert len(page["results"]) <= 2
            found += [one["token_id"] for one in page["results"]]
            if page["next_cursor"] is None:
                return found
            cursor = page["next_cursor"]

    assert listing() == [maker["token_id"], *made[:2], *made[3:]]
    assert listing(include_ended="true") == [maker["token_id"], *made]


def test_a_lost_answer_is_given_again(shared_server: Server) -> None:
    key, maker = uuid.uuid4().hex, minted(shared_server, role="operator")["token"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: mint(shared_server, maker, key, visit_id=77), range(100)))
    assert sorted({one.status_code for one in answers}) == [200, 201]
    assert len({one.json()["token"] for one in answers}) == 1 and sum(one.status_code == 201 for one in answers) == 1
    token = answers[0].json()
    assert shared_server.api("GET", "/", token=token["token"]).status_code == 200
    assert mint(shared_server, maker, key, visit_id=78).json()["code"] == "idempotency_key_reused"
    other = minted(shared_server, role="operator")["token"]
    assert mint(shared_server, other, key, visit_id=77).json()["token"] != token["token"]  # a key is its maker's
    revoke(shared_server, token["token_id"])
    assert mint(shared_server, maker, key, visit_id=77).status_code == 409


def test_a_token_of_one_order_sees_and_makes_what_belongs_to_it(shared_server: Server) -> None:
    server, order = shared_server, f"o{uuid.uuid4().hex[:8]}"
    token = minted(server, radiology_order_id=order, created_by_id=7)["token"]
    theirs = create(server, uuid.uuid4().bytes, radiology_order_id=order)
    others = create(server, uuid.uuid4().bytes, radiology_order_id=f"{order}x")
    assert server.api("GET", f"/upload-sessions/{theirs['session_id']}/", token=token).status_code == 200
    assert server.api("GET", f"/upload-sessions/{others['session_id']}/", token=token).status_code == 404
    listed = server.api("GET", "/upload-sessions/", token=token).json()["results"]
    assert [one["session_id"] for one in listed] == [theirs["session_id"]]
    assert server.api("GET", f"/upload-sessions/?radiology_order_id={order}x", token=token).json()["results"] == []
    body = {"file_name": "a.bin", "file_size": 5, "checksum_sha256": sha256(uuid.uuid4().bytes)}
    path = "/upload-sessions/create_session/"
    assert server.api("POST", path, body, token=token).status_code == 403  # the inbox is no order's
    assert server.api("POST", path, {**body, "radiology_order_id": f"{order}x"}, token=token).status_code == 403
    made = server.api("POST", path, {**body, "radiology_order_id": order}, token=token)
    assert made.status_code == 201 and made.json()["created_by_id"] == 7
    wrong = {**body, "checksum_sha256": sha256(b"other"), "radiology_order_id": order, "created_by_id": 8}
    assert server.api("POST", path, wrong, token=token).status_code == 403


@pytest.mark.parametrize("length", [16, 300_000])
def test_by_tus_too_a_token_keeps_to_its_order_and_user(shared_server: Server, length: int) -> None:
    server, order = shared_server, f"o{uuid.uuid4().hex[:8]}"
    token = minted(server, radiology_order_id=order, created_by_id="u7")["token"]

    def post(**metadata: str) -> Any:
        content = uuid.uuid4().bytes + bytes(length - 16)
        return server.tus(
            "POST",
            "/files",
            content,
            token=token,
            Upload_Length=str(length),
            Upload_Metadata=upload_metadata(**metadata),
            Content_Type="application/offset+octet-stream",
        )

    assert post(filename="a.bin").status_code == 403
    assert post(radiology_order_id=f"{order}x").status_code == 403
    assert post(radiology_order_id=order, created_by_id="u8").status_code == 403
    made = post(radiology_order_id=order)
    assert made.status_code == 201 and made.headers["Packhorse-Status"] == "SYNCED"
    listed = server.api("GET", "/upload-sessions/", token=token).json()["results"]
    assert [(one["created_by_id"], one["radiology_order_id"]) for one in listed] == [("u7", order)]


async def test_the_next_token_of_a_visit_goes_on_with_the_upload_of_the_last(shared_server: Server) -> None:
    server, visit = shared_server, f"v{uuid.uuid4().hex[:8]}"
    first, second = (minted(server, visit_id=visit, expires_in_s=2)["token"], minted(server, visit_id=visit)["token"])
    metadata = upload_metadata(visit_id=visit, radiology_order_id=f"o{visit}")
    url = server.tus("POST", "/files", token=first, Upload_Length="10", Upload_Metadata=metadata).headers["Location"]
    assert patch(server, url, b"abcde", Authorization=f"Bearer {first}").status_code == 204

    await eventually(lambda: server.api("GET", "/", token=first).status_code == 401)
    head = server.tus("HEAD", url, token=first)
    assert (head.status_code, head.headers["Upload-Offset"]) == (200, "5")
    assert patch(server, url, b"fghij", 5, Authorization=f"Bearer {first}").status_code == 401
    assert patch(server, url, b"fghij", 5, Authorization=f"Bearer {second}").status_code == 204


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server", arguments=("--workers", "2")).start()
    yield server
    server.stop()


async def test_the_last_use_is_noted_once_a_minute_by_all_workers_together(two_workers: Server) -> None:
    server = two_workers
    told = minted(server)
    query = f"SELECT last_used_at FROM token WHERE token_id = '{told['token_id']}'"
    assert rows(server, query) == [(None,)]
    for _ in range(20):
        assert server.api("GET", "/", token=told["token"]).status_code == 200
    await eventually(lambda: rows(server, query) != [(None,)], 10)
    first = rows(server, query)
    for _ in range(20):
        assert server.api("GET", "/", token=told["token"]).status_code == 200
    assert server.stop() == 0  # what waits is written at the end
    assert rows(server, query) == first
    assert first[0][0] in server.command("token", "list").stdout
