"""What comes by C-STORE finds its order, before or after it is announced; what is hidden is not sent on."""

from pathlib import Path
from typing import Any

import pytest

from server.pacs.dicom import read_header
from tests import builders
from tests.dcmtk import Sink, status_of, storescu
from tests.dimse.test_forward import deliveries, forwarding, send
from tests.server import Server
from tests.support import eventually

pytestmark = pytest.mark.peers
WHY = "a person looked"


def act(server: Server, path: str, **fields: Any) -> Any:
    answer = server.api("POST", f"{path}/", {"reason": WHY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_arrival_is_linked_by_its_accession_number_whichever_comes_first(server: Server, tmp_path: Path) -> None:
    early = builders.ct(tmp_path / "a.dcm", AccessionNumber="ACC-1", PatientID="P1")
    send(server, early)
    assert [image["id"] for image in server.api("GET", "/inbox/").json()["images"]] == [1]
    order = {"visit_id": 77, "patient_id": "P1", "accession_number": "ACC-1", "expected_images": 3}
    assert server.api("PUT", "/orders/55/", order).json()["images"] == [1]
    send(server, builders.ct(tmp_path / "b.dcm", AccessionNumber="ACC-1", PatientID="P1"))
    send(server, builders.ct(tmp_path / "c.dcm", AccessionNumber="ACC-1", PatientID="P2"))
    images = server.api("GET", "/orders/55/images/").json()["results"]
    assert [(image["id"], image["orders"], image["flags"]) for image in images] == [
        (1, [55], []),
        (2, [55], []),
        (3, [55], ["patient_mismatch"]),
    ]
    assert server.api("GET", "/orders/55/status/").json()["state"] == "there"
    assert server.api("GET", "/inbox/").json()["images"] == []
    # what a person undid stays undone when the modality sends it again
    act(server, "/images/1/unlink", radiology_order_id=55)
    send(server, early)
    assert server.api("GET", "/images/1/").json()["orders"] == []


def test_an_arrival_that_contradicts_its_order_is_held_where_that_is_asked_for(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra='[orders]\non_contradiction = "quarantine"\n').start()
    try:
        server.api("PUT", "/orders/55/", {"patient_id": "P1", "accession_number": "ACC-1"})
        path = builders.ct(tmp_path / "a.dcm", AccessionNumber="ACC-1", PatientID="P2")
        syntax = read_header(path).transfer_syntax_uid
        for _ in range(2):  # sent again it is held once
            assert status_of(storescu(server.dicom_port, path, syntax)) == 0xC002
        (held,) = server.api("GET", "/quarantine/").json()["results"]
        assert (held["why_held"], held["door"], held["radiology_order_id"]) == ("PATIENT_MISMATCH", "dimse", 55)
        image_id = act(server, f"/quarantine/{held['id']}/accept")["image_id"]
        image = server.api("GET", f"/images/{image_id}/").json()
        assert (image["door"], image["orders"], image["flags"]) == ("dimse", [55], ["patient_mismatch"])
        assert status_of(storescu(server.dicom_port, path, syntax)) == 0x0000
        assert server.command("fsck").returncode == 0
    finally:
        server.stop()


def test_an_accepted_object_without_an_order_goes_where_the_superseded_one_went(server: Server, tmp_path: Path) -> None:
    uids = {"SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.1"}
    send(server, builders.ct(tmp_path / "a.dcm", **uids))
    act(server, "/images/1/link", radiology_order_id=7)
    other = builders.ct(tmp_path / "b.dcm", seed=9, **uids)
    assert status_of(storescu(server.dicom_port, other, read_header(other).transfer_syntax_uid)) == 0xC001
    accepted = act(server, "/quarantine/1/accept")
    assert server.api("GET", "/orders/7/").json()["images"] == [accepted["image_id"]]
    assert server.api("GET", "/images/1/").json()["superseded_by"] == accepted["image_id"]


async def test_a_rejected_image_is_not_sent_on_until_it_is_restored(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "sink")
    server = forwarding(tmp_path / "server", sink.port)
    try:
        paths = [builders.ct(tmp_path / f"{number}.dcm", seed=number) for number in range(2)]
        for path in paths:
            send(server, path)
        act(server, "/images/1/reject", code="113037")
        await eventually(lambda: deliveries(server)[0]["status"] == "held")
        sink.start()
        await eventually(lambda: deliveries(server)[1]["status"] == "delivered", 30)
        assert sink.received() == [read_header(paths[1]).sop_instance_uid]
        assert deliveries(server)[0]["status"] == "held"
        act(server, "/images/1/restore")
        await eventually(lambda: deliveries(server)[0]["status"] == "delivered", 30)
        assert sorted(sink.received()) == sorted(read_header(path).sop_instance_uid for path in paths)
    finally:
        server.stop()
        sink.stop()
