"""What every Destination must keep (server.pacs.destinations): it never raises for what its peer does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.pacs.destinations import DeliveryOutcome, Destination, DicomDestination
from server.pacs.dicom import dataset_sha256, read_header
from tests import builders
from tests.dcmtk import Sink
from tests.support import free_port

pytestmark = pytest.mark.peers


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    running = Sink(tmp_path / "sink").start()
    yield running
    running.stop()


def to(port: int) -> Destination:
    return DicomDestination("sink", "SINK", "127.0.0.1", port, "PACKHORSE")


async def test_what_is_delivered_lies_there_with_the_same_data_set(sink: Sink, tmp_path: Path) -> None:
    path = builders.ct(tmp_path / "one.dcm")
    header = read_header(path)
    result = await to(sink.port).send(path, header.sop_class_uid, header.transfer_syntax_uid)
    assert (result.outcome, result.dimse_status) == (DeliveryOutcome.DELIVERED, 0)
    far = next(iter(sink.folder.iterdir()))
    assert dataset_sha256(far, read_header(far)) == dataset_sha256(path, header)


async def test_sending_twice_does_no_harm(sink: Sink, tmp_path: Path) -> None:
    path = builders.ct(tmp_path / "one.dcm")
    header = read_header(path)
    for _ in range(2):
        result = await to(sink.port).send(path, header.sop_class_uid, header.transfer_syntax_uid)
        assert result.outcome is DeliveryOutcome.DELIVERED
    assert len(list(sink.folder.iterdir())) == 1


# pynetdicom leaves the closing of a refused socket to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_peer_that_is_away_is_tried_again(tmp_path: Path) -> None:
    path = builders.ct(tmp_path / "one.dcm")
    header = read_header(path)
    result = await to(free_port()).send(path, header.sop_class_uid, header.transfer_syntax_uid)
    assert (result.outcome, result.dimse_status) == (DeliveryOutcome.RETRY, None) and result.detail
