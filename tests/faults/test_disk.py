"""The disk at its worst: a reboot, bytes that vanish, a full medium."""

import asyncio
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.server import Server, create, patch, upload_url
from tests.support import eventually
from tests.tus.speaking_tus import MIB, half_sent, random_bytes, wait_for_bytes


def sql(server: Server, statement: str) -> None:
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
        database.execute(statement)


def wait_until_flushed(server: Server, url: str, size: int) -> None:
    """Until the row says that `size` bytes are on the medium: at most five seconds (contract §2)."""

    def noted() -> bool:
        with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
            row = database.execute("SELECT offset_bytes FROM upload WHERE upload_id = ?", (url.rsplit("/", 1)[1],))
            return bool(row.fetchone()[0] == size)

    asyncio.run(eventually(noted, 8))


def test_after_a_reboot_only_what_was_flushed_counts(server: Server) -> None:
    content = random_bytes(2 * MIB, 21)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    patch(server, url, content[:1000])
    wait_until_flushed(server, url, 1000)
    half_sent(server, url, content[1000:], MIB, 1000)
    wait_for_bytes(server, session["session_id"], MIB // 2)
    server.kill()
    sql(server, "UPDATE upload SET boot_id = 'the boot before'")
    server.restart()
    assert server.tus("HEAD", url).headers["Upload-Offset"] == "1000"
    assert patch(server, url, content[1000:], 1000).headers["Packhorse-Status"] == "SYNCED"


def test_after_a_reboot_an_upload_of_which_nothing_was_flushed_begins_again_on_its_url(server: Server) -> None:
    content = random_bytes(MIB, 23)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    patch(server, url, content[:5000])
    server.kill()
    sql(server, "UPDATE upload SET boot_id = 'the boot before', offset_bytes = 0")
    server.restart()
    assert server.tus("HEAD", url).headers["Upload-Offset"] == "0"
    assert patch(server, url, content).headers["Packhorse-Status"] == "SYNCED"


def test_when_flushed_bytes_vanish_the_url_is_gone_and_a_retry_goes_on_from_a_new_one(server: Server) -> None:
    content = random_bytes(MIB, 22)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    patch(server, url, content[:5000])
    wait_until_flushed(server, url, 5000)
    staged = server.folder / "data" / "blobs" / "staging" / "site-default" / url.rsplit("/", 1)[1]
    os.truncate(staged, 3000)
    answer = server.tus("HEAD", url)
    assert answer.status_code == 410
    root = f"/upload-sessions/{session['session_id']}"
    assert server.api("GET", f"{root}/").json()["error_code"] == "STAGING_LOST"
    assert server.api("POST", f"{root}/retry/").status_code == 200
    again = server.api("POST", f"{root}/upload_binary/").json()
    assert again["upload_url"] != url and again["upload_offset"] == 0
    assert patch(server, again["upload_url"], content).headers["Packhorse-Status"] == "SYNCED"
    assert server.tus("HEAD", url).status_code == 410


@pytest.mark.peers
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_keeps_the_prefix_and_the_upload_goes_on_when_there_is_room(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(blobs)], check=True)
    server = Server(
        tmp_path / "server", extra=f'[storage]\nblobs = "file:{blobs}"\n[uploads]\nreserve_bytes = 1000000\n'
    )
    try:
        server.start()
        contents = [random_bytes(2 * MIB, seed) for seed in (23, 24)]
        sessions = [create(server, content, file_name="a.bin") for content in contents]
        urls = [upload_url(server, session["session_id"]) for session in sessions]
        assert patch(server, urls[0], contents[0][:MIB]).status_code == 204
        answer = patch(server, urls[1], contents[1])
        assert answer.status_code == 204  # 3 of 4 MiB are taken now, the last is kept in reserve
        answer = patch(server, urls[0], contents[0][MIB:], MIB)
        assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")
        assert answer.headers["Retry-After"]
        offset = int(server.tus("HEAD", urls[0]).headers["Upload-Offset"])
        assert MIB <= offset < 2 * MIB
        session_id = sessions[0]["session_id"]
        assert server.api("GET", f"/upload-sessions/{session_id}/").json()["status"] == "BINARY_UPLOADING"
        fields = {"file_name": "a.bin", "file_size": MIB, "checksum_sha256": "0" * 64}
        refused = server.api("POST", "/upload-sessions/create_session/", fields)
        assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
        refused = server.tus("POST", "/files", Upload_Length=str(MIB))
        assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
        subprocess.run(["mount", "-o", "remount,size=64m", str(blobs)], check=True)
        rest = patch(server, urls[0], contents[0][offset:], offset)
        assert rest.headers["Packhorse-Status"] == "SYNCED"
    finally:
        server.stop()
        subprocess.run(["umount", str(blobs)], check=True)
