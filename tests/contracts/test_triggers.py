"""By raw SQL: history cannot be changed while the triggers are there, and that they are gone is seen."""

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


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """One row in each guarded table, with NULL in what is written once."""
    migrate(tmp_path / "p.db")
    with closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as opened:
        for table in GUARDED:
            once = WRITE_ONCE.get(table, frozenset())
            row = {column.name: value(column, 1) for column in table.c if column.name not in once}
            places = ", ".join("?" * len(row))
            opened.execute(f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({places})", list(row.values()))
        yield opened


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


@pytest.mark.parametrize("name", [name for name, _ in sqlite_triggers()])
def test_a_trigger_that_is_dropped_or_emptied_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.db"
    migrate(path)
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
