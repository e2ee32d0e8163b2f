"""`packhorse doctor` says what is wrong and what to do, beside a running server or without one; it changes nothing."""

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server, create, packhorse, patch, sha256, upload_url
from tests.support import eventually, free_port, require_peer


def examined(folder: Path, *words: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and the findings by what was looked at."""
    told = packhorse(folder, "doctor", "--json", *words)
    assert told.stdout, told.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    answer = json.loads(told.stdout)
    for one in answer["findings"]:
        assert one["verdict"] == "fine" or one["remedy"], one
        found.setdefault(one["check"], []).append(one)
    assert answer["well"] is (told.returncode == 0)
    return told.returncode, found


def verdicts(found: dict[str, list[dict[str, Any]]], check: str) -> list[str]:
    return [one["verdict"] for one in found[check]]


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server").start()
    server.stop()
    yield server


def test_beside_a_running_server_and_without_one_all_is_well_and_nothing_is_changed(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start(free_port(), free_port())
    checks = {"database", "database revision", "database log", "triggers", "clock", "keys", "permissions",
              "http.port", "dicom.port", "disk speed", "disk of the database", "disk of the blobs"}
    try:
        status, found = examined(server.folder)
        assert status == 0 and checks <= set(found), found
        assert "this server's" in found["http.port"][0]["what"] and "this server's" in found["dicom.port"][0]["what"]
    finally:
        server.stop()
    before = {path: path.stat().st_mtime_ns for path in (server.folder / "data").rglob("*")}
    status, found = examined(server.folder)
    assert status == 0 and checks <= set(found), found
    assert "is free" in found["http.port"][0]["what"]
    after = {path: path.stat().st_mtime_ns for path in (server.folder / "data").rglob("*")}
    logs = {path for path in {*before, *after} if path.name.endswith(("-wal", "-shm"))}
    folders = {server.folder / "data"}
    assert {p: t for p, t in before.items() if p not in logs | folders} == {
        p: t for p, t in after.items() if p not in logs | folders}


def test_where_there_is_no_database_it_says_so_and_makes_none(tmp_path: Path) -> None:
    status, found = examined(tmp_path)
    assert status == 1 and verdicts(found, "database") == ["wrong"] and list(tmp_path.iterdir()) == []


def test_a_foreign_program_on_the_port_is_wrong(stopped: Server) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        (stopped.folder / "packhorse.toml").write_text(f"[http]\nport = {port}\n[dicom]\nport = 0\n")
        status, found = examined(stopped.folder)
    assert status == 1 and verdicts(found, "http.port") == ["wrong"]
    assert "another program" in found["http.port"][0]["what"]


def test_a_dropped_trigger_is_wrong(stopped: Server) -> None:
    with closing(sqlite3.connect(stopped.folder / "data" / "packhorse.db")) as database:
        database.execute("DROP TRIGGER audit_no_update")
    status, found = examined(stopped.folder)
    assert status == 1 and "audit_no_update" in found["triggers"][0]["what"]
    assert "fsck --repair" in found["triggers"][0]["remedy"]


def test_a_chain_that_lost_its_end_is_wrong_and_so_is_a_head_that_is_gone(stopped: Server) -> None:
    for _ in range(2):
        assert stopped.command("token", "create", "--role", "viewer").returncode == 0
    assert examined(stopped.folder)[0] == 0
    with closing(sqlite3.connect(stopped.folder / "data" / "packhorse.db")) as database:
        database.execute("DROP TRIGGER audit_no_delete")
        database.execute("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)")
        database.commit()
    status, found = examined(stopped.folder)
    assert status == 1 and "the last one is row" in found["audit head"][0]["what"]
    (stopped.folder / "data" / "audit-head.jws").unlink()
    status, found = examined(stopped.folder)
    assert status == 1 and "there is no head" in found["audit head"][0]["what"]


def test_bytes_that_are_known_to_be_damaged_are_wrong_and_who_can_send_them_again_is_named(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    try:
        contents = [f"image {number}".encode() for number in range(22)]
        sessions = [create(server, one, file_name="a.bin") for one in contents]
        for session, content in zip(sessions, contents, strict=True):
            answer = patch(server, upload_url(server, session["session_id"]), content)
            assert answer.headers["Packhorse-Status"] == "SYNCED"
        assert verdicts(examined(server.folder)[1], "integrity alarms") == ["fine"]
        for number, content in enumerate(contents):
            (path,) = (server.folder / "data" / "blobs" / "sealed").glob(f"*/*/{sha256(content)}")
            path.write_bytes(b"x" * len(content))
            if number == 0:
                assert server.command("scrub").returncode == 1
                status, found = examined(server.folder)
                (one,) = found["integrity alarms"]
                assert status == 1 and one["verdict"] == "wrong" and sha256(contents[0]) in one["what"]
                assert f"image 1, session {sessions[0]['session_id']}" in one["what"]
                assert "have it sent again" in one["remedy"] and "packhorse scrub" in one["remedy"]
        assert server.command("scrub").returncode == 1
        status, found = examined(server.folder)
        assert status == 1 and verdicts(found, "integrity alarms") == ["wrong"] * 21
        assert found["integrity alarms"][-1]["what"] == "2 more"
    finally:
        server.stop()


def test_jobs_that_nobody_takes_are_told(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", arguments=("--only", "http")).start()
    try:
        assert verdicts(examined(server.folder)[1], "jobs") == ["fine"]
        with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database, database:
            database.execute("INSERT INTO job (site, kind, subject, state, attempt, run_after) "
                             "VALUES ('default', 'ingest', 'x', 'waiting', 0, '2026-01-01T00:00:00.000Z')")
        status, found = examined(server.folder)
        assert status == 1 and verdicts(found, "jobs") == ["wrong"] and "of kind ingest" in found["jobs"][0]["what"]
    finally:
        server.stop()
    assert verdicts(examined(server.folder)[1], "jobs") == ["warning"]


def test_damaged_pages_are_wrong(stopped: Server) -> None:
    path = stopped.folder / "data" / "packhorse.db"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 8192)
    status, found = examined(stopped.folder)
    assert status == 1 and "wrong" in verdicts(found, "database") and "backup" in found["database"][0]["remedy"]


def test_no_database_at_all_in_the_file_is_wrong(stopped: Server) -> None:
    (stopped.folder / "data" / "packhorse.db").write_bytes(b"no database" * 1000)
    status, found = examined(stopped.folder)
    assert status == 1 and verdicts(found, "database") == ["wrong"]


def test_a_clock_behind_what_it_was_is_wrong(stopped: Server) -> None:
    with closing(sqlite3.connect(stopped.folder / "data" / "packhorse.db")) as database, database:
        database.execute("DELETE FROM clock")
        database.execute("INSERT INTO clock VALUES ('expiry', 'default', '2999-01-01T00:00:00.000Z')")
    status, found = examined(stopped.folder)
    assert status == 1 and "behind" in found["clock"][1]["what"]


@pytest.mark.parametrize("how", ["open", "gone", "none"])
def test_a_key_that_is_open_gone_or_none_is_wrong(stopped: Server, how: str) -> None:
    (key,) = (stopped.folder / "data" / "keys").glob("*.json")
    if how == "open":
        key.chmod(0o644)
    elif how == "gone":
        key.unlink()
    else:
        key.write_text("{}")
    status, found = examined(stopped.folder)
    assert status == 1 and "wrong" in verdicts(found, "keys")


def test_data_that_others_may_read_is_wrong_and_stays_as_it_is(stopped: Server) -> None:
    (stopped.folder / "data").chmod(0o755)
    status, found = examined(stopped.folder)
    assert status == 1 and verdicts(found, "permissions") == ["wrong"]
    assert (stopped.folder / "data").stat().st_mode & 0o777 == 0o755


def test_a_disk_below_its_reserve_is_wrong(stopped: Server) -> None:
    disk = os.statvfs(stopped.folder)
    reserve = (disk.f_bavail + disk.f_blocks) // 2 * disk.f_frsize  # between what is left and the whole
    with (stopped.folder / "packhorse.toml").open("a") as config:
        config.write(f"[uploads]\nreserve_bytes = {reserve}\n")
    status, found = examined(stopped.folder)
    assert status == 1 and "nothing more is taken" in found["disk of the blobs"][0]["what"]


def test_a_destination_that_does_not_answer_is_wrong_and_a_peer_only_a_warning(tmp_path: Path) -> None:
    answering = Server(tmp_path / "answering").start()
    try:
        ports = {"there": answering.dicom_port, "gone": free_port()}
        blocks = "".join(
            f"[[forward.destinations]]\nname = '{name}'\nae_title = 'A'\nhost = '127.0.0.1'\nport = {port}\n"
            f"[[dicom.peers]]\nae_title = '{name.upper()}'\nhost = '127.0.0.1'\nport = {port}\n"
            for name, port in ports.items())
        server = Server(tmp_path / "server", extra=blocks).start()
        server.stop()
        status, found = examined(server.folder)
    finally:
        answering.stop()
    assert status == 1
    assert verdicts(found, "forward.destinations there") == verdicts(found, "dicom.peers THERE") == ["fine"]
    assert verdicts(found, "forward.destinations gone") == ["wrong"]
    assert verdicts(found, "dicom.peers GONE") == ["warning"]


@pytest.mark.peers
def test_a_refused_caller_is_shown_with_the_block_that_lets_it_in(tmp_path: Path) -> None:
    echoscu = require_peer("echoscu")
    server = Server(tmp_path / "server", extra="require_known_peers = true\n").start()
    try:
        for _ in range(3):
            words = [echoscu, "-aet", "SCANNER9", "127.0.0.1", str(server.dicom_port)]
            assert subprocess.run(words, capture_output=True, timeout=20).returncode != 0

        def shown() -> bool:
            _, found = examined(server.folder)
            return "dicom.peers" in found

        asyncio.run(eventually(shown, 20))
        status, found = examined(server.folder)
    finally:
        server.stop()
    (one,) = found["dicom.peers"]
    assert status == 0 and '[[dicom.peers]]\nae_title = "SCANNER9"\nhost = "127.0.0.1"' in one["remedy"]
    block = one["remedy"].split(":\n")[1]
    (server.folder / "packhorse.toml").write_text(f"[http]\nport = 0\n[dicom]\nport = 0\n{block}")
    assert packhorse(server.folder, "config", "check").returncode == 0


def test_for_people_each_finding_is_a_line_with_what_to_do_below(stopped: Server) -> None:
    (stopped.folder / "data").chmod(0o755)
    told = packhorse(stopped.folder, "doctor")
    assert told.returncode == 1 and "  WRONG permissions: " in told.stdout and "          chmod go= " in told.stdout
    assert "  ok    triggers: all are there" in told.stdout


def test_an_unusable_configuration_exits_2(tmp_path: Path) -> None:
    (tmp_path / "packhorse.toml").write_text("[http]\nprot = 1")
    assert packhorse(tmp_path, "doctor").returncode == 2
