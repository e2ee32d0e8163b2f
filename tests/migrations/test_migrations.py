"""A migrated database is what the tables and triggers say, and migrating twice changes nothing."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from storage.backends import REVISIONS, migrate, revisions
from storage.migrations.upgrading import configuration, upgrade
from storage.tables import metadata
from storage.triggers import create_triggers


def schema(path: Path) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {
            (kind, name): " ".join(sql.split()).replace('"', "")
            for kind, name, sql in rows
            if name not in ("alembic_version", "sqlite_sequence")
        }


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as database:
        return {
            name: sorted(tuple(row[1:]) for row in database.execute(f"PRAGMA table_info({name})"))
            for kind, name in schema(path)
            if kind == "table"
        }


def test_a_fresh_schema_is_the_migrated_one(tmp_path: Path) -> None:
    migrate(tmp_path / "migrated.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'fresh.db'}")
    with engine.begin() as connection:
        metadata.create_all(connection)
        create_triggers(connection)
    engine.dispose()
    fresh, migrated = schema(tmp_path / "fresh.db"), schema(tmp_path / "migrated.db")
    assert sorted(fresh) == sorted(migrated)
    assert columns(tmp_path / "fresh.db") == columns(tmp_path / "migrated.db")
    for key in fresh:
        if key[0] in ("trigger", "index"):
            assert fresh[key] == migrated[key], key


def test_each_migration_is_in_a_file_that_is_named_for_its_revision_and_follows_the_one_before(tmp_path: Path) -> None:
    scripts = ScriptDirectory.from_config(configuration(tmp_path / "p.db"))
    assert [script.revision for script in scripts.walk_revisions()][::-1] == REVISIONS


def test_every_table_names_its_site() -> None:
    assert [name for name, table in metadata.tables.items() if "site" not in table.c] == []


def test_migrating_again_changes_nothing_and_makes_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    assert migrate(path) is None
    before = schema(path)
    assert migrate(path) is None and schema(path) == before
    present, newest = revisions(path)
    assert present == newest


def test_rows_of_the_first_release_survive_and_stay_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.db"
    with monkeypatch.context() as patched:  # today's list of triggers names columns that came later
        patched.setattr("storage.triggers.create_triggers", lambda _tx: None)
        upgrade(path, "0001")
    with closing(sqlite3.connect(path)) as database, database:
        for table, column in (("upload", "length_bytes"), ("session", "file_size")):  # as the first release had them
            database.execute(
                f"CREATE TRIGGER {table}_{column}_immutable BEFORE UPDATE OF {column} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'never changes'); END"
            )
        given = {
            "session": {
                "session_id": "s",
                "site": "default",
                "status": "BINARY_UPLOADING",
                "priority": "ROUTINE",
                "file_name": "a.dcm",
                "file_size": 7,
                "checksum_source": "client",
                "principal": "p",
                "numeric_ids": "",
                "max_retries": 5,
                "retry_count": 0,
                "created_at": "x",
                "updated_at": "x",
                "seq": 1,
            },
            "upload": {
                "upload_id": "u",
                "site": "default",
                "session_id": "s",
                "principal": "p",
                "length_bytes": 7,
                "offset_bytes": 3,
                "state": "open",
                "boot_id": "b",
                "upload_metadata": "",
                "created_at": "x",
                "expires_at": "x",
            },
        }
        for table, values in given.items():
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))
    copy = migrate(path)
    assert copy is not None and copy.exists()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT file_size FROM session").fetchall() == [(7,)]
        assert database.execute("SELECT length_bytes, offset_bytes, upload_concat FROM upload").fetchall() == [
            (7, 3, None)
        ]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        with pytest.raises(sqlite3.IntegrityError, match="written once"):
            database.execute("UPDATE upload SET length_bytes = 8")
        with pytest.raises(sqlite3.IntegrityError, match="stay"):
            database.execute("DELETE FROM session")


def test_images_of_before_orders_were_reconciled_tell_their_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.db"
    with monkeypatch.context() as patched:
        patched.setattr("storage.triggers.create_triggers", lambda _tx: None)
        upgrade(path, "0005")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TRIGGER session_visit_id_immutable BEFORE UPDATE OF visit_id ON session "
            "BEGIN SELECT RAISE(ABORT, 'never changes'); END"
        )
        said = '{"PatientID": "P1", "AccessionNumber": "A1"}'
        database.execute("INSERT INTO study VALUES (1, 'default', '1.2', ?, 'x')", [said])
        for image_id, study, flags in (
            (1, "1.2", "short_pixel_data,patient_mismatch"),
            (2, "1.2", "patient_mismatch,accession_mismatch"),
            (3, None, ""),
        ):
            database.execute(
                "INSERT INTO image (id, site, kind, study_instance_uid, blob_sha256, size_bytes, flags, door, "
                "stored_at) VALUES (?, 'default', 'dicom', ?, 'b', 1, ?, 'tus', 'x')",
                [image_id, study, flags],
            )
        database.execute(
            "INSERT INTO session (session_id, site, radiology_order_id, status, priority, file_name, checksum_source, "
            "principal, numeric_ids, max_retries, retry_count, created_at, updated_at, seq) VALUES "
            "('s', 'default', 'o', 'FAILED', 'ROUTINE', 'a', 'client', 'p', '', 5, 0, 'x', 'x', 1)"
        )
        for session_id in ("s", None):
            database.execute(
                "INSERT INTO quarantine (site, blob_sha256, reason, session_id, state, created_at) "
                "VALUES ('default', 'b', 'SOP_INSTANCE_CONFLICT', ?, 'held', 'x')",
                [session_id],
            )
    migrate(path)
    with closing(sqlite3.connect(path)) as database:
        images = database.execute("SELECT patient_id, accession_number, rejected_at, flags FROM image ORDER BY id")
        assert images.fetchall() == [
            ("P1", "A1", None, "short_pixel_data"),
            ("P1", "A1", None, ""),
            (None, None, None, ""),
        ]
        held = database.execute("SELECT door, radiology_order_id FROM quarantine ORDER BY id").fetchall()
        assert held == [("tus", "o"), ("dimse", None)]
        database.execute("UPDATE session SET visit_id = '77'")  # it becomes known, once
        with pytest.raises(sqlite3.IntegrityError, match="written once"):
            database.execute("UPDATE session SET visit_id = '78'")


def test_orders_of_before_have_the_form_of_their_first_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.db"
    with monkeypatch.context() as patched:
        patched.setattr("storage.triggers.create_triggers", lambda _tx: None)
        upgrade(path, "0010")
    rows = [
        # order, visit, attributes; the sessions' forms in order; what JSON shows as a number
        ("901", None, "{}", ["", "radiology_order_id"], ""),
        ("902", "7", '{"visit_is_number": false, "modality": "CT"}', ["device_id,radiology_order_id"],
         "radiology_order_id"),
        ("903", "7", '{"visit_is_number": true}', [], "radiology_order_id,visit_id"),
        ("0904", "07", "{}", [], ""),
        ("x", "8", "{}", [], "visit_id"),
    ]  # fmt: skip
    with closing(sqlite3.connect(path)) as database, database:
        for order, visit, attributes, forms, _ in rows:
            database.execute("INSERT INTO imaging_order VALUES ('default', ?, ?, NULL, 1, ?, 'x', 'x')",
                             [order, visit, attributes])  # fmt: skip
            for number, numeric_ids in enumerate(forms):
                database.execute(
                    "INSERT INTO session (session_id, site, radiology_order_id, status, priority, file_name, "
                    "checksum_source, principal, numeric_ids, max_retries, retry_count, created_at, updated_at, seq) "
                    "VALUES (?, 'default', ?, 'FAILED', 'ROUTINE', 'a', 'client', 'p', ?, 5, 0, ?, 'x', 1)",
                    [f"{order}-{number}", order, numeric_ids, str(number)],
                )
    migrate(path)
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT radiology_order_id, numeric_ids, attributes FROM imaging_order")
        kept = {order: (numeric_ids, attributes) for order, numeric_ids, attributes in found}
    assert {order: numeric_ids for order, (numeric_ids, _) in kept.items()} == {row[0]: row[4] for row in rows}
    assert kept["902"][1] == '{"modality":"CT"}'


def test_a_copy_never_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.db"
    with monkeypatch.context() as patched:
        patched.setattr("storage.triggers.create_triggers", lambda _tx: None)
        upgrade(path, "0001")
    newest = revisions(path)[1]
    first = path.with_name(f"p.db.before-{newest}")
    first.write_bytes(b"the only good one")
    copy = migrate(path)
    assert copy is not None and copy != first and first.read_bytes() == b"the only good one"
    assert revisions(copy)[0] == "0001" and copy.stat().st_mode & 0o077 == 0
