"""What operators do: reject and restore, accept or reject what is held; and that all of it has one effect."""

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.api.test_orders import WHY, actions, announce, image_of, link, sent, token
from tests.server import Server, sha256

UIDS = {"SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.1"}


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Server]:
    """A server that quarantines what contradicts its order."""
    running = Server(tmp_path / "server", extra='[orders]\non_contradiction = "quarantine"\n').start()
    yield running
    running.stop()


def reject(server: Server, path: str, code: str = "113001", **headers: str) -> Any:
    return server.api("POST", f"{path}/reject/", {"reason": WHY, "code": code}, **headers)


def restore(server: Server, path: str, **headers: str) -> Any:
    return server.api("POST", f"{path}/restore/", {"reason": WHY}, **headers)


def studies(server: Server, query: str = "") -> list[str]:
    return [row["study_instance_uid"] for row in server.api("GET", f"/studies/{query}").json()["results"]]


def test_a_rejected_image_is_hidden_and_comes_back(server: Server, tmp_path: Path) -> None:
    uid, contents = "1.2.826.1", []
    for number in range(2):
        path = builders.ct(tmp_path / f"{number}.dcm", seed=number, StudyInstanceUID=uid, SeriesInstanceUID="1.2.826.2")
        contents.append(path.read_bytes())
    one, two = (sent(server, content, "7") for content in contents)
    first, viewer = one["server_image_id"], token(server, "--role", "viewer")

    def shown() -> list[int]:
        tree = server.api("GET", f"/studies/{uid}/", token=viewer)
        images = [image["id"] for row in tree.json().get("series", []) for image in row["images"]]
        assert images == server.api("GET", "/orders/7/").json()["images"]
        return images

    told = reject(server, f"/images/{first}").json()
    assert (told["changed"], told["rejection_code"], told["meaning"]) == (1, "113001", "Rejected for Quality Reasons")
    assert reject(server, f"/images/{first}").json()["changed"] == 0
    assert shown() == [two["server_image_id"]] and studies(server) == [uid]
    for path in ("", "file", "rendered", "thumbnail"):
        assert server.api("GET", f"/images/{first}/{path}", token=viewer).status_code == 404
        assert server.api("GET", f"/images/{first}/{path}").status_code == 200  # who may restore it may look at it
    assert server.api("GET", f"/studies/{uid}/?rejected=true", token=viewer).status_code == 403
    tree = server.api("GET", f"/studies/{uid}/?rejected=true").json()
    assert [image["rejection_code"] for row in tree["series"] for image in row["images"]] == ["113001"]
    # the sender's word about deletion rests on the bytes, which are there
    session = f"/upload-sessions/{one['session_id']}"
    acked = server.api("POST", f"{session}/acknowledge/", {"server_image_id": first})
    assert acked.json()["safe_to_delete_local"] is True
    # the same object again is the same image, and stays hidden
    assert image_of(server, sent(server, contents[0], "8"))["rejection_code"] == "113001"
    # another code replaces the first; the study goes with its last image
    assert reject(server, f"/images/{first}", "113037").json()["changed"] == 1
    assert reject(server, f"/studies/{uid}", "113039").json()["images"] == [first, two["server_image_id"]]
    assert shown() == [] and studies(server) == [] and studies(server, "?rejected=true") == [uid]
    assert restore(server, f"/images/{first}").json()["changed"] == 1 and shown() == [first]
    assert restore(server, f"/studies/{uid}").json()["changed"] == 1
    assert shown() == [first, two["server_image_id"]] and studies(server, "?rejected=true") == []
    assert [
        (action, detail["code"], detail["reason"])
        for action, detail in actions(server, f"image/{first}")
        if action in ("image.rejected", "image.restored")
    ] == [
        ("image.rejected", "113001", WHY),
        ("image.rejected", "113037", WHY),
        ("image.rejected", "113039", WHY),
        ("image.restored", None, WHY),
    ]
    assert server.command("fsck").returncode == 0 and server.command("audit", "verify").returncode == 0


def test_an_order_that_a_restored_image_fills_is_told_complete(server: Server, tmp_path: Path) -> None:
    announce(server, "7", expected_images=2)
    contents = [builders.ct(tmp_path / f"{number}.dcm", seed=number).read_bytes() for number in range(3)]
    first = sent(server, contents[0], "7")["server_image_id"]
    reject(server, f"/images/{first}")
    sent(server, contents[1], "7")

    def told() -> list[dict[str, Any]]:
        return [detail for action, detail in actions(server, "order/7") if action == "order.complete"]

    assert told() == [] and server.api("GET", "/orders/7/status/").json()["state"] == "on_its_way"
    restore(server, f"/images/{first}")
    assert told() == [{"images": 2, "expected_images": 2}]
    assert server.api("GET", "/orders/7/status/").json()["state"] == "there"
    restore(server, f"/images/{first}")
    # one more than is expected goes and comes: the order was complete before and after
    third = sent(server, contents[2], "7")["server_image_id"]
    reject(server, f"/images/{third}")
    restore(server, f"/images/{third}")
    assert len(told()) == 1


