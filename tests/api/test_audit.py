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
