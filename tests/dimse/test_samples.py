"""Every sample that DCMTK can send is stored, shown by its URL, and forwarded; every other one is refused as told."""

import re
from pathlib import Path

import pytest

from server.errors import AppError
from server.pacs.dicom import read_header
from tests.dcmtk import Sink, complaint, status_of, storescu
from tests.samples import files, rounds, table
from tests.server import Server
from tests.support import eventually

pytestmark = pytest.mark.peers
SENDABLE = rounds({name: row.path for name, row in table().items() if row.expect == "stored"})


@pytest.mark.parametrize("number", range(len(SENDABLE)))
async def test_every_sample_that_dcmtk_sends_is_stored_shown_and_forwarded(tmp_path: Path, number: int) -> None:
    samples, sink = table(), Sink(tmp_path / "sink").start()
    server = Server(
        tmp_path / "server",
        extra=(
            f'[[forward.destinations]]\nname = "sink"\nkind = "dicom"\nae_title = "SINK"\nhost = "127.0.0.1"\n'
            f'port = {sink.port}\n[[forward.rules]]\ndestination = "sink"\n'
        ),
    ).start()
    try:
        sent: dict[str, str] = {}
        for name in SENDABLE[number]:
            row = samples[name]
            header = read_header(row.path)
            answer = storescu(server.dicom_port, row.path, header.transfer_syntax_uid)
            if row.dcmtk:
                assert status_of(answer) is None and complaint(answer) == row.dcmtk
            else:
                assert status_of(answer) == 0x0000, (name, complaint(answer))
                sent[header.sop_instance_uid] = name
        for image_id in range(1, len(sent) + 1):
            image = server.api("GET", f"/images/{image_id}/").json()
            row = samples[sent[image["sop_instance_uid"]]]
            assert image["flags"] == (row.flags.split(",") if row.flags else [])
            shown = server.api("GET", f"/images/{image_id}/rendered")
            if row.picture:
                assert (shown.status_code, shown.json()["detail"]) == (422, row.picture)
            else:
                assert shown.content.startswith(b"\x89PNG"), sent[image["sop_instance_uid"]]

        def all_delivered() -> bool:
            rows = server.api("GET", "/forward/deliveries/").json()["results"]
            return len(rows) == len(sent) and all(one["status"] in ("delivered", "parked") for one in rows)

        await eventually(all_delivered, 60)
        rows = server.api("GET", "/forward/deliveries/").json()["results"]
        parked = {row["image_id"]: row["last_error"] for row in rows if row["status"] == "parked"}
        assert not parked
        assert sorted(sink.received()) == sorted(sent)
        assert server.command("fsck").returncode == 0
    finally:
        server.stop()
        sink.stop()


def test_the_table_names_every_sample_and_nothing_else() -> None:
    assert sorted(table()) == sorted(files())


@pytest.mark.parametrize("name", [name for name, row in table().items() if row.expect != "stored"])
def test_a_sample_that_is_no_sound_image_is_refused_in_these_words(name: str) -> None:
    row = table()[name]
    with pytest.raises(AppError, match=re.escape(row.why)) as refusal:
        read_header(row.path)
    assert refusal.value.code == row.expect
