"""What a person at the command line meets: whom the data is kept from, the wrong folder, a database that is no use."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from storage.backends import migrate
from tests.server import Server, create, packhorse, patch, upload_url
from tests.starting import ROOT


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> list[Path]:
    found = (folder, *folder.rglob("*"))
    return [path for path in found if path.exists() and mode(path) & 0o077]  # staged files go a moment later


# --- kept from the other users of the machine --------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_what_a_server_makes_is_for_its_user_alone(tmp_path: Path, ct: bytes, arguments: tuple[str, ...]) -> None:
    before = os.umask(0o022)
    try:
        server = Server(tmp_path / "server", arguments=arguments).start()
        try:
            patch(server, upload_url(server, create(server, ct)["session_id"]), ct)
            data = server.folder / "data"
            assert (data / "packhorse.db-wal").exists() and (data / "spool").exists()
            assert open_to_others(data) == []
        finally:
            server.stop()
    finally:
        os.umask(before)


def as_an_older_version_left_it(data: Path) -> None:
    migrate(data / "packhorse.db")
    (data / "spool").mkdir()
    shutil.copy(data / "packhorse.db", data / "packhorse.db.before-0004")
    for path in (data, *data.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize(
    "words", [("fsck",), ("audit", "verify"), ("token", "create", "--role", "viewer"), ("migrate",)]
)
def test_every_command_narrows_what_an_older_version_left_open(tmp_path: Path, words: tuple[str, ...]) -> None:
    as_an_older_version_left_it(tmp_path / "data")
    assert packhorse(tmp_path, *words).returncode == 0
    assert open_to_others(tmp_path / "data") == []


def test_a_server_narrows_what_an_older_version_left_open(tmp_path: Path) -> None:
    as_an_older_version_left_it(tmp_path / "data")
    server = Server(tmp_path).start()
    server.stop()
    assert open_to_others(tmp_path / "data") == []


def test_a_folder_that_holds_strangers_files_stays_as_it_is_but_not_ours_in_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    as_an_older_version_left_it(data)
    (data / "somebody").write_text("else's")
    (data / "somebody").chmod(0o644)
    assert packhorse(tmp_path, "fsck").returncode == 0
    assert open_to_others(data) == [data, data / "somebody"]


# --- the wrong folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("fsck",), ("audit", "verify"), ("receipt", "verify", "r.jws")])
def test_in_a_wrong_folder_nothing_is_said_to_be_fine_and_nothing_is_made(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "r.jws").write_text("e30.e30.AAAA")
    told = packhorse(tmp_path, *words)
    assert told.returncode == 1 and not told.stdout
    assert str(tmp_path / "data" / "packhorse.db") in told.stderr and "--config" in told.stderr
    assert len(told.stderr.splitlines()) == 1 and not (tmp_path / "data").exists()


def test_a_token_may_come_before_the_first_start_and_tells_where(tmp_path: Path) -> None:
    made = packhorse(tmp_path, "token", "create", "--role", "admin")
    assert made.returncode == 0 and len(made.stdout.splitlines()) == 1 and made.stdout.startswith("ph_")
    assert str(tmp_path / "data" / "packhorse.db") in made.stderr
    assert not packhorse(tmp_path, "token", "create", "--role", "admin").stderr


# --- a database that is no use ----------------------------------------------------------------------------

COMMANDS = [("serve",), ("fsck",), ("migrate",), ("migrate", "--check"), ("token", "create", "--role", "viewer")]


def test_a_database_of_a_newer_version_is_refused_and_no_copy_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "data" / "packhorse.db"
    migrate(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    copy = path.with_name("packhorse.db.before-0005")
    copy.write_bytes(b"the only good one")
    for words in COMMANDS:
        told = packhorse(tmp_path, *words)
        assert told.returncode == 1 and "9999" in told.stderr and str(path) in told.stderr, told.stderr
        assert "Traceback" not in told.stderr
    assert copy.read_bytes() == b"the only good one" and len(list(path.parent.glob("*.before-*"))) == 1


@pytest.mark.parametrize("words", COMMANDS)
def test_a_file_that_is_no_database_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "data" / "packhorse.db"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    told = packhorse(tmp_path, *words)
    assert told.returncode == 1 and str(path) in told.stderr and "Traceback" not in told.stderr, told.stderr
    assert path.read_bytes() == b"no database" * 1000


@pytest.mark.parametrize("words", [("fsck",), ("audit", "verify"), ("serve",)])
def test_a_database_with_damaged_pages_is_told_without_a_traceback(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "data" / "packhorse.db"
    assert packhorse(tmp_path, "token", "create", "--role", "viewer").returncode == 0
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    told = packhorse(tmp_path, *words)
    assert told.returncode == 1 and "database" in told.stderr and "Traceback" not in told.stderr, told.stderr


@pytest.mark.parametrize("words", [*COMMANDS, ("config", "check")])
def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "data").write_text("a file")
    told = packhorse(tmp_path, *words)
    assert told.returncode in (1, 2) and str(tmp_path / "data") in told.stderr, told.stderr
    assert len(told.stderr.splitlines()) == 1 and not told.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("words", [*COMMANDS, ("config", "check")])
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    tmp_path.chmod(0o500)
    told = packhorse(tmp_path, *words)
    assert told.returncode in (1, 2) and str(tmp_path) in told.stderr and "Traceback" not in told.stderr


# --- receipts ---------------------------------------------------------------------------------------------


def test_a_receipt_is_told_from_a_changed_one_a_strangers_and_none(tmp_path: Path, ct: bytes) -> None:
    answers = []
    for name in ("ours", "theirs"):
        server = Server(tmp_path / name).start()
        session = create(server, ct)
        patch(server, upload_url(server, session["session_id"]), ct)
        answers.append(server.api("GET", f"/upload-sessions/{session['session_id']}/receipt/"))
        assert server.stop() == 0
    ours, theirs = (answer.json()["receipt"] for answer in answers)
    head, claims, signature = ours.split(".")

    def told(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "r.json").write_text(text)
        return packhorse(tmp_path / "ours", "receipt", "verify", "../r.json")

    for genuine in (ours, answers[0].text, json.dumps(ours), f"\n{ours}\n"):
        answer = told(genuine)
        assert answer.returncode == 0 and json.loads(answer.stdout)["session_id"], answer.stderr
    changed = f"{head}.{claims[:-2]}AA.{signature}"
    no_kid = "eyJhbGciOiJFZDI1NTE5In0.e30.AA"
    refused = {"not genuine": [changed, f"{head}.{claims}.AA"], "another server": [theirs, answers[1].text]}
    refused["this is no receipt"] = ["", "a letter", "{}", '{"receipt": 1}', no_kid, "[1]", "{" * 100_000]
    for words, texts in refused.items():
        for text in texts:
            answer = told(text)
            assert answer.returncode == 1 and words in answer.stderr and not answer.stdout, (words, answer.stderr)
            assert len(answer.stderr.splitlines()) == 1 and not answer.stderr.rstrip().endswith(":")
    checked = packhorse(tmp_path / "ours", "audit", "verify", "--receipt", "../r.json")
    assert checked.returncode == 1 and "this is no receipt" in checked.stderr


# --- where the admin token is -----------------------------------------------------------------------------


def test_no_token_is_promised_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "packhorse.toml").write_text("[http]\nport = 0\n[dicom]\nport = 0\n")
    assert packhorse(tmp_path, "token", "create", "--role", "uploader").returncode == 0
    words = [sys.executable, "-m", "server", "serve", "--config", str(tmp_path / "packhorse.toml")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "admin token" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        process.terminate()
        process.communicate(timeout=20)
    assert "no admin token" in lines[-1] and "packhorse token create --role admin" in lines[-1]
    assert not (tmp_path / "data" / "admin-token").exists()