def test_a_restored_study_fills_each_of_its_orders_once(server: Server, tmp_path: Path) -> None:
    for order in ("7", "8"):
        announce(server, order, expected_images=2)
    ids = []
    for number in range(3):
        path = builders.ct(tmp_path / f"{number}.dcm", seed=number, StudyInstanceUID="1.2", SeriesInstanceUID="1.1")
        ids.append(sent(server, path.read_bytes(), None)["server_image_id"])
    reject(server, "/studies/1.2")
    for image in ids:
        for order in ("7", "8"):
            assert link(server, image, order).status_code == 200
    restore(server, "/studies/1.2")
    for order in ("7", "8"):
        told = [detail for action, detail in actions(server, f"order/{order}") if action == "order.complete"]
        assert told == [{"images": 3, "expected_images": 2}]


def test_rejections_are_refused_where_they_must_be(server: Server, tmp_path: Path) -> None:
    session = sent(server, builders.ct(tmp_path / "a.dcm").read_bytes(), "7")
    image = image_of(server, session)
    announce(server, "7", visit_id=77)
    for path in (f"/images/{image['id']}", f"/studies/{image['study_instance_uid']}"):
        for words, expected in (
            (("--role", "uploader"), 403),
            (("--role", "viewer"), 403),
            (("--role", "auditor"), 403),
            (("--role", "operator", "--visit", "78"), 404),
            (("--role", "admin", "--site", "other"), 404),
        ):
            secret = token(server, *words)
            assert reject(server, path, token=secret).status_code == expected, words
            assert restore(server, path, token=secret).status_code == expected, words
        good = {"reason": WHY, "code": "113001"}
        for wrong in ({"reason": WHY}, {"code": "113001"}, {**good, "code": "113002"}, {**good, "reason": ""}):
            assert server.api("POST", f"{path}/reject/", wrong).status_code == 422
        assert server.api("POST", f"{path}/restore/", {}).status_code == 422
    assert reject(server, "/images/999").status_code == reject(server, "/studies/9.9").status_code == 404
    assert reject(server, "/images/x").status_code == 422
    own = token(server, "--role", "operator", "--visit", "77")
    assert reject(server, f"/images/{image['id']}", token=own).json()["changed"] == 1
    assert restore(server, f"/images/{image['id']}", token=own).json()["changed"] == 1


def held(server: Server, query: str = "") -> list[dict[str, Any]]:
    return list(server.api("GET", f"/quarantine/{query}").json()["results"])


def decide(server: Server, quarantine_id: int | str, verb: str, **headers: str) -> Any:
    return server.api("POST", f"/quarantine/{quarantine_id}/{verb}/", {"reason": WHY}, **headers)


def conflicting(server: Server, folder: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """A stored image, a session whose other object has its UID, and that object."""
    one = builders.ct(folder / "a.dcm", **UIDS).read_bytes()
    other = builders.ct(folder / "b.dcm", seed=9, **UIDS).read_bytes()
    return sent(server, one, "7"), sent(server, other, "8"), other


def test_what_is_accepted_is_an_image_of_its_own_that_supersedes_the_other(server: Server, tmp_path: Path) -> None:
    first, second, content = conflicting(server, tmp_path)
    old = first["server_image_id"]
    assert (second["status"], second["error_code"]) == ("FAILED", "SOP_INSTANCE_CONFLICT")
    (waiting,) = held(server)
    assert (waiting["why_held"], waiting["conflicts_with"]) == ("SOP_INSTANCE_CONFLICT", old)
    assert (waiting["session_id"], waiting["radiology_order_id"]) == (second["session_id"], "8")
    accepted = decide(server, waiting["id"], "accept").json()
    new = accepted["image_id"]
    assert accepted["state"] == "accepted" and new > old
    assert decide(server, waiting["id"], "accept").json() == accepted
    assert server.api("GET", f"/images/{old}/").json()["superseded_by"] == new
    image = server.api("GET", f"/images/{new}/").json()
    assert (image["file_sha256"], image["orders"]) == (waiting["file_sha256"], ["8"])
    assert server.api("GET", f"/images/{new}/file").content == content
    tree = server.api("GET", f"/studies/{image['study_instance_uid']}/").json()
    assert [one["id"] for row in tree["series"] for one in row["images"]] == [new]
    assert server.api("GET", "/orders/7/").json()["images"] == []
    # the session was told FAILED, and that is final; the same file again is a duplicate of the new image
    assert server.api("GET", f"/upload-sessions/{second['session_id']}/").json()["status"] == "FAILED"
    again = sent(server, content, "8")
    assert (again["server_image_id"], again["supersedes"]) == (new, second["session_id"])
    refused = decide(server, waiting["id"], "reject")
    assert (refused.status_code, refused.json()["code"], refused.json()["image_id"]) == (409, "already_accepted", new)
    assert held(server) == [] and held(server, "?state=accepted")[0]["image_id"] == new
    told = dict(actions(server, f"quarantine/{waiting['id']}"))
    assert told["quarantine.accepted"]["reason"] == WHY and told["quarantine.accepted"]["image_id"] == new
    assert server.command("fsck").returncode == 0 and server.command("audit", "verify").returncode == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["a bit", "cut", "removed"])
