"""By raw SQL: history cannot be changed while the triggers are there, and that they are gone is seen."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Column, Integer, Table, create_engine

from storage.backends import migrate
from storage.triggers import (
    APPEND_ONLY,
    BLOB_OWNERS,
    IMMUTABLE,
    NEVER_DELETED,
    WRITE_ONCE,
    missing_triggers,
    said_of,
    sqlite_triggers,
)

GUARDED = sorted({*APPEND_ONLY, *NEVER_DELETED, *IMMUTABLE, *WRITE_ONCE}, key=lambda table: table.name)


def columns(guarded: dict[Table, frozenset[str]]) -> list[tuple[str, str]]:
    return sorted((table.name, name) for table, names in guarded.items() for name in names)


def value(column: Column[Any], number: int) -> Any:
    """Something that the column takes, another one for each number."""
    if isinstance(column.type, Boolean):
        return number % 2
    return number if isinstance(column.type, Integer | BigInteger) else str(number)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is copied, for migrating takes longer than every test here."""
    path = tmp_path_factory.mktemp("migrated") / "p.db"
    migrate(path)
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("PRAGMA journal_mode=DELETE")
    return path


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "p.db"))


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """One row in each guarded table, with NULL in what is written once."""
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        for table in GUARDED:
            put(opened, "INSERT", table, row(table, 1))
        yield opened


def row(table: Table, number: int) -> dict[str, Any]:
    once = WRITE_ONCE.get(table, frozenset())
    return {column.name: value(column, number) for column in table.c if column.name not in once}


def put(database: sqlite3.Connection, verb: str, table: Table, values: dict[str, Any]) -> None:
    places = ", ".join("?" * len(values))
    database.execute(f"{verb} INTO {table.name} ({', '.join(values)}) VALUES ({places})", list(values.values()))


def column_of(table: str, name: str) -> Column[Any]:
    return next(one for one in GUARDED if one.name == table).c[name]


@pytest.mark.parametrize(("table", "name"), columns(IMMUTABLE))
def test_an_immutable_column_never_changes(database: sqlite3.Connection, table: str, name: str) -> None:
    column = column_of(table, name)
    for other in (value(column, 2), *(() if column.primary_key else (None,))):  # SQLite itself refuses that one
        with pytest.raises(sqlite3.IntegrityError, match="never changes"):
            database.execute(f"UPDATE {table} SET {name} = ?", (other,))


@pytest.mark.parametrize(("table", "name"), columns(WRITE_ONCE))
def test_a_column_that_is_written_once_is_written_once(database: sqlite3.Connection, table: str, name: str) -> None:
    column = column_of(table, name)
    database.execute(f"UPDATE {table} SET {name} = ?", (value(column, 1),))
    database.execute(f"UPDATE {table} SET {name} = ?", (value(column, 1),))
    for other in (value(column, 2), None):
        with pytest.raises(sqlite3.IntegrityError, match="written once"):
            database.execute(f"UPDATE {table} SET {name} = ?", (other,))


@pytest.mark.parametrize("column", [column.name for table in APPEND_ONLY for column in table.c])
def test_no_column_of_an_audit_row_changes(database: sqlite3.Connection, column: str) -> None:
    for statement in ("UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"):
        with pytest.raises(sqlite3.IntegrityError, match="never change"):
            database.execute(f"{statement} audit SET {column} = {column}")


@pytest.mark.parametrize("table", [table.name for table in NEVER_DELETED])
def test_what_stays_is_neither_deleted_nor_replaced(database: sqlite3.Connection, table: str) -> None:
    for statement in (
        f"DELETE FROM {table}", f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        f"REPLACE INTO {table} SELECT * FROM {table}", f"INSERT OR IGNORE INTO {table} SELECT * FROM {table}",
        f"INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT DO NOTHING",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="stay"):
            database.execute(statement)
    assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)


ROWID = ("rowid", "oid", "_rowid_", "RowID")


def unique_in(database: sqlite3.Connection, table: Table) -> list[list[str]]:
    """What SQLite itself holds to be unique in a table, and would take rows away for."""
    indexes = [found[1] for found in database.execute(f"PRAGMA index_list({table.name})") if found[2]]
    by_index = [[found[2] for found in database.execute(f"PRAGMA index_info({name})")] for name in indexes]
    return [*by_index, [column.name for column in table.primary_key]]


