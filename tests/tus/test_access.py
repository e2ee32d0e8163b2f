"""Who may see what of an upload: its owner, readers, others who upload, and tokens whose time is over."""

import sqlite3
import time
import uuid
from contextlib import closing

import pytest

from tests.server import Server, patch, sha256, upload_metadata, upload_url
from tests.tus.speaking_rufh import arrives, held_open


def token(server: Server, role: str, *words: str) -> str:
    return server.command("token", "create", "--role", role, *words).stdout.strip()


def database(server: Server) -> sqlite3.Connection:
    return sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)


def run_out(server: Server, *tokens: str) -> None:
    """The time of these tokens is over."""
    ids = [one.split("_")[1] for one in tokens]
    with closing(database(server)) as tables, tables:
        for one in ids:
            tables.execute("UPDATE token SET expires_at = '2026-01-01T00:00:00.000Z' WHERE token_id = ?", (one,))
    for one in tokens:
        deadline = time.monotonic() + 5  # a token is remembered for a second
        while server.api("GET", "/", token=one).status_code != 401:
            assert time.monotonic() < deadline


def reads(server: Server, url: str) -> int:
    """How many rows tell that the upload's image was read; it has no study."""
    with closing(database(server)) as tables:
        query = (
            "SELECT count(*) FROM audit JOIN upload ON upload_id = ? JOIN session USING (session_id) "
            "WHERE action = 'image.read' AND subject = 'image/' || server_image_id"
        )
        return int(tables.execute(query, (url.rsplit("/", 1)[1],)).fetchone()[0])


async def test_an_expired_token_hears_of_its_own_upload_only_and_evicts_nobody(server: Server) -> None:
    mine, viewer = token(server, "uploader", "--expires", "1h"), token(server, "viewer", "--expires", "1h")
    metadata = upload_metadata(filename="a.bin")
    url = server.tus("POST", "/files", token=mine, Upload_Length="100000", Upload_Metadata=metadata).headers["Location"]
    assert server.tus("HEAD", url, token=viewer).headers["Upload-Metadata"] == metadata
    run_out(server, mine, viewer)
    assert server.tus("HEAD", url, token=viewer).status_code == 401
    with held_open(server, url, bytes(50_000), 0, rest=50_000) as line:
        await arrives(server, url, 50_000)
        head = server.tus("HEAD", url, token=mine)
        assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("50000", "100000")
        assert "Upload-Metadata" not in head.headers
        line.send(bytes(50_000))
        assert line.until(1)[0][""] == "204"  # nobody asked it to leave


@pytest.mark.parametrize("role", ["viewer", "auditor"])
async def test_who_may_not_write_asks_for_the_offset_and_evicts_nobody(shared_server: Server, role: str) -> None:
    server, who = shared_server, token(shared_server, role)
    url = server.tus("POST", "/files", Upload_Length="100000").headers["Location"]
    with held_open(server, url, bytes(50_000), 0, rest=50_000) as line:
        await arrives(server, url, 50_000)
        assert server.tus("HEAD", url, token=who).headers["Upload-Offset"] == "50000"
        line.send(bytes(50_000))
        assert line.until(1)[0][""] == "204"
    assert server.tus("HEAD", url, token=who).headers["Upload-Complete"] == "?0"  # it finishes nothing either
    assert patch(server, url, b"", 100_000, **{"Authorization": f"Bearer {who}"}).status_code == 403


def test_knowing_a_hash_gives_the_offset_and_no_bytes(shared_server: Server) -> None:
    server, content = shared_server, uuid.uuid4().bytes
    maker, other = token(server, "uploader"), token(server, "uploader")
    metadata = upload_metadata(radiology_order_id="77", checksum_sha256=sha256(content))
    given = {"Upload_Length": "16", "Upload_Metadata": metadata}
    url = server.tus("POST", "/files", token=maker, **given).headers["Location"]
    assert patch(server, url, content, Authorization=f"Bearer {maker}").headers["Packhorse-Status"] == "SYNCED"
    again = server.tus("POST", "/files", token=other, **given)
    assert (again.headers["Location"], again.headers["Upload-Offset"]) == (url, "16")
    assert server.tus("HEAD", url, token=other).headers["Upload-Offset"] == "16"
    assert server.tus("GET", url, token=other).status_code == 403
    assert server.tus("GET", url, token=token(server, "auditor")).status_code == 403  # no pixels (contract §11)
    for reader in (maker, token(server, "viewer"), token(server, "operator"), server.token):
        assert server.tus("GET", url, token=reader).content == content


def test_the_maker_of_a_session_reads_what_an_operator_handed_out(shared_server: Server) -> None:
    server, content, mine = shared_server, uuid.uuid4().bytes, token(shared_server, "uploader")
    body = {"file_name": "a.bin", "file_size": 16, "checksum_sha256": sha256(content)}
    session = server.api("POST", "/upload-sessions/create_session/", body, token=mine).json()
    url = upload_url(server, session["session_id"])  # by the admin: the upload is the admin's, the session is not
    assert patch(server, url, content).headers["Packhorse-Status"] == "SYNCED"
    assert server.tus("GET", url, token=mine).content == content


def test_bytes_that_are_given_are_noted_once_a_minute(shared_server: Server) -> None:
    server, content = shared_server, uuid.uuid4().bytes
    url = server.tus("POST", "/files", Upload_Length="16").headers["Location"]
    assert server.tus("GET", url).status_code == 409 and reads(server, url) == 0
    patch(server, url, content)
    tag = f'"{sha256(content)}"'
    assert server.tus("GET", url, If_None_Match=tag).status_code == 304 and reads(server, url) == 0
    for _ in range(3):
        assert server.tus("GET", url).status_code == 200
    assert reads(server, url) == 1
    assert server.tus("GET", url, token=token(server, "viewer")).status_code == 200
    assert reads(server, url) == 2


def test_who_only_declares_a_hash_that_is_known_reads_no_image_by_it(shared_server: Server) -> None:
    content = uuid.uuid4().bytes * 10
    maker, other = token(shared_server, "uploader"), token(shared_server, "uploader")
    order = f"o{uuid.uuid4().hex}"
    declared = upload_metadata(filename="a.bin", radiology_order_id=order, checksum_sha256=sha256(content))

    def post(who: str) -> str:
        length = str(len(content))
        answer = shared_server.tus("POST", "/files", token=who, Upload_Length=length, Upload_Metadata=declared)
        return str(answer.headers["Location"])

    url = post(maker)
    assert patch(shared_server, url, content, Authorization=f"Bearer {maker}").headers["Packhorse-Status"] == "SYNCED"
    assert post(other) == url
    listed = shared_server.api("GET", "/upload-sessions/", token=maker).json()["results"]
    image = listed[0]["server_image_id"]
    assert shared_server.api("GET", f"/images/{image}/file", token=maker).content == content
    assert shared_server.api("GET", f"/images/{image}/file", token=other).status_code == 404
