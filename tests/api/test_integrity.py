"""Damage, however it is found: no answer says that a copy may be deleted, and sending the file again puts it right."""

import asyncio
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from server.tus.locks import MachineLocks
from tests import builders
from tests.dcmtk import status_of, storescu
from tests.server import Server, create, patch, sha256, upload_url
from tests.support import eventually

ROOT = "/visits/77/radiology/upload-sessions"


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server", arguments=request.param).start()
    yield running
    running.stop()
    assert "Traceback" not in (running.folder / "server.log").read_text()


@pytest.fixture
def content() -> bytes:
    """Bytes of its own for each test, no DICOM."""
    return uuid.uuid4().bytes * 100


def stored(server: Server, content: bytes, **fields: Any) -> dict[str, Any]:
    session = create(server, content, **{"file_name": "a.bin", **fields})
    patch(server, upload_url(server, session["session_id"]), content)
    return dict(server.api("GET", f"/upload-sessions/{session['session_id']}/").json())


def acknowledge(server: Server, session: dict[str, Any], **fields: Any) -> Any:
    body = {"server_image_id": session["server_image_id"], **fields}
    return server.api("POST", f"/upload-sessions/{session['session_id']}/acknowledge/", body)


def blob_of(server: Server, content: bytes) -> Path:
    return next((server.folder / "data/blobs/sealed").rglob(sha256(content)))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["a bit", "cut", "removed"])


def answers(server: Server, session: dict[str, Any]) -> list[dict[str, Any]]:
    """Every answer that shows the session, but acknowledge/."""
    session_id = session["session_id"]
    path = f"{ROOT}/{session_id}/"
    listed = server.api("GET", f"{ROOT}/?limit=500").json()["results"]
    shown = [server.api("GET", f"{path}?device_id={device}").json() for device in ("tab1", "tab2")]
    return [server.api("GET", path).json(), *shown, *(one for one in listed if one["session_id"] == session_id)]