@pytest.mark.parametrize("table", NEVER_DELETED, ids=lambda table: table.name)
def test_no_new_row_replaces_one_by_any_key_that_it_has(database: sqlite3.Connection, table: Table) -> None:
    first, other = row(table, 1), row(table, 3)
    before = database.execute(f"SELECT rowid, * FROM {table.name}").fetchall()
    new = [{**other, **{name: first[name] for name in names}} for names in unique_in(database, table)]
    new += [{name: 1, **other} for name in ROWID if len(table.primary_key) > 1 or not is_number(table)]
    for values in new:
        for verb in ("INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT"):
            with pytest.raises(sqlite3.IntegrityError, match="stay"):
                put(database, verb, table, values)
    assert database.execute(f"SELECT rowid, * FROM {table.name}").fetchall() == before
    put(database, "INSERT", table, other)


@pytest.mark.parametrize("table", NEVER_DELETED, ids=lambda table: table.name)
def test_no_row_takes_the_place_of_another_by_an_update(database: sqlite3.Connection, table: Table) -> None:
    first, second = row(table, 1), row(table, 2)
    put(database, "INSERT", table, second)
    before = database.execute(f"SELECT rowid, * FROM {table.name} ORDER BY rowid").fetchall()
    sets = [{name: first[name] for name in names} for names in unique_in(database, table)]
    sets += [{name: number} for name in ROWID for number in (1, 7)]
    for values in sets:
        words, number = ", ".join(f"{name} = ?" for name in values), before[-1][0]
        for verb in ("UPDATE OR REPLACE", "UPDATE OR IGNORE", "UPDATE"):
            with pytest.raises(sqlite3.IntegrityError, match=r"stay|never change"):
                database.execute(f"{verb} {table.name} SET {words} WHERE rowid = ?", [*values.values(), number])
    assert database.execute(f"SELECT rowid, * FROM {table.name} ORDER BY rowid").fetchall() == before


def is_number(table: Table) -> bool:
    return all(isinstance(column.type, Integer | BigInteger) for column in table.primary_key)


def test_what_no_key_forbids_is_still_inserted(database: sqlite3.Connection) -> None:
    session, image = (next(one for one in GUARDED if one.name == name) for name in ("session", "image"))
    for number in (2, 3):
        put(database, "INSERT", session, {**row(session, number), "dedup_key": None})
    put(database, "INSERT", image, {**row(image, 2), "sop_instance_uid": "1", "superseded_by": 1})
    for number in (3, 4):
        put(database, "INSERT", image, {**row(image, number), "sop_instance_uid": None})


@pytest.mark.parametrize("name", [name for name, _ in sqlite_triggers()])
def test_a_trigger_that_is_dropped_or_emptied_is_named(path: Path, name: str) -> None:
    with closing(sqlite3.connect(path)) as opened:
        table = opened.execute("SELECT tbl_name FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0]
        opened.execute(f"DROP TRIGGER {name}")
        opened.execute(f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} BEGIN SELECT 1; END")
        opened.commit()
        assert missing(path) == [name], "one of that name that does nothing"
        opened.execute(f"DROP TRIGGER {name}")
        opened.commit()
    assert missing(path) == [name]


def test_a_trigger_that_is_not_ours_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    migrate(path)
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("CREATE TRIGGER x BEFORE INSERT ON audit BEGIN SELECT RAISE(IGNORE); END")
        opened.execute("DROP TRIGGER audit_no_update")
    assert missing(path) == ["audit_no_update", "foreign trigger x"]
    assert [said_of(name) for name in missing(path)] == [
        "the trigger audit_no_update is gone or changed", "the trigger x is not ours"]


def missing(path: Path) -> list[str]:
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            return missing_triggers(connection)
    finally:
        engine.dispose()


@pytest.mark.parametrize("owner", ["session", "upload", "image", "arrival", "quarantine"])
def test_the_row_of_a_blob_that_is_named_stays(database: sqlite3.Connection, owner: str) -> None:
    for table in BLOB_OWNERS:
        database.execute(f"DROP TRIGGER IF EXISTS {table}_no_delete")
        if table != owner:
            database.execute(f"DELETE FROM {table}")
    if database.execute(f"SELECT count(*) FROM {owner}").fetchone() == (0,):  # the table is not guarded
        database.execute(f"INSERT INTO {owner} (site, door, outcome, arrived_at) VALUES ('1', '', '', '')")
    database.execute(f"UPDATE {owner} SET blob_sha256 = '1' WHERE blob_sha256 IS NULL")
    with pytest.raises(sqlite3.IntegrityError, match="stays while it is named"):
        database.execute("DELETE FROM blob")
    database.execute(f"DELETE FROM {owner}")
    assert database.execute("DELETE FROM blob").rowcount == 1
