"""A migrated database is what the tables and triggers say, and migrating twice changes nothing."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import create_engine

from storage.backends import migrate, revisions
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


def test_every_table_names_its_site() -> None:
    assert [name for name, table in metadata.tables.items() if "site" not in table.c] == []


def test_migrating_again_changes_nothing_and_makes_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    assert migrate(path) is None
    before = schema(path)
    assert migrate(path) is None and schema(path) == before
    present, newest = revisions(path)
    assert present == newest
