"""What the audit tells of refusals, transfers and readings, and how an auditor reads it: over the wire."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE

from tests.builders import ct
from tests.server import Server, create, patch, upload_metadata, upload_url


def minted(server: Server, role: str, **scopes: Any) -> tuple[str, str]:
    """A token of that role: its id and its text."""
    answer = server.api("POST", "/tokens/", {"role": role, **scopes})
    assert answer.status_code == 201, answer.text
    return answer.json()["token_id"], answer.json()["token"]


def rows(server: Server, action: str, actor: str | None = None) -> list[dict[str, Any]]:
    """The rows of an action, in order, all of them."""
    found: list[dict[str, Any]] = []
    after, more = 0, True
    while more:
        page = server.api("GET", f"/audit?after={after}&limit=1000").json()
        found += page["results"]
        after, more = page["next_after"], page["more"]
    return [row for row in found if row["action"] == action and actor in (None, row["actor"])]


def begun(server: Server, content: bytes, **fields: Any) -> dict[str, Any]:
    """A session of an order of its own."""
    return create(server, content, **{"radiology_order_id": uuid.uuid4().hex, "file_name": "a.bin", **fields})


def stored(server: Server, content: bytes, **fields: Any) -> dict[str, Any]:
    session_id = begun(server, content, **fields)["session_id"]
    url = upload_url(server, session_id)
    assert patch(server, url, content).headers["Packhorse-Status"] == "SYNCED"
    session = dict(server.api("GET", f"/upload-sessions/{session_id}/").json())
    return {**session, "url": url}


# --- refusals ---------------------------------------------------------------------------------------


def test_what_a_role_may_not_do_is_a_row_of_route_and_code_and_comes_once_a_minute(shared_server: Server) -> None:
    upload = stored(shared_server, os.urandom(100))["url"]
    auditor, token = minted(shared_server, "auditor")
    for _ in range(5):
        assert shared_server.tus("GET", upload, token=token).status_code == 403
        assert shared_server.api("POST", "/images/7/reject/", {"reason": "Mr Miller"}, token).status_code == 403
    found = [(row["outcome"], row["subject"], row["detail"]) for row in rows(shared_server, "access.refused", auditor)]
    assert found == [
        ("forbidden", None, {"method": "GET", "route": "/files/{upload_id}", "role": "auditor"}),
        ("forbidden", None, {"method": "POST", "route": "/api/v1/images/{image_id}/reject/", "role": "auditor"}),
    ]


def test_what_a_handler_refuses_is_a_row_too(shared_server: Server) -> None:
    operator, token = minted(shared_server, "operator")
    assert shared_server.api("POST", "/tokens/", {"role": "admin"}, token).status_code == 403
    uploader, narrow = minted(shared_server, "uploader", visit_id="78")
    session = {"file_name": "a", "file_size": 1, "checksum_sha256": "0" * 64, "radiology_order_id": "x"}
    path = "/visits/77/radiology/upload-sessions"
    assert shared_server.api("POST", f"{path}/create_session/", session, narrow).status_code == 403
    batch = shared_server.api("POST", f"{path}/batch/", {"sessions": [session]}, narrow)
    assert [one["status"] for one in batch.json()["results"]] == [403]
    assert [row["detail"]["route"] for row in rows(shared_server, "access.refused", operator)] == ["/api/v1/tokens/"]
    routes = [row["detail"]["route"].rsplit("/", 2)[1] for row in rows(shared_server, "access.refused", uploader)]
    assert routes == ["create_session", "batch"]


def test_each_409_of_a_session_call_is_a_row(shared_server: Server) -> None:
    content = os.urandom(50)
    session = begun(shared_server, content, metadata={"a": 1})
    waiting = begun(shared_server, os.urandom(9))
    known, root = session["session_id"], f"/upload-sessions/{session['session_id']}"

    def refused(code: str, method: str, path: str, body: Any) -> None:
        answer = shared_server.api(method, path, body)
        assert (answer.status_code, answer.json()["code"]) == (409, code), answer.text

    again = {"file_name": "b", "file_size": 7, "checksum_sha256": "1" * 64, "radiology_order_id": 4}
    again |= {"session_id": known}
    creating = "/visits/77/radiology/upload-sessions/create_session/"
    refused("session_conflict", "POST", creating, again)
    early = f"/upload-sessions/{waiting['session_id']}/upload_binary/"
    refused("metadata_required", "POST", early, {"resume_from": 0})
    refused("not_synced", "POST", f"{root}/acknowledge/", {"server_image_id": 1})
    assert patch(shared_server, upload_url_of(shared_server, root), content).headers["Packhorse-Status"] == "SYNCED"
    image = shared_server.api("GET", f"{root}/").json()["server_image_id"]
    refused("image_mismatch", "POST", f"{root}/acknowledge/", {"server_image_id": image + 1})
    wrong = {"server_image_id": image, "checksum_sha256": "2" * 64}
    refused("checksum_mismatch", "POST", f"{root}/acknowledge/", wrong)
    refused("invalid_transition", "POST", f"{root}/cancel/", {"reason": "no"})
    order = uuid.uuid4().hex
    shared_server.api("PUT", f"/orders/{order}/", {"visit_id": "99"})
    new = {**again, "session_id": None, "radiology_order_id": order}
    refused("order_visit_mismatch", "POST", creating, new)
    assert refusals(shared_server, known) == [
        "session_conflict", "not_synced", "image_mismatch", "checksum_mismatch", "invalid_transition"]
    assert refusals(shared_server, waiting["session_id"]) == ["metadata_required"]
    assert refusals(shared_server, None)[-1] == "order_visit_mismatch"
    taken = upload_metadata(filename="c", session_id=known)
    answer = shared_server.tus("POST", "/files", Upload_Length="3", Upload_Metadata=taken)
    assert answer.json()["code"] == "session_conflict" and refusals(shared_server, known)[-1] == "session_conflict"


def upload_url_of(server: Server, root: str) -> str:
    server.api("POST", f"{root}/upload_metadata/", {})
    return str(server.api("POST", f"{root}/upload_binary/", {"resume_from": 0}).json()["upload_url"])


def refusals(server: Server, subject: str | None) -> list[str]:
    return [row["outcome"] for row in rows(server, "session.refused") if row["subject"] == subject]


def test_wrong_offsets_are_one_row_for_each_upload_and_minute(shared_server: Server) -> None:
    session_id = begun(shared_server, os.urandom(500))["session_id"]
    url = upload_url(shared_server, session_id)
    for offset in range(1, 30):
        assert patch(shared_server, url, b"x", offset).status_code == 409
    found = [row for row in rows(shared_server, "upload.refused") if row["subject"] == session_id]
    assert [(row["outcome"], row["detail"]["stored"], row["detail"]["provided"]) for row in found] == [
        ("offset_mismatch", 0, 1)]


# --- transfers --------------------------------------------------------------------------------------


def test_a_transfer_tells_its_door(shared_server: Server) -> None:
    content = os.urandom(300)
    session_id = begun(shared_server, content)["session_id"]
    url = upload_url(shared_server, session_id)
    assert patch(shared_server, url, content[:100]).status_code == 204
    answer = shared_server.tus(
        "PATCH", url, content[100:], Tus_Resumable=None, Upload_Offset="100", Upload_Complete="?1",
        Content_Type="application/partial-upload")
    assert answer.status_code == 204, answer.text
    whole = shared_server.tus("POST", "/files", os.urandom(10), Tus_Resumable=None, Upload_Complete="?1")
    assert whole.status_code == 201
    found = [row["detail"] for row in rows(shared_server, "upload.transfer") if row["subject"] == session_id]
    assert [(one["door"], one["offset_before"], one["offset_after"]) for one in found] == [
        ("tus", 0, 100), ("rufh", 100, 300)]
    assert rows(shared_server, "upload.transfer")[-1]["detail"]["door"] == "rufh"


def test_an_object_by_c_store_tells_its_size_and_how_long_it_took(shared_server: Server, tmp_path: Path) -> None:
    good, bad = ct(tmp_path / "b.dcm"), tmp_path / "bad.dcm"
    other = dcmread(good)
    other.StudyInstanceUID = ""
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    other.save_as(bad)
    sender = AE(ae_title="MODALITY")
    sender.add_requested_context(other.SOPClassUID, other.file_meta.TransferSyntaxUID)
    association = sender.associate("127.0.0.1", shared_server.dicom_port)
    began = time.monotonic()
    assert association.send_c_store(str(good)).Status == 0x0000
    assert association.send_c_store(str(bad)).Status != 0x0000
    took_s = time.monotonic() - began
    association.release()
    for action in ("image.stored", "arrival.refused"):
        row = rows(shared_server, action, "ae:MODALITY")[-1]
        assert row["detail"]["door"] == "dimse" and 0 <= row["detail"]["duration_s"] <= took_s + 0.01, row
        assert abs(row["detail"]["bytes"] - good.stat().st_size) < 2000, row


# --- readings ---------------------------------------------------------------------------------------


def test_a_file_that_is_read_by_its_upload_is_noted_by_its_study(shared_server: Server, tmp_path: Path) -> None:
    image = stored(shared_server, ct(tmp_path / "a.dcm").read_bytes(), file_name="a.dcm")
    viewer, token = minted(shared_server, "viewer")
    assert shared_server.tus("GET", image["url"], token=token).status_code == 200
    assert shared_server.api("GET", f"/images/{image['server_image_id']}/file", token=token).status_code == 200
    study = image["images"][0]["study_instance_uid"]
    assert [row["subject"] for row in rows(shared_server, "image.read", viewer)] == [study]


def test_what_is_read_through_two_workers_is_one_row(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", arguments=("--workers", "2")).start()
    try:
        image = stored(server, ct(tmp_path / "a.dcm").read_bytes(), file_name="a.dcm")
        viewer, token = minted(server, "viewer")
        for _ in range(12):  # each on a connection of its own
            assert server.api("GET", f"/images/{image['server_image_id']}/", token=token).status_code == 200
        assert len(rows(server, "image.read", viewer)) == 1
    finally:
        server.stop()


# --- reading the audit ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("quiet")).start()
    yield running
    running.stop()


def test_an_auditor_reads_every_row_of_its_site_as_the_export_writes_it(quiet_server: Server) -> None:
    stored(quiet_server, os.urandom(20))
    auditor, token = minted(quiet_server, "auditor")
    south = quiet_server.command("token", "create", "--role", "auditor", "--site", "south").stdout.strip()
    found: list[dict[str, Any]] = []
    after, more = 0, True
    while more:
        answer = quiet_server.api("GET", f"/audit/?after={after}&limit=3", token=token)
        assert answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
        page = answer.json()
        assert 0 < len(page["results"]) <= 3
        found += page["results"]
        after, more = page["next_after"], page["more"]
    exported = [json.loads(line) for line in quiet_server.command("audit", "export").stdout.splitlines()]
    assert found == [row for row in exported if row["site"] == "default"][: len(found)]
    assert found[-1]["action"] == "audit.read" and found[-1]["actor"] == auditor
    of_south = quiet_server.api("GET", "/audit", token=south).json()
    assert {row["site"] for row in of_south["results"]} <= {"south"}


def test_reading_the_audit_is_a_row_once_a_minute_so_who_polls_comes_to_an_end(quiet_server: Server) -> None:
    auditor, token = minted(quiet_server, "auditor")
    page = quiet_server.api("GET", "/audit?after=0&limit=1000", token=token).json()
    for _ in range(5):
        page = quiet_server.api("GET", f"/audit?after={page['next_after']}", token=token).json()
    assert (page["results"], page["more"]) == ([], False)
    assert len(rows(quiet_server, "audit.read", auditor)) == 1


def test_who_may_not_read_the_audit_is_refused(quiet_server: Server) -> None:
    for role, scopes in (
        ("viewer", {}), ("operator", {}), ("uploader", {}), ("auditor", {"visit_id": "77"}),
        ("auditor", {"radiology_order_id": "5"}),
    ):
        assert quiet_server.api("GET", "/audit", token=minted(quiet_server, role, **scopes)[1]).status_code == 403
    for query in ("after=-1", "after=x", "limit=0", "limit=1001", "limit=²"):
        assert quiet_server.api("GET", f"/audit?{query}").json()["code"] == "invalid_field", query
    assert quiet_server.api("POST", "/audit").status_code == 405


def test_a_chain_of_another_sites_rows_costs_a_window_and_not_all(quiet_server: Server) -> None:
    began = time.monotonic()
    page = quiet_server.api("GET", f"/audit?after={2**53}").json()
    assert (page["results"], page["next_after"], page["more"]) == ([], 2**53, False)
    assert time.monotonic() - began < 5
