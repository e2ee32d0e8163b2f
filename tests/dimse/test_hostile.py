"""What means harm is refused exactly, at little cost, and the next good object is stored."""

import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, _config

from server.pacs.dicom import read_header
from tests import builders
from tests.dcmtk import complaint, status_of, storescu
from tests.proxy import CuttingProxy
from tests.samples import table
from tests.server import Server, create, patch, upload_url
from tests.support import require_peer

pytestmark = pytest.mark.peers
MIB = 1024 * 1024
GROWTH = 200 * MIB


def send_by_tus(server: Server, content: bytes, name: str = "image.dcm") -> tuple[int, str]:
    """Status and code of the last PATCH of a file that claims to be DICOM."""
    session = create(server, content, file_name=name, content_type="application/dicom")
    answer = patch(server, upload_url(server, session["session_id"]), content)
    return answer.status_code, answer.json()["code"] if answer.content else answer.headers["Packhorse-Status"]


HOSTILE = {
    "not DICOM": (b"this is a letter" * 100, "NOT_DICOM", "there is no DICM mark"),
    "truncated": (
        builders.part10(builders.identified("1.2.9", builders.element(0x7FE0, 0x10, b"OW", b"\0" * 100, 5000))),
        "DICOM_REJECTED",
        "passes the end",
    ),
    "a deflate bomb": (builders.deflate_bomb(256 * MIB), "DICOM_REJECTED", "inflates beyond"),
    "500 nested sequences": (builders.nested_sequences(500), "DICOM_REJECTED", "nested deeper"),
    "a million empty items": (builders.empty_items(1_000_000), "DICOM_REJECTED", "more than 100000 items"),
}


def test_hostile_files_by_tus_are_refused_and_the_server_lives(server: Server, ct: bytes) -> None:
    start = server.rss_bytes()
    for name, (content, code, _words) in HOSTILE.items():
        assert send_by_tus(server, content) == (422, code), name
        assert server.rss_bytes() - start < GROWTH, name
    assert send_by_tus(server, ct) == (204, "SYNCED")
    refused = server.api("GET", "/upload-sessions/failed/?include_exhausted=true").json()["results"]
    for row in refused:
        assert row["error_message"] and "/" not in row["error_message"]
    assert [
        words for _, _, words in HOSTILE.values() if not any(words in row["error_message"] for row in refused)
    ] == []
    assert server.command("fsck").returncode == 0


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "not DICOM"])
def test_hostile_objects_by_c_store_are_refused_and_the_next_is_stored(
    shared_server: Server, tmp_path: Path, ct: bytes, name: str
) -> None:
    server, start = shared_server, shared_server.rss_bytes()
    content, _code, words = HOSTILE[name]
    syntax = DeflatedExplicitVRLittleEndian if name == "a deflate bomb" else ExplicitVRLittleEndian
    status, comment = raw_c_store(server.dicom_port, content, syntax)
    assert status == 0xC000 and words[:40] in comment
    assert server.rss_bytes() - start < GROWTH
    good = builders.ct(tmp_path / "good.dcm")
    assert status_of(storescu(server.dicom_port, good, read_header(good).transfer_syntax_uid)) == 0


def raw_c_store(port: int, content: bytes, syntax: str) -> tuple[int, str]:
    """C-STORE of a Part 10 file by pynetdicom, which sends its data set unread."""
    _config.STORE_SEND_CHUNKED_DATASET = True
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        ae = AE("HOSTILE")
        ae.add_requested_context(CTImageStorage, syntax)
        association = ae.associate("127.0.0.1", port)
        assert association.is_established
        answer = association.send_c_store(file.name)
        association.release()
    return int(answer.Status), str(answer.get("ErrorComment", ""))


def test_a_100_mb_object_by_c_store_is_stored_in_flat_memory(server: Server, tmp_path: Path) -> None:
    start = server.rss_bytes()
    large = builders.ct(tmp_path / "large.dcm", rows=1000, columns=1000, frames=50)
    answer = storescu(server.dicom_port, large, read_header(large).transfer_syntax_uid)
    assert status_of(answer) == 0x0000, complaint(answer)
    assert server.rss_bytes() - start < GROWTH
    image = server.api("GET", "/images/1/").json()
    assert image["number_of_frames"] == 50
    first, last = (server.api("GET", f"/images/1/rendered?frame={frame}").content for frame in (1, 50))
    assert first != last and server.api("GET", "/images/1/rendered?frame=51").status_code == 422


