"""Orders: announced, reconciled with what came before, asked how far they are; the inbox and its links."""

import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import builders
from tests.server import Server, create, patch, sha256, upload_metadata, upload_url

WHY = "the patient said so"


def token(server: Server, *words: str) -> str:
    answer = server.command("token", "create", *words)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.fixture
def order() -> str:
    """An order id of its own for each test."""
    return uuid.uuid4().hex


def announce(server: Server, order: str, **fields: Any) -> Any:
    return server.api("PUT", f"/orders/{order}/", fields)


def sent(server: Server, content: bytes, order: str | None, secret: str | None = None, **fields: Any) -> dict[str, Any]:
    """A session that is SYNCED, under an order or in the inbox."""
    named = {"radiology_order_id": order} if order else {}
    body = {"file_name": "a.dcm", "file_size": len(content), "checksum_sha256": sha256(content), **named, **fields}
    made = server.api("POST", "/upload-sessions/create_session/", body, token=secret)
    assert made.status_code == 201, made.text
    root = f"/upload-sessions/{made.json()['session_id']}"
    assert server.api("POST", f"{root}/upload_metadata/", {"metadata": {}}, token=secret).status_code == 200
    url = server.api("POST", f"{root}/upload_binary/", {}, token=secret).json()["upload_url"]
    server.tus("PATCH", url, content, token=secret, Upload_Offset="0", Content_Type="application/offset+octet-stream")
    return dict(server.api("GET", f"{root}/", token=secret).json())


def image_of(server: Server, session: dict[str, Any]) -> dict[str, Any]:
    assert session["status"] == "SYNCED", session
    return dict(server.api("GET", f"/images/{session['server_image_id']}/").json())


def actions(server: Server, subject: str) -> list[tuple[str, dict[str, Any]]]:
    """The audit rows of a subject."""
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db")) as database:
        rows = database.execute("SELECT action, detail FROM audit WHERE subject = ? ORDER BY seq", [subject])
        return [(action, json.loads(detail)) for action, detail in rows]


FULL = {
    "visit_id": 5,
    "patient_id": "P9",
    "issuer_of_patient_id": "CLINIC",
    "patient_name": "Doe^Jane",
    "patient_birth_date": "1980-02-29",
    "patient_sex": "F",
    "accession_number": "A-9",
    "modality": "CT",
    "requested_procedure_description": "Thorax",
    "study_instance_uid": "1.2.3",
    "scheduled_at": "2026-11-22T10:00:00Z",
    "scheduled_station_ae_title": "CT1",
    "priority": "URGENT",
    "status": "scheduled",
    "expected_images": 3,
}


def test_an_order_gives_back_every_field_and_the_same_word_again_changes_nothing(server: Server, order: str) -> None:
    assert announce(server, order, **FULL).status_code == 201
    known = server.api("GET", f"/orders/{order}/").json()
    assert {name: known[name] for name in FULL} == FULL and known["verified"] is True
    again = announce(server, order, **{**FULL, "visit_id": "5"})
    assert (again.status_code, again.json()["updated_at"]) == (200, known["updated_at"])
    assert [action for action, _ in actions(server, f"order/{order}")] == ["order.announced"]
    # what is not said any more is gone, but for the visit
    assert announce(server, order, patient_id="P9").status_code == 200
    known = server.api("GET", f"/orders/{order}/").json()
    assert (known["visit_id"], known["modality"], known["priority"]) == (5, None, "ROUTINE")
    tag = server.api("GET", f"/orders/{order}/").headers["ETag"]
    assert server.api("GET", f"/orders/{order}/", If_None_Match=tag).status_code == 304