@pytest.mark.parametrize("is_known", [False, True], ids=["nobody knows", "alarm open"])
def test_damaged_bytes_are_not_accepted_until_they_are_sent_again(
    server: Server, tmp_path: Path, damage: Callable[[Path], None], is_known: bool
) -> None:
    first, _, content = conflicting(server, tmp_path)
    old, quarantine_id = first["server_image_id"], held(server)[0]["id"]
    damage(next((server.folder / "data/blobs/sealed").rglob(sha256(content))))
    if is_known:
        assert server.command("scrub").returncode == 1
    for _ in range(2):
        refused = decide(server, quarantine_id, "accept")
        assert (refused.status_code, refused.json()["code"]) == (503, "readback_failed")
        assert refused.headers["Retry-After"]
    assert held(server)[0]["image_id"] is None and server.api("GET", "/images/2/").status_code == 404
    assert server.api("GET", f"/images/{old}/").json()["superseded_by"] is None
    (alarm,) = [detail for action, detail in actions(server, f"blob/{sha256(content)}") if action == "integrity.alarm"]
    assert alarm["found_by"] == ("scrub" if is_known else "quarantine")
    assert sent(server, content, "9")["error_code"] == "SOP_INSTANCE_CONFLICT"  # the same bytes, whole
    accepted = decide(server, quarantine_id, "accept")
    assert accepted.status_code == 200, accepted.text
    assert server.api("GET", f"/images/{accepted.json()['image_id']}/file").content == content
    assert server.api("GET", f"/images/{old}/").json()["superseded_by"] == accepted.json()["image_id"]
    assert server.command("scrub").returncode == server.command("fsck").returncode == 0


def test_what_is_rejected_stays_aside_and_may_still_be_accepted(server: Server, tmp_path: Path) -> None:
    first, _, content = conflicting(server, tmp_path)
    quarantine_id = held(server)[0]["id"]
    assert decide(server, quarantine_id, "reject").json()["state"] == "rejected"
    assert decide(server, quarantine_id, "reject").status_code == 200 and held(server) == []
    again = sent(server, content, "9")
    assert again["error_code"] == "SOP_INSTANCE_CONFLICT" and len(held(server, "?state=all")) == 2
    assert server.api("GET", f"/images/{first['server_image_id']}/").json()["superseded_by"] is None
    accepted = decide(server, quarantine_id, "accept").json()
    assert accepted["state"] == "accepted"
    # the same bytes, held for another order, are that image
    assert decide(server, held(server)[0]["id"], "accept").json()["image_id"] == accepted["image_id"]
    assert set(server.api("GET", f"/images/{accepted['image_id']}/").json()["orders"]) == {"8", "9"}
    assert server.command("fsck").returncode == 0


def test_quarantine_is_for_operators_of_the_whole_site(server: Server, tmp_path: Path) -> None:
    conflicting(server, tmp_path)
    quarantine_id = held(server)[0]["id"]
    for words, expected in (
        (("--role", "viewer"), 403),
        (("--role", "uploader"), 403),
        (("--role", "auditor"), 403),
        (("--role", "operator", "--visit", "77"), 403),
        (("--role", "admin", "--site", "other"), 404),
    ):
        secret = token(server, *words)
        for verb in ("accept", "reject"):
            assert decide(server, quarantine_id, verb, token=secret).status_code == expected, words
    elsewhere = token(server, "--role", "admin", "--site", "other")
    assert server.api("GET", "/quarantine/", token=elsewhere).json()["results"] == []
    assert decide(server, 999, "accept").status_code == 404 and decide(server, "x", "accept").status_code == 422
    assert server.api("POST", f"/quarantine/{quarantine_id}/accept/", {}).status_code == 422
    for query in ("?state=lost", "?limit=0", "?cursor=x"):
        assert server.api("GET", f"/quarantine/{query}").status_code == 422