def test_echo_is_answered_and_garbage_is_survived(shared_server: Server) -> None:
    port = shared_server.dicom_port
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\x00\x04abcd", b"\xff" * 64):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(garbage)
    echo = subprocess.run([require_peer("echoscu"), "127.0.0.1", str(port)], timeout=30, check=False)
    assert echo.returncode == 0


def test_the_same_object_again_is_a_duplicate_and_another_under_its_uid_is_quarantined(
    server: Server, tmp_path: Path
) -> None:
    one = builders.ct(tmp_path / "one.dcm", seed=1, SOPInstanceUID="1.2.3.99")
    other = builders.ct(tmp_path / "other.dcm", seed=2, SOPInstanceUID="1.2.3.99")
    for path in (one, other):
        content = path.read_bytes()
        path.write_bytes(content)
    syntax = read_header(one).transfer_syntax_uid
    assert status_of(storescu(server.dicom_port, one, syntax)) == 0x0000
    assert status_of(storescu(server.dicom_port, one, syntax)) == 0x0000
    assert status_of(storescu(server.dicom_port, other, syntax)) == 0xC001
    assert server.api("GET", "/images/2/").status_code == 404
    assert send_by_tus(server, one.read_bytes()) == (204, "SYNCED")
    assert send_by_tus(server, other.read_bytes()) == (422, "SOP_INSTANCE_CONFLICT")
    assert server.command("fsck").returncode == 0


def test_an_unknown_peer_is_refused_where_peers_are_listed(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    server.stop()
    config = server.folder / "packhorse.toml"
    listed = 'require_known_peers = true\n[[dicom.peers]]\nae_title = "GOOD"\nhost = "127.0.0.1"\n'
    server.extra = listed
    server.start()
    try:
        echo = [require_peer("echoscu"), "127.0.0.1", str(server.dicom_port)]
        assert subprocess.run([*echo, "-aet", "GOOD"], timeout=30, check=False).returncode == 0
        refused = subprocess.run([*echo, "-aet", "BAD"], timeout=30, check=False, capture_output=True, text=True)
        assert refused.returncode != 0 and "Calling AE Title Not Recognized" in refused.stderr
        assert "[[dicom.peers]]" in (server.folder / "server.log").read_text()
        assert config.exists()
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_implicit", "MR_small_bigendian", "MR_small_jp2klossless"])
def test_the_same_object_in_another_lossless_encoding_is_a_duplicate(server: Server, name: str) -> None:
    samples = table()
    for sample in ("MR_small", name):
        assert send_by_tus(server, samples[f"test_files/{sample}.dcm"].path.read_bytes()) == (204, "SYNCED")
    sessions = server.api("GET", "/upload-sessions/").json()["results"]
    assert [row["server_image_id"] for row in sessions] == [1, 1]
    for row in sessions:  # each ACK reads back the bytes of its own session
        answer = server.api("POST", f"/upload-sessions/{row['session_id']}/acknowledge/", {"server_image_id": 1})
        assert answer.json()["safe_to_delete_local"] is True
    assert server.command("fsck").returncode == 0


@pytest.mark.parametrize("pause_s", [0.1, 0.3, 0.6])
def test_success_that_was_said_while_the_server_stopped_is_kept(server: Server, tmp_path: Path, pause_s: float) -> None:
    large = builders.ct(tmp_path / "large.dcm", rows=1000, columns=1000, frames=50)
    syntax = read_header(large).transfer_syntax_uid
    answers: list[int | None] = []
    sender = threading.Thread(target=lambda: answers.append(status_of(storescu(server.dicom_port, large, syntax))))
    sender.start()
    sender.join(pause_s)
    assert server.stop() == 0
    sender.join(60)
    server.restart()
    if answers == [0]:  # without an answer either is right: the sender keeps its copy
        assert server.api("GET", "/images/1/").status_code == 200
    assert list((server.folder / "data" / "spool").iterdir()) == []
    assert server.command("fsck").returncode == 0


def test_an_association_that_ends_inside_an_object_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    proxy = CuttingProxy(server.dicom_port, [200_000])
    path = builders.ct(tmp_path / "a.dcm", rows=500, columns=500)
    try:
        assert status_of(storescu(proxy.port, path, read_header(path).transfer_syntax_uid)) is None
        assert proxy.cut_count == 1
    finally:
        proxy.close()
    assert status_of(storescu(server.dicom_port, path, read_header(path).transfer_syntax_uid)) == 0
    server.stop()
    server.restart()
    assert list((server.folder / "data" / "spool").iterdir()) == []
    assert server.command("fsck").returncode == 0
