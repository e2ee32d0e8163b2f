"""`fsck --repair` mends what can be mended in one way only, names the rest for a person, and does nothing unasked."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from storage.triggers import sqlite_triggers
from tests import builders
from tests.server import Server, create, packhorse, patch, sha256, upload_url
from tests.support import eventually

DIGEST = sha256(b"a file")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a stopped server that holds one file and one CT; each test damages a copy."""
    server = Server(tmp_path_factory.mktemp("made") / "server").start()
    ct = builders.ct(server.folder / "a.dcm", rows=8, columns=8).read_bytes()
    for name, content in (("a.bin", b"a file"), ("a.dcm", ct)):
        session = create(server, content, file_name=name)
        assert patch(server, upload_url(server, session["session_id"]), content).headers["Packhorse-Status"] == "SYNCED"
    server.stop()
    yield server.folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "server"))


def execute(folder: Path, *statements: str, drop: str = "") -> None:
    """As somebody who opened the lock: raw SQL, without the triggers whose name begins so."""
    with closing(sqlite3.connect(folder / "data" / "packhorse.db")) as database, database:
        database.execute("PRAGMA foreign_keys=OFF")
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        for name in names if drop else []:
            if name.startswith(drop):
                database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)


def asked(folder: Path, question: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "data" / "packhorse.db")) as database:
        return list(database.execute(question))


def blob(folder: Path, content: bytes = b"a file") -> Path:
    digest = sha256(content)
    return folder / "data" / "blobs" / "sealed" / "site-default" / digest[:2] / digest


def repaired(folder: Path, words: str, *, sound: bool) -> str:
    """fsck tells and changes nothing; with --repair it does it, audited, and says whether all is well now."""
    before = asked(folder, "SELECT COUNT(*) FROM audit")
    told = packhorse(folder, "fsck")
    assert words in told.stdout and asked(folder, "SELECT COUNT(*) FROM audit") == before, told.stdout
    told = packhorse(folder, "fsck", "--repair")
    assert words in told.stdout and told.returncode == (0 if sound else 1), told.stdout
    assert "the chain is whole" in packhorse(folder, "audit", "verify").stdout
    return told.stdout


def noted(folder: Path) -> int:
    return len(asked(folder, "SELECT 1 FROM audit WHERE action = 'fsck.repaired'"))


def test_a_sound_store_is_left_alone(folder: Path) -> None:
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 0 and noted(folder) == 0 and "repair" not in told.stdout