def test_where_it_is_asked_for_contradictions_are_held(strict: Server, tmp_path: Path) -> None:
    announce(strict, "7", patient_id="P2", accession_number="A7", visit_id=77)
    content = builders.ct(tmp_path / "a.dcm", PatientID="P1").read_bytes()
    session = sent(strict, content, "7")
    assert (session["status"], session["error_code"]) == ("FAILED", "PATIENT_MISMATCH")
    good = sent(strict, builders.ct(tmp_path / "b.dcm", PatientID="P2").read_bytes(), "7")
    assert image_of(strict, good)["flags"] == []
    wrong_number = builders.ct(tmp_path / "c.dcm", PatientID="P2", AccessionNumber="A8").read_bytes()
    assert sent(strict, wrong_number, "7")["error_code"] == "PATIENT_MISMATCH"
    first = held(strict)[0]
    assert (first["why_held"], first["conflicts_with"]) == ("PATIENT_MISMATCH", None)
    image_id = decide(strict, first["id"], "accept").json()["image_id"]
    image = strict.api("GET", f"/images/{image_id}/").json()
    assert (image["orders"], image["flags"]) == ([7], ["patient_mismatch"])
    # a person has said that it belongs there: the same again is that image
    assert sent(strict, content, "7")["server_image_id"] == image_id
    # what came before its order and contradicts it waits in the inbox
    early = builders.ct(tmp_path / "d.dcm", PatientID="P5", AccessionNumber="A9").read_bytes()
    early_id = sent(strict, early, None)["server_image_id"]
    announce(strict, "9", patient_id="P6", accession_number="A9")
    assert [row["id"] for row in strict.api("GET", "/inbox/").json()["images"]] == [early_id]
    assert strict.command("fsck").returncode == 0


def count(server: Server, action: str = "%") -> int:
    """The audit rows of an action, or all."""
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db")) as database:
        return int(database.execute("SELECT count(*) FROM audit WHERE action LIKE ?", [action]).fetchone()[0])


def test_a_hundred_of_each_at_once_have_one_effect(server: Server, tmp_path: Path) -> None:
    conflicting(server, tmp_path)
    loose = sent(server, uuid.uuid4().bytes, None, file_name="a.bin")["server_image_id"]
    hold = held(server)[0]["id"]
    study = "1.2"
    steps = [
        ("order.announced", lambda: announce(server, "o", visit_id=5, patient_id="P1"), {200, 201}),
        ("image.linked", lambda: link(server, loose, "o"), {200}),
        ("image.unlinked", lambda: link(server, loose, "o", "unlink"), {200}),
        ("image.rejected", lambda: reject(server, f"/images/{loose}"), {200}),
        ("image.restored", lambda: restore(server, f"/images/{loose}"), {200}),
        ("quarantine.rejected", lambda: decide(server, hold, "reject"), {200}),
        ("quarantine.accepted", lambda: decide(server, hold, "accept"), {200}),
        ("image.rejected", lambda: reject(server, f"/studies/{study}"), {200}),
        ("image.restored", lambda: restore(server, f"/studies/{study}"), {200}),
    ]
    for action, call, statuses in steps:
        before = count(server, action)
        with ThreadPoolExecutor(20) as pool:
            answers = [future.result() for future in [pool.submit(call) for _ in range(100)]]
        assert {answer.status_code for answer in answers} == statuses, action
        assert count(server, action) == before + 1, action
        if action == "order.announced":
            assert [answer.status_code for answer in answers].count(201) == 1
    assert server.command("fsck").returncode == 0 and server.command("audit", "verify").returncode == 0


def test_an_answer_that_was_lost_is_given_again_and_nothing_is_done_twice(server: Server, tmp_path: Path) -> None:
    conflicting(server, tmp_path)
    loose, hold = sent(server, uuid.uuid4().bytes, None, file_name="a.bin")["server_image_id"], held(server)[0]["id"]
    image, study = f"/images/{loose}", "/studies/1.2"
    pairs = [
        (partial(link, server, loose, "o"), partial(link, server, loose, "o", "unlink")),
        (partial(reject, server, image), partial(restore, server, image)),
        (partial(reject, server, study), partial(restore, server, study)),
        (partial(decide, server, hold, "reject"), partial(decide, server, hold, "accept")),
    ]
    for do, undo in pairs:
        key = {"Idempotency_Key": str(uuid.uuid4())}
        first = do(**key).json()
        assert undo().status_code == 200  # by somebody else, before the sender, who got no answer, sends again
        rows = count(server)
        assert do(**key).json() == {**first, "replayed": True}
        assert count(server) == rows
        key = {"Idempotency_Key": str(uuid.uuid4())}
        do()
        second = undo(**key).json()
        rows = count(server)
        assert undo(**key).json() == {**second, "replayed": True} and count(server) == rows
    reused = {"Idempotency_Key": "one"}
    assert reject(server, image, **reused).status_code == 200
    refused = reject(server, image, "113037", **reused)
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_key_reused")