def audited(server: Server, action: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
        rows = database.execute("SELECT subject, detail FROM audit WHERE action = ? ORDER BY seq", [action]).fetchall()
    return [{"subject": subject, **json.loads(detail)} for subject, detail in rows]


@DAMAGE
@pytest.mark.parametrize("was_acknowledged", [False, True])
def test_once_the_bytes_are_damaged_no_ack_permits_deletion_and_a_resend_puts_them_right(
    server: Server, content: bytes, damage: Callable[[Path], None], was_acknowledged: bool
) -> None:
    session = stored(server, content, device_id="tab1")
    if was_acknowledged:
        assert acknowledge(server, session).json()["safe_to_delete_local"] is True
        assert "safe to delete" in server.api("GET", f"{ROOT}/{session['session_id']}/").json()["status_text"]
    damage(blob_of(server, content))
    for device in ("tab1", "tab2", "tab1"):
        refused = acknowledge(server, session, device_id=device)
        assert (refused.status_code, refused.json()["code"]) == (503, "readback_failed")
        assert refused.headers["Retry-After"] and "safe_to_delete_local" not in refused.json()
    shown = answers(server, session)
    assert len(shown) == 4
    assert {(one["safe_to_delete_local"], one["status_text"]) for one in shown} == {
        (False, "at the server, keep your copy")
    }
    for path in (f"/images/{session['server_image_id']}/file", f"/images/{session['server_image_id']}/rendered"):
        refused = server.api("GET", path)
        assert (refused.status_code, refused.json()["code"]) == (503, "bytes_damaged")
    alarms = audited(server, "integrity.alarm")
    assert len(alarms) == 1 and alarms[0]["subject"] == f"blob/{sha256(content)}"
    assert alarms[0]["session_ids"] == [session["session_id"]]
    assert alarms[0]["image_ids"] == [session["server_image_id"]] and alarms[0]["found_by"] == "acknowledge"
    again = stored(server, content, device_id="tab1")
    assert again["supersedes"] == session["session_id"] and again["server_image_id"] == session["server_image_id"]
    assert [one["how"] for one in audited(server, "integrity.repaired")] == ["sent again"]
    assert acknowledge(server, again).json()["safe_to_delete_local"] is True
    assert acknowledge(server, session).json()["safe_to_delete_local"] is True  # its bytes are there again
    assert server.command("fsck").returncode == server.command("audit", "verify").returncode == 0


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.rename(path.parents[5] / "elsewhere")
    path.symlink_to(path.parents[5] / "elsewhere")


@pytest.mark.parametrize("odd", [fifo, directory, link])
def test_what_is_no_file_holds_nothing_up_and_gives_way_to_a_resend(
    tmp_path: Path, content: bytes, odd: Callable[[Path], None]
) -> None:
    server = Server(tmp_path / "server").start()
    try:
        session = stored(server, content)
        odd(blob_of(server, content))
        fsck = server.command("fsck")
        assert fsck.returncode == 1 and "has another size" in fsck.stdout
        assert acknowledge(server, session).json()["code"] == "readback_failed"
        assert server.api("GET", f"/images/{session['server_image_id']}/file").status_code == 503
        began_s = time.monotonic()
        again = stored(server, content)
        assert again["status"] == "SYNCED" and acknowledge(server, again).json()["safe_to_delete_local"] is True
        assert server.command("fsck").returncode == 0 and time.monotonic() - began_s < 20
    finally:
        server.stop()


def test_after_the_clock_was_set_right_no_ack_rests_on_a_reading_of_tomorrow(server: Server, content: bytes) -> None:
    session = stored(server, content, device_id="tab1")
    assert acknowledge(server, session).json()["safe_to_delete_local"] is True
    tomorrow = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 day')"

    def note(*columns: str) -> None:
        with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
            database.execute(f"UPDATE blob SET {', '.join(f'{column} = {tomorrow}' for column in columns)}")

    note("sealed_at", "read_at", "verified_at")
    os.truncate(blob_of(server, content), 100)
    for device in ("tab1", "tab2"):
        assert acknowledge(server, session, device_id=device).json()["code"] == "readback_failed"
    note("read_at", "alarm_at")
    assert acknowledge(server, stored(server, content, device_id="tab1")).json()["safe_to_delete_local"] is True
    assert [one["how"] for one in audited(server, "integrity.repaired")] == ["sent again"]


@pytest.mark.peers
def test_an_alarm_that_a_scrub_found_on_an_image_of_another_door_holds_for_every_session_on_it(
    server: Server, tmp_path: Path
) -> None:
    path = builders.ct(tmp_path / "a.dcm")
    assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0
    by_c_store = requests.get(f"{server.url}/api/v1/images/1/file", headers=server.auth, timeout=10).content
    session = stored(server, by_c_store, file_name="a.dcm")
    assert session["server_image_id"] == 1
    assert acknowledge(server, session).json()["safe_to_delete_local"] is True
    flip(blob_of(server, by_c_store))
    told = server.command("scrub")
    assert told.returncode == 1 and "1 damaged" in told.stdout
    assert f"blob {sha256(by_c_store)}" in told.stdout and f"image 1, session {session['session_id']}" in told.stdout
    assert not any(one["safe_to_delete_local"] for one in answers(server, session))
    assert acknowledge(server, session).status_code == 503
    assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0  # the same object by its own door
    assert [one["found_by"] for one in audited(server, "integrity.alarm")] == ["scrub"]
    assert [one["how"] for one in audited(server, "integrity.repaired")] == ["sent again"]
    assert acknowledge(server, session).json()["replayed"] is True
    assert server.command("scrub").returncode == 0


@pytest.mark.peers
def test_the_data_set_that_comes_in_another_file_puts_the_damaged_one_right(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    try:
        path = builders.ct(tmp_path / "a.dcm")
        assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0
        by_c_store = requests.get(f"{server.url}/api/v1/images/1/file", headers=server.auth, timeout=10).content
        for number, damage in enumerate((flip, cut)):
            damage(blob_of(server, by_c_store))
            assert server.command("scrub").returncode == 1
            session = stored(server, path.read_bytes(), file_name="a.dcm", radiology_order_id=number)  # other meta
            assert session["server_image_id"] == 1 and session["checksum_sha256"] != sha256(by_c_store)
            assert blob_of(server, by_c_store).read_bytes() == by_c_store
            assert [one["how"] for one in audited(server, "integrity.repaired")] == ["sent again"] * (number + 1)
        blob_of(server, by_c_store).unlink()  # its own front is gone: only its own file can bring it back
        told = server.command("fsck")
        assert told.returncode == 1 and "from STORESCU at 127.0.0.1): the alarm is raised" in told.stdout
        assert stored(server, path.read_bytes(), file_name="a.dcm", radiology_order_id=9)["server_image_id"] == 1
        assert server.command("scrub").returncode == 1
        assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0
        assert server.command("scrub").returncode == server.command("fsck").returncode == 0
    finally:
        server.stop()
    assert "Traceback" not in (server.folder / "server.log").read_text()


def test_fsck_names_what_is_gone_or_cut_and_scrub_what_only_reading_tells(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    try:
        files = [uuid.uuid4().bytes * 10 for _ in range(4)]
        sessions = [stored(server, one) for one in files]
        assert all(acknowledge(server, one).status_code == 200 for one in sessions)
        for number, damage in enumerate((cut, Path.unlink, flip)):
            damage(blob_of(server, files[number]))
        told = server.command("fsck")
        assert told.returncode == 1 and "stored sessions without image or blob: 2" in told.stdout
        assert f"blob {sha256(files[0])} of site default has another size" in told.stdout
        assert f"blob {sha256(files[1])} of site default is gone" in told.stdout
        safe = [answers(server, one)[0]["safe_to_delete_local"] for one in sessions]
        assert safe == [False, False, True, True]  # what fsck has found holds at once
        told = server.command("scrub", "--mib-per-s", "1000")
        assert told.returncode == 1 and told.stdout.splitlines()[-1].startswith("4 blobs read")
        assert {sha256(one) in told.stdout for one in files[:3]} == {True} and sha256(files[3]) not in told.stdout
        blob = server.folder / "data/blobs/sealed/site-default" / sha256(files[2])[:2] / sha256(files[2])
        blob.write_bytes(files[2])  # put back from a backup
        told = server.command("scrub")
        assert told.returncode == 1 and sha256(files[2]) not in told.stdout
        assert answers(server, sessions[2])[0]["safe_to_delete_local"] is True
        assert [one["blobs"] for one in audited(server, "integrity.scrubbed")] == [4, 4]
    finally:
        server.stop()


@pytest.mark.slow
async def test_a_reading_that_takes_long_is_told_after_ten_seconds_and_goes_on(
    server: Server, content: bytes
) -> None:
    session = stored(server, content, device_id="tab1")
    reading = await MachineLocks(server.folder / "data").take_free(f"blob/default/{sha256(content)}", None)
    assert reading is not None
    async with reading:  # as another process that reads it does
        began_s = time.monotonic()
        told = await asyncio.to_thread(acknowledge, server, session)
        assert 9 < time.monotonic() - began_s < 20
        assert (told.status_code, told.json()["code"], told.headers["Retry-After"]) == (503, "readback_running", "5")
    await eventually(lambda: acknowledge(server, session).status_code == 200)
    assert server.api("GET", f"{ROOT}/{session['session_id']}/").json()["safe_to_delete_local"] is True


async def test_the_server_scrubs_by_itself_and_again_after_the_time_that_is_set(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra="[integrity]\nscrub_every_days = 0.00001\n").start()
    try:
        contents = [uuid.uuid4().bytes for _ in range(2)]
        sessions = [stored(server, one) for one in contents]
        assert all(acknowledge(server, one).status_code == 200 for one in sessions)
        for content, session in zip(contents, sessions, strict=True):
            flip(blob_of(server, content))
            path = f"{ROOT}/{session['session_id']}/"
            await eventually(lambda path=path: not server.api("GET", path).json()["safe_to_delete_local"], 20)  # type: ignore[misc]
        assert {one["found_by"] for one in audited(server, "integrity.alarm")} == {"scrub"}
        events = server.api("GET", "/events?after=0").json()["results"]
        told = [one["data"] for one in events if one["type"] == "integrity.alarm"]
        assert {session_id for one in told for session_id in one["session_ids"]} == {
            session["session_id"] for session in sessions
        }
    finally:
        server.stop()
    assert "Traceback" not in (server.folder / "server.log").read_text()


def test_open_alarms_are_listed_without_reading_and_by_whose_they_are(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    try:
        content = uuid.uuid4().bytes
        session = stored(server, content)
        path = blob_of(server, content)
        flip(path)
        told = server.command("scrub", "--list")
        assert (told.returncode, told.stdout) == (0, "0 open alarms\n")  # nobody has found it
        assert server.command("scrub").returncode == 1
        path.write_bytes(content)
        told = server.command("scrub", "--list")
        assert told.returncode == 1 and told.stdout.splitlines()[-1] == "1 open alarms"  # put back, and not yet read
        assert f"(image {session['server_image_id']}, session {session['session_id']})" in told.stdout
        assert [one["blobs"] for one in audited(server, "integrity.scrubbed")] == [1]
        assert server.command("scrub").returncode == server.command("scrub", "--list").returncode == 0
    finally:
        server.stop()


@pytest.mark.peers
def test_an_alarm_on_what_only_an_arrival_holds_names_its_sender_and_its_object(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    try:
        path = builders.ct(tmp_path / "a.dcm", SOPInstanceUID="1.2.826.77")
        assert stored(server, path.read_bytes(), file_name="a.dcm")["server_image_id"] == 1
        assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0  # another file, one data set
        own = sha256(path.read_bytes())
        blobs = [one for one in (server.folder / "data/blobs/sealed").rglob("*") if one.is_file()]
        (of_arrival,) = [one for one in blobs if one.name != own]
        flip(of_arrival)
        told = server.command("scrub")
        assert told.returncode == 1 and "arrival of 1.2.826.77 as image 1 from STORESCU at 127.0.0.1" in told.stdout
        (alarm,) = audited(server, "integrity.alarm")
        arrived = {"calling": "STORESCU", "peer": "127.0.0.1", "sop_instance_uid": "1.2.826.77", "image_id": 1}
        assert alarm["arrivals"] == [arrived]
    finally:
        server.stop()


@pytest.mark.parametrize("words", [("--mib-per-s", "0"), ("--mib-per-s", "-1"), ("--mib-per-s", "fast")])
def test_a_pace_that_is_none_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    told = Server(tmp_path).command("scrub", *words)
    assert told.returncode == 2 and "mib-per-s" in told.stderr