@pytest.mark.parametrize(
    "wrong",
    [
        {"patient_birth_date": "1981-02-29"},
        {"patient_birth_date": "29.2.1980"},
        {"patient_sex": "X"},
        {"accession_number": "A" * 17},
        {"patient_name": "a\nb"},
        {"scheduled_at": "soon"},
        {"priority": "HIGH"},
        {"status": "s" * 65},
        {"expected_images": -1},
        {"expected_images": True},
        {"study_instance_uid": "1.2.x"},
        {"visit_id": "a b"},
        {"colour": "red"},
        {"scheduled_station_ae_title": 7},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_field_that_cannot_be_is_refused_and_nothing_is_kept(
    shared_server: Server, order: str, wrong: dict[str, Any]
) -> None:
    answer = announce(shared_server, order, **wrong)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
    assert next(iter(wrong)) in answer.json()["field"]
    assert shared_server.api("GET", f"/orders/{order}/").status_code == 404


def test_orders_are_listed_by_visit_accession_and_patient_in_pages(server: Server) -> None:
    for number in range(5):
        announce(server, f"o{number}", visit_id=number % 2, accession_number=f"A{number}", patient_id=f"P{number // 2}")
    names = [row["radiology_order_id"] for row in server.api("GET", "/orders/?visit_id=1").json()["results"]]
    assert names == ["o1", "o3"]
    for query, wanted in (("accession_number=A2", ["o2"]), ("patient_id=P1", ["o2", "o3"]), ("patient_id=P7", [])):
        found = server.api("GET", f"/orders/?{query}").json()["results"]
        assert [row["radiology_order_id"] for row in found] == wanted
    seen, cursor = [], ""
    while True:
        page = server.api("GET", f"/orders/?limit=2{cursor}").json()
        seen += [row["radiology_order_id"] for row in page["results"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [f"o{number}" for number in range(5)]
    assert server.api("GET", "/orders/?limit=0").status_code == 422


def test_who_may_see_an_order(server: Server, order: str) -> None:
    announce(server, order, visit_id=77, patient_name="Doe^Jane")
    secrets = {
        "viewer": token(server, "--role", "viewer"),
        "its visit": token(server, "--role", "uploader", "--visit", "77"),
        "another visit": token(server, "--role", "viewer", "--visit", "78"),
        "uploader": token(server, "--role", "uploader"),
        "auditor": token(server, "--role", "auditor"),
        "another site": token(server, "--role", "admin", "--site", "other"),
    }
    for path in (f"/orders/{order}/", f"/orders/{order}/status/", f"/orders/{order}/images/"):
        seen = {name: server.api("GET", path, token=secret).status_code for name, secret in secrets.items()}
        assert seen == {
            "viewer": 200,
            "its visit": 200,
            "another visit": 404,
            "uploader": 404,
            "auditor": 403,
            "another site": 404,
        }, path
    listed = {name: server.api("GET", "/orders/", token=secret).json() for name, secret in secrets.items()}
    assert {name: len(page.get("results", [])) for name, page in listed.items()} == {
        "viewer": 1,
        "its visit": 1,
        "another visit": 0,
        "uploader": 0,
        "auditor": 0,
        "another site": 0,
    }
    for name in ("viewer", "its visit", "auditor"):
        answer = server.api("PUT", f"/orders/{order}/", {"visit_id": 77}, token=secrets[name])
        assert answer.status_code == 403
    # an uploader sees the order once a session of its own names it
    sent(server, uuid.uuid4().bytes, order, secrets["uploader"], file_name="a.bin")
    assert server.api("GET", f"/orders/{order}/", token=secrets["uploader"]).status_code == 200


def named(server: Server, order: str, secret: str, visit: str = "") -> Any:
    digest = sha256(uuid.uuid4().bytes)
    body = {"file_name": "a", "file_size": 3, "checksum_sha256": digest, "radiology_order_id": order}
    root = f"/visits/{visit}/radiology/upload-sessions" if visit else "/upload-sessions"
    return server.api("POST", f"{root}/create_session/", body, token=secret)


@pytest.mark.parametrize("known_by", ["announced", "image", "session"])
def test_a_narrowed_token_brings_no_order_of_others_into_its_visit(server: Server, order: str, known_by: str) -> None:
    wide, narrow = token(server, "--role", "uploader"), token(server, "--role", "operator", "--visit", "66")
    other = token(server, "--role", "uploader", "--visit", "66")
    if known_by == "announced":
        announce(server, order, accession_number="A1")
    elif known_by == "session":
        assert named(server, order, wide).status_code == 201
    else:
        image_id = sent(server, uuid.uuid4().bytes, order, wide, file_name="a.bin")["server_image_id"]
    for secret in (narrow, other):
        answer = named(server, order, secret, visit="66")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert server.api("GET", f"/orders/{order}/", token=secret).status_code == 404
    metadata = upload_metadata(filename="a", radiology_order_id=order, visit_id="66")
    assert server.tus("POST", "/files", token=other, Upload_Length="3", Upload_Metadata=metadata).status_code == 403
    if known_by == "image":
        assert server.api("GET", f"/images/{image_id}/", token=other).status_code == 404
    mine = f"{order}-new"
    assert [named(server, mine, other, visit="66").status_code for _ in range(2)] == [201, 201]
    assert named(server, order, server.token, visit="66").status_code == 201  # a wider one may say so
    assert server.api("GET", f"/orders/{order}/", token=other).status_code == 200


def test_a_narrowed_operator_links_no_image_to_an_order_of_others(server: Server, order: str) -> None:
    announce(server, order, accession_number="A1")
    announce(server, "own", visit_id=66)
    session = sent(server, uuid.uuid4().bytes, "own", file_name="a.bin")
    narrow = token(server, "--role", "operator", "--visit", "66")
    body = {"radiology_order_id": order, "reason": WHY}
    answer = server.api("POST", f"/images/{session['server_image_id']}/link/", body, token=narrow)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert server.api("GET", f"/orders/{order}/").json()["visit_id"] is None


def test_to_name_an_order_tells_neither_its_patient_nor_others_images(server: Server, order: str) -> None:
    announce(server, order, **FULL)
    sent(server, uuid.uuid4().bytes, order, file_name="a.bin")
    secret = token(server, "--role", "uploader")
    own = sent(server, uuid.uuid4().bytes, order, secret, file_name="a.bin")["server_image_id"]
    hidden = {"patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex",
              "accession_number"}  # fmt: skip
    assert all(FULL[name] for name in hidden)
    shown = server.api("GET", f"/orders/{order}/", token=secret).json()
    for body in (shown, server.api("GET", "/orders/", token=secret).json()["results"][0]):
        assert {name for name in FULL if body[name] is None} == hidden and body["images"] == [own]
    listed = server.api("GET", f"/orders/{order}/images/", token=secret).json()["results"]
    assert [image["id"] for image in listed] == [own]
    for name in ("patient_id", "accession_number"):  # nor is the patient found by guessing
        assert server.api("GET", f"/orders/?{name}={FULL[name]}", token=secret).status_code == 403
    of_visit = token(server, "--role", "uploader", "--visit", str(FULL["visit_id"]))
    for one in (of_visit, token(server, "--role", "viewer")):
        seen = server.api("GET", f"/orders/{order}/", token=one).json()
        assert all(seen[name] == FULL[name] for name in hidden) and len(seen["images"]) == 2


def test_an_operator_of_one_order_changes_links_to_that_order_only(server: Server, order: str) -> None:
    narrowed = {"role": "operator", "visit_id": 77, "radiology_order_id": order}
    own = server.api("POST", "/tokens/", narrowed).json()["token"]
    session = sent(server, uuid.uuid4().bytes, order, file_name="a.bin")
    announce(server, order, visit_id=77)
    announce(server, "beside", visit_id=77)
    assert server.api("PUT", f"/orders/{order}/", {"visit_id": 77}, token=own).status_code == 403
    seen = server.api("GET", "/orders/", token=own).json()["results"]
    assert [row["radiology_order_id"] for row in seen] == [order]
    assert server.api("GET", "/orders/beside/status/", token=own).status_code == 404
    path = f"/images/{session['server_image_id']}"
    beside = {"radiology_order_id": "beside", "reason": WHY}
    for verb in ("link", "unlink"):
        assert server.api("POST", f"{path}/{verb}/", beside, token=own).status_code == 403
    body = {"radiology_order_id": order, "reason": WHY}
    assert server.api("POST", f"{path}/unlink/", body, token=own).json()["orders"] == []
    assert server.api("POST", f"{path}/link/", body, token=own).status_code == 404  # it is in the inbox now


def status(server: Server, order: str) -> dict[str, Any]:
    return dict(server.api("GET", f"/orders/{order}/status/").json())


def test_an_order_is_expected_on_its_way_and_there(server: Server) -> None:
    order, contents = "123", [uuid.uuid4().bytes * 50_000 for _ in range(2)]
    announce(server, order, visit_id=77, expected_images=2)
    told = status(server, order)
    assert (told["state"], told["percent"], told["images"], told["expected_images"]) == ("expected", 0, 0, 2)
    assert told["radiology_order_id"] == 123
    first = create(server, contents[0], file_name="a.bin")
    url = upload_url(server, first["session_id"])
    assert patch(server, url, contents[0][:600_000]).status_code == 204
    told = status(server, order)
    # one of two is known, of 800,000 bytes; the other is taken to be as large
    assert (told["state"], told["percent"], told["bytes_received"]) == ("on_its_way", 37, 600_000)
    assert told["sessions"] == {"waiting": 0, "sending": 1, "stored": 0, "failed": 0}
    assert told["bytes_per_s"] > 0 and told["estimated_left_s"] is not None and told["estimated_at"].endswith("Z")
    patch(server, url, contents[0][600_000:], 600_000)
    told = status(server, order)
    assert (told["state"], told["percent"], told["images"], told["estimated_left_s"]) == ("on_its_way", 50, 1, None)
    second = create(server, contents[1], file_name="b.bin")
    assert status(server, order)["sessions"] == {"waiting": 1, "sending": 0, "stored": 1, "failed": 0}
    patch(server, upload_url(server, second["session_id"]), contents[1])
    told = status(server, order)
    assert (told["state"], told["percent"], told["images"]) == ("there", 100, 2)
    assert [action for action, _ in actions(server, f"order/{order}")].count("order.complete") == 1
    listed = server.api("GET", f"/orders/{order}/images/").json()["results"]
    assert [one["id"] for one in listed] == server.api("GET", f"/orders/{order}/").json()["images"]
    third = create(server, uuid.uuid4().bytes, file_name="c.bin")
    server.api("POST", f"/upload-sessions/{third['session_id']}/cancel/", {"reason": "one too many"})
    assert (status(server, order)["state"], status(server, order)["sessions"]["failed"]) == ("there", 1)


def test_without_a_number_an_order_is_there_when_nothing_more_is_coming(server: Server) -> None:
    one, other = uuid.uuid4().bytes, uuid.uuid4().bytes
    session = create(server, one, file_name="a.bin")
    assert status(server, "123")["state"] == "on_its_way"
    patch(server, upload_url(server, session["session_id"]), one)
    assert (status(server, "123")["state"], status(server, "123")["expected_images"]) == ("there", None)
    create(server, other, file_name="b.bin")
    assert status(server, "123")["state"] == "on_its_way"


def test_an_unknown_order_is_taken_and_reconciled_when_the_emr_announces_it(
    server: Server, tmp_path: Path, order: str
) -> None:
    content = builders.ct(tmp_path / "a.dcm", PatientID="P1").read_bytes()
    session = sent(server, content, order)
    assert session["visit_id"] is None and image_of(server, session)["flags"] == []
    assert server.api("GET", f"/orders/{order}/").json()["verified"] is False
    of_visit = token(server, "--role", "viewer", "--visit", "77")
    path = f"/upload-sessions/{session['session_id']}/"
    assert server.api("GET", path, token=of_visit).status_code == 404
    assert announce(server, order, visit_id=77, patient_id="P2").status_code == 200
    assert image_of(server, session)["flags"] == ["patient_mismatch"]
    assert server.api("GET", path, token=of_visit).json()["visit_id"] == 77
    assert ("image.flagged", {"radiology_order_id": order, "flags": ["patient_mismatch"]}) in actions(
        server, f"image/{session['server_image_id']}"
    )
    # the EMR mends its word: nothing contradicts any more, and nothing was re-labelled
    announce(server, order, visit_id=77, patient_id="P1")
    assert image_of(server, session)["flags"] == []
    announce(server, order, visit_id=77, patient_id="P1", issuer_of_patient_id="CLINIC")
    assert image_of(server, session)["flags"] == []
    assert server.command("fsck").returncode == 0 and server.command("audit", "verify").returncode == 0


def test_images_that_came_before_their_order_are_linked_by_its_accession_number(
    server: Server, tmp_path: Path, order: str
) -> None:
    content = builders.ct(tmp_path / "a.dcm", AccessionNumber="ACC-1", PatientID="P1").read_bytes()
    other = builders.ct(tmp_path / "b.dcm", AccessionNumber="ACC-2", PatientID="P1").read_bytes()
    one, two = sent(server, content, None), sent(server, other, None)
    announce(server, order, accession_number="ACC-1", patient_id="P1", visit_id=9)
    assert image_of(server, one)["orders"] == [order] and image_of(server, two)["orders"] == []
    assert [row["id"] for row in server.api("GET", "/inbox/").json()["images"]] == [two["server_image_id"]]
    # two orders of one number: a person must choose
    announce(server, "x1", accession_number="ACC-3")
    announce(server, "x2", accession_number="ACC-3")
    third = builders.ct(tmp_path / "c.dcm", AccessionNumber="ACC-3").read_bytes()
    assert image_of(server, sent(server, third, None))["orders"] == []


def test_a_raised_priority_raises_what_waits_and_a_lowered_one_nothing(server: Server, order: str) -> None:
    body = {"file_name": "a", "file_size": 1, "checksum_sha256": "5" * 64, "radiology_order_id": order}
    given = {**body, "session_id": str(uuid.uuid4())}
    waits = server.api("POST", "/upload-sessions/create_session/", given).json()
    done = sent(server, uuid.uuid4().bytes, order, file_name="a.bin")
    path = f"/upload-sessions/{waits['session_id']}/"
    for priority, expected in (("URGENT", "URGENT"), ("ROUTINE", "URGENT"), ("STAT", "STAT")):
        announce(server, order, priority=priority)
        assert server.api("GET", path).json()["priority"] == expected
    session = server.api("GET", path).json()
    assert session["seq"] > waits["seq"]
    assert [detail["to"] for action, detail in actions(server, session["session_id"]) if action == "session.priority"]
    assert server.api("GET", f"/upload-sessions/{done['session_id']}/").json()["priority"] == "ROUTINE"
    # its maker, who knows of nothing, may say the same again
    again = server.api("POST", "/upload-sessions/create_session/", given)
    assert (again.status_code, again.json()["priority"]) == (200, "STAT")
    asked = server.api("POST", "/upload-sessions/create_session/", {**given, "max_retries": 3})
    assert (asked.status_code, asked.json()["fields"]) == (409, ["max_retries"])


def test_a_session_of_an_urgent_order_is_as_urgent_from_the_start(server: Server, order: str) -> None:
    announce(server, order, priority="URGENT")
    root, content = "/upload-sessions", iter(range(1000))

    def body(**fields: Any) -> dict[str, Any]:
        digest = sha256(str(next(content)).encode())
        return {"file_name": "a", "file_size": 9, "checksum_sha256": digest, "radiology_order_id": order, **fields}

    made = server.api("POST", f"{root}/create_session/", (first := body())).json()
    assert made["priority"] == "URGENT"
    again = server.api("POST", f"{root}/create_session/", {**first, "session_id": made["session_id"]})
    assert (again.status_code, again.json()["priority"]) == (200, "URGENT")
    assert server.api("POST", f"{root}/create_session/", body(priority="STAT")).json()["priority"] == "STAT"
    batch = server.api("POST", f"{root}/batch/", {"sessions": [body(), body(priority="STAT")]}).json()["results"]
    assert [one["session"]["priority"] for one in batch] == ["URGENT", "STAT"]
    named = upload_metadata(filename="a.bin", radiology_order_id=order)
    server.tus("POST", "/files", Upload_Length="9", Upload_Metadata=named)
    server.tus("POST", "/files", b"123456789", Upload_Length="9", Upload_Metadata=named,
               Content_Type="application/offset+octet-stream")  # fmt: skip
    rufh = {**server.auth, "Upload-Complete": "?0", "Upload-Metadata": named}
    assert requests.post(f"{server.url}/files", b"12345", headers=rufh, timeout=30).status_code == 201
    listed = server.api("GET", f"{root}/?radiology_order_id={order}").json()["results"]
    assert [one["priority"] for one in listed[:3]] == ["URGENT"] * 3 and len(listed) == 7


def everywhere(server: Server, order: str, session: dict[str, Any]) -> dict[str, Any]:
    """The order's id in each answer that names it."""
    image, root = session["server_image_id"], f"/orders/{order}"
    link(server, image, order, "unlink")
    events = server.api("GET", f"/events?after=0&limit=500&radiology_order_id={order}").json()["results"]
    told: dict[str, Any] = {
        "order": server.api("GET", f"{root}/").json()["radiology_order_id"],
        "list": server.api("GET", "/orders/").json()["results"][0]["radiology_order_id"],
        "status": server.api("GET", f"{root}/status/").json()["radiology_order_id"],
        "link": link(server, image, order).json()["orders"][0],
        "image": server.api("GET", f"/images/{image}/").json()["orders"][0],
        "images": server.api("GET", f"{root}/images/").json()["results"][0]["orders"][0],
        "session": server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["radiology_order_id"],
        "its image": session["images"][0]["orders"][0],
        "study": server.api("GET", f"/studies/{session['images'][0]['study_instance_uid']}/").json(
            )["series"][0]["images"][0]["orders"][0]}
    for event in events:
        data = event["data"]
        told[event["type"]] = data["radiology_order_id"] if "radiology_order_id" in data else data["orders"][0]
    assert {"session.status", "session.synced", "image.stored", "order.complete"} <= set(told)
    return told


@pytest.mark.parametrize(
    ("first", "then"), [(901, "901"), ("901", 901), ("0901", "0901"), ("x-1", "x-1")], ids=str)  # fmt: skip
def test_an_order_answers_everywhere_in_the_form_first_received(
    server: Server, tmp_path: Path, first: int | str, then: int | str
) -> None:
    contents = [builders.ct(tmp_path / f"{seed}.dcm", seed=seed).read_bytes() for seed in (1, 2)]
    one = sent(server, contents[0], str(first), radiology_order_id=first)
    assert announce(server, str(first), expected_images=2, visit_id=7).json()["radiology_order_id"] == first
    two = sent(server, contents[1], str(first), radiology_order_id=then)  # 901 and "901" are one order
    for session in (one, two):
        told = everywhere(server, str(first), session)
        assert told == dict.fromkeys(told, first)
    failed = {"file_name": "a", "file_size": 1, "checksum_sha256": "0" * 64, "radiology_order_id": then}
    made = server.api("POST", "/upload-sessions/create_session/", failed).json()["session_id"]
    server.api("POST", f"/upload-sessions/{made}/cancel/", {"reason": WHY})
    events = server.api("GET", f"/events?after=0&session_id={made}").json()["results"]
    assert {event["data"]["radiology_order_id"] for event in events} == {first}


def test_a_url_and_a_header_have_no_form_and_digits_count_as_a_number(server: Server) -> None:
    assert announce(server, "77").json()["radiology_order_id"] == 77
    assert announce(server, "077").json()["radiology_order_id"] == "077"
    named = upload_metadata(filename="a.bin", radiology_order_id="78", visit_id="05")
    server.tus("POST", "/files", Upload_Length="9", Upload_Metadata=named)
    known = server.api("GET", "/orders/78/").json()
    assert (known["radiology_order_id"], known["visit_id"]) == (78, "05")
    listed = server.api("GET", "/upload-sessions/?radiology_order_id=78").json()["results"][0]
    assert (listed["radiology_order_id"], listed["visit_id"]) == (78, "05")


@pytest.mark.parametrize("visit", [5, "5"], ids=repr)
def test_a_visit_that_becomes_known_later_has_the_form_that_the_emr_said(
    server: Server, order: str, visit: int | str
) -> None:
    body = {"file_name": "a", "file_size": 1, "checksum_sha256": "0" * 64, "radiology_order_id": order, "device_id": 3}
    made = server.api("POST", "/upload-sessions/create_session/", body).json()
    assert (made["visit_id"], made["device_id"]) == (None, 3)
    assert announce(server, order, visit_id=visit).json()["visit_id"] == visit
    known = server.api("GET", f"/upload-sessions/{made['session_id']}/").json()
    assert (known["visit_id"], known["device_id"]) == (visit, 3)


def test_the_inbox_is_seen_by_operators_and_by_the_one_who_made_it(server: Server) -> None:
    one, two = token(server, "--role", "uploader"), token(server, "--role", "uploader")
    mine = sent(server, uuid.uuid4().bytes, None, one, file_name="a.bin")
    theirs = sent(server, uuid.uuid4().bytes, None, two, file_name="b.bin")
    tus = server.tus("POST", "/files", token=one, Upload_Length="9", Upload_Metadata=upload_metadata(filename="c"))
    assert tus.status_code == 201
    images = {
        name: [image["id"] for image in server.api("GET", "/inbox/", token=secret).json()["images"]]
        for name, secret in (("one", one), ("two", two), ("admin", None))
    }
    ids = [mine["server_image_id"], theirs["server_image_id"]]
    assert images == {"one": ids[:1], "two": ids[1:], "admin": ids[::-1]}
    waiting = server.api("GET", "/inbox/", token=one).json()["sessions"]
    assert [row["file_name"] for row in waiting] == ["c"] and waiting[0]["status"] == "BINARY_UPLOADING"
    assert server.api("GET", "/inbox/", token=two).json()["sessions"] == []
    for words in (("--role", "viewer"), ("--role", "auditor")):
        assert server.api("GET", "/inbox/", token=token(server, *words)).status_code == 403
    elsewhere = server.api("GET", "/inbox/", token=token(server, "--role", "admin", "--site", "other")).json()
    in_visit = server.api("GET", "/inbox/", token=token(server, "--role", "operator", "--visit", "77"))
    assert in_visit.status_code == 403
    assert elsewhere == {"images": [], "sessions": [], "next_cursor": None}
    seen, cursor = [], ""
    while True:
        page = server.api("GET", f"/inbox/?limit=1{cursor}").json()
        seen += [row["id"] for row in page["images"]] + [row["file_name"] for row in page["sessions"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert sorted(seen, key=str) == sorted([*ids, "c"], key=str)


def link(server: Server, image_id: int, order: Any, verb: str = "link", reason: str = WHY, **headers: str) -> Any:
    return server.api("POST", f"/images/{image_id}/{verb}/", {"radiology_order_id": order, "reason": reason}, **headers)


def test_a_link_moves_an_image_out_of_the_inbox_and_may_be_undone_by_a_person_only(
    server: Server, tmp_path: Path, order: str
) -> None:
    content = builders.ct(tmp_path / "a.dcm", AccessionNumber="ACC-1", PatientID="P1").read_bytes()
    session = sent(server, content, None)
    image_id = session["server_image_id"]
    announce(server, order, visit_id=77, patient_id="P2")
    assert link(server, image_id, order).json() == {"image_id": image_id, "changed": True, "orders": [order]}
    assert link(server, image_id, order).json()["changed"] is False
    assert server.api("GET", "/inbox/").json()["images"] == []
    assert image_of(server, session)["flags"] == ["patient_mismatch"]
    viewer = token(server, "--role", "viewer", "--visit", "77")
    assert server.api("GET", f"/images/{image_id}/file", token=viewer).status_code == 200
    # it was the wrong one
    assert link(server, image_id, order, "unlink").json() == {"image_id": image_id, "changed": True, "orders": []}
    assert link(server, image_id, order, "unlink").json()["changed"] is False
    assert image_of(server, session)["flags"] == []
    assert server.api("GET", f"/images/{image_id}/file", token=viewer).status_code == 404
    assert [row["id"] for row in server.api("GET", "/inbox/").json()["images"]] == [image_id]
    # neither the accession number nor a sender brings back what a person undid; a person does
    announce(server, order, visit_id=77, accession_number="ACC-1")
    assert image_of(server, session)["orders"] == []
    assert image_of(server, sent(server, content, order))["orders"] == []
    assert link(server, image_id, "123").json()["orders"] == ["123"]  # an order that nobody announced yet
    assert server.api("GET", "/orders/123/").json()["verified"] is False
    assert link(server, image_id, order).json()["orders"] == ["123", order]
    told = [(action, detail["reason"]) for action, detail in actions(server, f"image/{image_id}") if "link" in action]
    assert told == [("image.linked", WHY), ("image.unlinked", WHY), ("image.linked", WHY), ("image.linked", WHY)]


def test_links_are_refused_where_they_must_be(server: Server, order: str) -> None:
    session = sent(server, uuid.uuid4().bytes, None, file_name="a.bin")
    image_id, announced = session["server_image_id"], announce(server, order, visit_id=77)
    assert announced.status_code == 201
    body = {"radiology_order_id": order, "reason": WHY}
    for words, expected in (
        (("--role", "uploader"), 403),
        (("--role", "viewer"), 403),
        (("--role", "auditor"), 403),
        (("--role", "operator", "--visit", "77"), 404),
        (("--role", "admin", "--site", "other"), 404),
    ):
        answer = server.api("POST", f"/images/{image_id}/link/", body, token=token(server, *words))
        assert answer.status_code == expected, words
    assert link(server, 999, order).status_code == 404
    for wrong in ({"reason": WHY}, {**body, "reason": ""}, {"radiology_order_id": order}, {**body, "more": 1}):
        assert server.api("POST", f"/images/{image_id}/link/", wrong).status_code == 422
    for name in ("x", "9" * 16):
        assert server.api("POST", f"/images/{name}/link/", body).status_code == 422
    link(server, image_id, order)
    announce(server, "elsewhere", visit_id=78)
    own = token(server, "--role", "operator", "--visit", "77")
    moved = server.api("POST", f"/images/{image_id}/link/", {**body, "radiology_order_id": "elsewhere"}, token=own)
    assert (moved.status_code, moved.json()["code"]) == (409, "order_visit_mismatch")
    assert image_of(server, session)["orders"] == [order]
