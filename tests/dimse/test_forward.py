"""Sending on: a destination that is down loses nothing; a lost answer is one counted re-send."""

from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage

from server.pacs.dicom import dataset_sha256, read_header
from tests import builders
from tests.dcmtk import Sink, status_of, storescu
from tests.server import Server
from tests.support import eventually, free_port

pytestmark = pytest.mark.peers


def forwarding(folder: Path, port: int) -> Server:
    """A server that sends everything to `port`, trying again soon."""
    return Server(
        folder,
        extra=(
            f'[forward]\nfirst_retry_s = 0.2\n[[forward.destinations]]\nname = "sink"\nkind = "dicom"\n'
            f'ae_title = "SINK"\nhost = "127.0.0.1"\nport = {port}\n[[forward.rules]]\ndestination = "sink"\n'
        ),
    ).start()


def deliveries(server: Server) -> list[dict[str, Any]]:
    """Every delivery."""
    return list(server.api("GET", "/forward/deliveries/").json()["results"])


def send(server: Server, path: Path) -> None:
    """By storescu; it must be stored."""
    assert status_of(storescu(server.dicom_port, path, read_header(path).transfer_syntax_uid)) == 0


async def test_a_destination_that_is_down_for_a_while_loses_nothing(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "sink")
    server = forwarding(tmp_path / "server", sink.port)
    try:
        paths = [builders.ct(tmp_path / f"{number}.dcm", seed=number) for number in range(5)]
        for path in paths:
            send(server, path)
        await eventually(lambda: all(row["attempts"] >= 1 for row in deliveries(server)))
        assert {row["status"] for row in deliveries(server)} == {"waiting"}
        server.kill()  # what waits must outlive the process
        server.restart()
        sink.start()
        await eventually(lambda: {row["status"] for row in deliveries(server)} == {"delivered"}, 30)
        assert sorted(sink.received()) == sorted(read_header(path).sop_instance_uid for path in paths)
        arrived = {
            read_header(path).sop_instance_uid: dataset_sha256(path, read_header(path))
            for path in sink.folder.iterdir()
        }
        for path in paths:
            header = read_header(path)
            assert arrived[header.sop_instance_uid] == dataset_sha256(path, header)
    finally:
        server.stop()
        sink.stop()


@pytest.mark.parametrize(
    ("status", "state", "attempts"),
    [(0xB007, "delivered", 1), (0xC000, "parked", 1), (0xA900, "parked", 1), (0x0122, "parked", 1)],
)
async def test_the_peers_status_decides(tmp_path: Path, status: int, state: str, attempts: int) -> None:
    ae = AE("SINK")
    ae.add_supported_context(CTImageStorage)
    port = free_port()
    peer = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: status)])
    server = forwarding(tmp_path / "server", port)
    try:
        send(server, builders.ct(tmp_path / "one.dcm"))
        await eventually(lambda: deliveries(server)[0]["status"] == state)
        row = deliveries(server)[0]
        assert (row["attempts"], row["last_status"]) == (attempts, f"{status:04X}")
        events = server.api("GET", "/events?after=0").json()["results"]
        (told,) = [one["data"] for one in events if one["type"] == f"forward.{state}"]
        assert (told["destination"], told["image_id"]) == ("sink", row["image_id"]), told
    finally:
        server.stop()
        peer.shutdown()


async def test_after_a_lost_answer_one_resend_is_made_and_counted(tmp_path: Path) -> None:
    stored: list[str] = []

    def store(event: Any) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        if len(stored) == 1:
            event.assoc.abort()  # it is stored, and the answer never leaves
        return 0xA700 if len(stored) == 2 else 0x0000

    ae = AE("SINK")
    ae.add_supported_context(CTImageStorage)
    port = free_port()
    peer = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    server = forwarding(tmp_path / "server", port)
    try:
        send(server, builders.ct(tmp_path / "one.dcm"))
        await eventually(lambda: deliveries(server)[0]["status"] == "delivered", 30)
        assert deliveries(server)[0]["attempts"] == 3 == len(stored)
    finally:
        server.stop()
        peer.shutdown()