def triggers(folder: Path) -> dict[object, object]:
    rows = asked(folder, "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    return {row[0]: row[1] for row in rows}


def made_anew(folder: Path) -> list[tuple[object, ...]]:
    return asked(folder, "SELECT outcome, detail FROM audit WHERE action = 'audit.triggers_made'")


async def test_triggers_that_are_gone_or_changed_are_made_anew_beside_a_running_server(folder: Path) -> None:
    server = Server(folder).start()
    try:
        execute(folder, "CREATE TRIGGER ack_no_delete BEFORE DELETE ON ack BEGIN SELECT 1; END", drop="ack_no_delete")
        execute(folder, drop="session_no")
        await eventually(lambda: requests.get(f"{server.url}/readyz", timeout=10).status_code == 503)
        told = server.command("fsck")
        assert told.returncode == 1 and "session_no_delete is gone or changed: find out who" in told.stdout
        assert not made_anew(folder)
        told = server.command("fsck", "--repair")
        assert told.returncode == 0 and "ack_no_delete is gone or changed: done" in told.stdout, told.stdout
        assert triggers(folder) == dict(sqlite_triggers())
        ((outcome, detail),) = made_anew(folder)
        assert outcome == "ok" and "session_no_replace" in str(detail) and '"chain":"whole"' in str(detail)
        await eventually(lambda: requests.get(f"{server.url}/readyz", timeout=10).status_code == 200)
        assert server.command("fsck", "--repair").returncode == 0 and len(made_anew(folder)) == 1
        assert create(server, b"another file", file_name="b.bin")["session_id"]
    finally:
        server.stop()
    with pytest.raises(sqlite3.IntegrityError, match="stay"):
        execute(folder, "DELETE FROM session")
    assert packhorse(folder, "audit", "verify").returncode == 0


def test_a_trigger_that_keeps_rows_out_is_taken_away_and_the_audit_tells_what_it_was(folder: Path) -> None:
    execute(folder, 'CREATE TRIGGER "x; ""y" BEFORE INSERT ON audit BEGIN SELECT RAISE(IGNORE); END')
    told = packhorse(folder, "fsck")
    assert told.returncode == 1 and "is not ours: find out who it was; it is taken away (with --repair)" in told.stdout
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 0 and "is not ours: done" in told.stdout, told.stdout + told.stderr
    assert triggers(folder) == dict(sqlite_triggers())
    ((_, detail),) = made_anew(folder)
    assert "RAISE(IGNORE)" in str(detail) and packhorse(folder, "fsck").returncode == 0


@pytest.mark.parametrize("how", ["changed", "no head"])
def test_triggers_are_made_anew_also_where_the_chain_is_bad_and_the_audit_says_so(folder: Path, how: str) -> None:
    if how == "changed":
        execute(folder, "UPDATE audit SET actor = 'nobody' WHERE seq = 2", drop="audit_")
    else:
        execute(folder, drop="audit_")
        (folder / "data" / "audit-head.jws").unlink()
    told = packhorse(folder, "fsck", "--repair")
    words = "row 2 was changed" if how == "changed" else "is gone"
    assert told.returncode == 1 and "the audit chain is bad" in told.stdout and words in told.stdout
    assert triggers(folder) == dict(sqlite_triggers())
    ((outcome, detail),) = made_anew(folder)
    assert outcome == "chain_bad" and words in str(detail)


def test_a_blob_without_owner_loses_its_row_and_its_bytes_stay_for_clean_up(folder: Path) -> None:
    content = b"of nobody"
    path = blob(folder, content)
    path.write_bytes(content)
    columns = "(site, sha256, size_bytes, sealed_at)"
    row = f"('default', '{sha256(content)}', 9, '2026-01-01T00:00:00.000Z')"
    execute(folder, f"INSERT INTO blob {columns} VALUES {row}")
    told = repaired(folder, "blob without owner", sound=True)
    assert "done" in told and noted(folder) == 1 and path.exists()
    assert asked(folder, f"SELECT 1 FROM blob WHERE sha256 = '{sha256(content)}'") == []
    assert "clean-up frees it when a day has passed" in packhorse(folder, "fsck", "--repair").stdout and path.exists()


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_stored_session_without_its_bytes_gets_the_alarm_and_is_mended_by_sending_again(
    folder: Path, how: str
) -> None:
    if how == "gone":
        blob(folder).unlink()
    else:
        os.truncate(blob(folder), 2)
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 1 and ("is gone" if how == "gone" else "has another size") in told.stdout
    question = f"SELECT session_id, server_image_id FROM session WHERE blob_sha256 = '{DIGEST}'"
    ((session_id, image_id),) = asked(folder, question)
    assert f"(image {image_id}, session {session_id}): the alarm is raised; have it sent again, or put the file back " \
        "from a backup, then run packhorse scrub" in told.stdout
    assert [bool(row[0]) for row in asked(folder, "SELECT alarm FROM blob ORDER BY size_bytes")] == [True, False]
    assert asked(folder, "SELECT COUNT(*) FROM session WHERE status = 'SYNCED'") == [(2,)]
    server = Server(folder).start()
    try:
        session = create(server, b"a file", file_name="a.bin")
        assert session["supersedes"]
        answer = patch(server, upload_url(server, session["session_id"]), b"a file")
        assert answer.headers["Packhorse-Status"] == "SYNCED"
        assert server.command("fsck").returncode == 0 and blob(folder).read_bytes() == b"a file"
    finally:
        server.stop()
    assert asked(folder, "SELECT COUNT(*) FROM blob WHERE alarm IS NOT NULL") == [(0,)]


def test_a_blob_row_that_was_lost_comes_back_when_the_file_is_whole(folder: Path) -> None:
    execute(folder, f"DELETE FROM blob WHERE sha256 = '{sha256(b'a file')}'", drop="blob_owned")
    told = packhorse(folder, "fsck").stdout
    assert "clean-up frees it" not in told and told.count("gets its row again") == 1
    assert "done" in repaired(folder, "it is read, and gets its row again", sound=True)
    assert asked(folder, f"SELECT size_bytes FROM blob WHERE sha256 = '{sha256(b'a file')}'") == [(6,)]


def test_a_blob_row_that_was_lost_comes_back_with_the_alarm_when_the_file_is_damaged(folder: Path) -> None:
    execute(folder, f"DELETE FROM blob WHERE sha256 = '{sha256(b'a file')}'", drop="blob_owned")
    blob(folder).write_bytes(b"a filE")
    repaired(folder, "it is read, and gets its row again", sound=True)
    assert asked(folder, "SELECT COUNT(*) FROM blob WHERE alarm IS NOT NULL") == [(1,)]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_blob_row_that_an_image_without_session_has_lost_comes_back_too(folder: Path, is_damaged: bool) -> None:
    content = b"as by C-STORE"
    row = f"('default', 'attachment', '{sha256(content)}', {len(content)}, '', 'dimse', '2026-01-01T00:00:00.000Z')"
    execute(folder, f"INSERT INTO image (site, kind, blob_sha256, size_bytes, flags, door, stored_at) VALUES {row}")
    blob(folder, content).write_bytes(b"other bytes" if is_damaged else content)
    told = repaired(folder, "file whose row was lost", sound=True)
    assert "done" in told and "clean-up frees it" not in told and noted(folder) == 1
    assert [bool(row[0]) for row in asked(
        folder, f"SELECT alarm FROM blob WHERE sha256 = '{sha256(content)}'")] == [is_damaged]


def test_a_stored_session_without_its_image_is_named_for_a_person(folder: Path) -> None:
    execute(folder, "DELETE FROM image WHERE kind = 'attachment'", drop="image_")
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 1 and "stored session without its image" in told.stdout and "a person" in told.stdout


def test_a_session_and_an_image_that_only_the_audit_tells_of_are_named(folder: Path) -> None:
    (session_id,) = asked(folder, "SELECT session_id FROM session WHERE file_name = 'a.bin'")[0]
    execute(folder, f"DELETE FROM session WHERE session_id = '{session_id}'", drop="session_")
    execute(folder, "DELETE FROM image WHERE id = 1", drop="image_")
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 1 and "audit verify" in told.stdout
    for subject in (session_id, "image/1"):
        assert f"row that the audit tells of: {subject}: a person" in told.stdout


def test_an_image_without_series_gets_it_again_from_its_own_header(folder: Path) -> None:
    before = asked(folder, "SELECT id, study_id, series_instance_uid, attributes FROM series")
    execute(folder, "DELETE FROM series")
    assert "done" in repaired(folder, "image without series", sound=True)
    assert asked(folder, "SELECT id, study_id, series_instance_uid, attributes FROM series") == before
    execute(folder, "DELETE FROM series", "DELETE FROM study")
    repaired(folder, "image without series", sound=True)
    assert '"PatientID": "P1"' in str(asked(folder, "SELECT attributes FROM study"))


def test_an_image_whose_header_names_another_series_is_left(folder: Path) -> None:
    execute(folder, "DELETE FROM series", "UPDATE image SET series_instance_uid = '1.2.9' WHERE kind = 'dicom'",
            drop="image_series")
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 1 and "not done" in told.stdout and noted(folder) == 0


def twins(folder: Path, dataset: str) -> None:
    columns = [str(row[0]) for row in asked(folder, "SELECT name FROM pragma_table_info('image')") if row[0] != "id"]
    values = [f"'{dataset}'" if name == "dataset_sha256" and dataset else name for name in columns]
    execute(folder, "DROP INDEX uq_image_live",
            f"INSERT INTO image ({', '.join(columns)}) SELECT {', '.join(values)} FROM image WHERE kind = 'dicom'",
            drop="image_no_replace")


def test_two_live_images_of_one_data_set_become_one(folder: Path) -> None:
    twins(folder, "")
    assert "done" in repaired(folder, "two live images", sound=True)
    first, second = asked(folder, "SELECT id, superseded_by FROM image WHERE kind = 'dicom' ORDER BY id")
    assert first[1] is None and second[1] == first[0]


def test_two_live_images_of_different_content_are_named_for_a_person(folder: Path) -> None:
    twins(folder, "0" * 64)
    told = packhorse(folder, "fsck", "--repair")
    assert told.returncode == 1 and "choose the right one" in told.stdout and noted(folder) == 0


def test_a_file_of_a_database_that_was_lost_is_never_freed(folder: Path) -> None:
    for path in (folder / "data").glob("packhorse.db*"):
        path.unlink()
    staged = folder / "data" / "blobs" / "staging" / "site-default" / "00000000-0000-0000-0000-000000000000"
    staged.write_bytes(b"a file")  # as a crash leaves it, between the seal and the rows
    server = Server(folder).start()
    server.stop()
    told = packhorse(folder, "fsck", "--repair")
    assert "rebuild-index" in told.stdout and blob(folder).exists() and noted(folder) == 0
    assert not staged.exists()
