"""Bad lines and dead processes: what arrived is kept, the offset is right, the resumed file verifies."""

import asyncio
import io
import random

import pytest
import requests
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.proxy import CuttingProxy
from tests.server import Server, create, patch, sha256, upload_url
from tests.support import eventually
from tests.tus.speaking_tus import MIB, half_sent, random_bytes, transfers, wait_for_bytes


@pytest.mark.slow
def test_64_mib_cut_20_times_by_a_stock_client_finish_with_the_right_digest(server: Server) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    content = random_bytes(64 * MIB, seed)
    session = create(server, content, file_name="study.bin", content_type="application/octet-stream")
    url = upload_url(server, session["session_id"])
    cuts = [dice.randrange(64 * 1024, 4 * MIB) for _ in range(20)]
    proxy = CuttingProxy(int(server.url.rsplit(":", 1)[1]), cuts, reset=dice)
    client = TusClient(f"{server.url}/files", headers=server.auth)
    attempts = 0
    try:
        through = url.replace(server.url, f"http://127.0.0.1:{proxy.port}")
        done = False
        while not done:
            attempts += 1
            assert attempts < 40, "the upload does not come to an end"
            try:
                # one PATCH for the rest of the file; the offset is what HEAD says
                uploader = client.uploader(file_stream=io.BytesIO(content), url=through, chunk_size=64 * MIB)
                uploader.offset = uploader.get_offset()
                uploader.upload()
                done = True
            except (TusCommunicationError, requests.exceptions.RequestException):
                continue
        assert proxy.cut_count == 20
    finally:
        proxy.close()
    stored = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    assert stored["status"] == "SYNCED" and stored["checksum_sha256"] == sha256(content)
    counted = transfers(server, session["session_id"])
    interrupted = [row for row in counted if row["offset_after"] < 64 * MIB]
    assert len(interrupted) == 20
    position = 0
    for row in counted:  # each resume starts at no less than what the handler before it had read
        assert row["offset_before"] == position
        assert row["offset_after"] >= row["offset_before"] + row["bytes_read"]
        position = row["offset_after"]
    assert position == 64 * MIB


def test_after_kill_9_in_a_patch_head_is_right_and_the_resumed_file_verifies(server: Server) -> None:
    content = random_bytes(8 * MIB, 7)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    half_sent(server, url, content, 5 * MIB)
    wait_for_bytes(server, session["session_id"], 4 * MIB)
    server.kill()
    server.restart()
    offset = int(server.tus("HEAD", url).headers["Upload-Offset"])
    assert 4 * MIB <= offset <= 5 * MIB
    answer = patch(server, url, content[offset:], offset)
    assert (answer.status_code, answer.headers["Packhorse-Status"]) == (204, "SYNCED"), answer.text
    assert server.command("fsck").returncode == 0
    assert server.command("audit", "verify").returncode == 0


def test_a_newcomer_takes_an_upload_over_from_a_silent_holder(server: Server) -> None:
    content = random_bytes(2 * MIB, 8)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    half_sent(server, url, content, MIB)
    wait_for_bytes(server, session["session_id"], MIB // 2)
    offset = int(server.tus("HEAD", url).headers["Upload-Offset"])
    assert offset == MIB
    assert patch(server, url, content[offset:], offset).headers["Packhorse-Status"] == "SYNCED"


def test_a_patch_below_the_stored_offset_evicts_nobody(server: Server) -> None:
    content = random_bytes(2 * MIB, 9)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    holder = half_sent(server, url, content, MIB)
    wait_for_bytes(server, session["session_id"], MIB // 2)
    answer = patch(server, url, content, 0)
    assert (answer.status_code, answer.json()["code"]) == (409, "offset_mismatch")
    assert holder.is_alive()


def test_a_server_that_is_told_to_stop_keeps_what_arrived(server: Server) -> None:
    content = random_bytes(2 * MIB, 10)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    half_sent(server, url, content, MIB)
    wait_for_bytes(server, session["session_id"], MIB // 2)
    assert server.stop() == 0
    server.restart()
    assert server.tus("HEAD", url).headers["Upload-Offset"] == str(MIB)


@pytest.mark.slow
def test_a_large_patch_is_streamed_in_bounded_memory(server: Server) -> None:
    block = random_bytes(MIB, 11)
    server.api("GET", "/")
    start, count = server.rss_bytes(), 300
    answer = server.tus("POST", "/files", Upload_Length=str(count * MIB))
    sent = patch(server, answer.headers["Location"], (block for _ in range(count)))  # type: ignore[arg-type]  # streamed
    assert sent.headers["Packhorse-Status"] == "SYNCED"
    assert server.rss_bytes() - start < 64 * MIB


def test_at_start_what_is_staged_for_nobody_is_freed_and_what_is_complete_is_finished(server: Server) -> None:
    content = random_bytes(MIB, 12)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    patch(server, url, content[:1000])
    server.kill()
    staging = server.folder / "data" / "blobs" / "staging" / "site-default"
    (staging / url.rsplit("/", 1)[1]).write_bytes(content)  # as a crash between the last byte and the seal leaves it
    (staging / "00000000-0000-0000-0000-000000000000").write_bytes(b"of nobody")
    server.restart()
    view = f"/upload-sessions/{session['session_id']}/"
    asyncio.run(eventually(lambda: server.api("GET", view).json()["status"] == "SYNCED"))
    asyncio.run(eventually(lambda: list(staging.iterdir()) == []))
