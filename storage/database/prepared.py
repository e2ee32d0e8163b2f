"""Statements that are built and compiled once, for the paths that every upload takes. Knows no table.

Fact: building, caching and executing a Core statement costs about 150 µs, of which SQLite's work is 5 µs; a compiled
one on the driver's connection costs about 10 µs. On any other database the statement runs as SQLAlchemy runs it.
"""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Insert, Select, Update
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Dialect

from storage.errors import NoSpace, Refused, StorageIO

Encoder = Callable[[Any], Any]  # whatever a column's type takes and gives


def sqlite_failure(error: sqlite3.Error) -> Exception:
    """SQLite's errors in the storage's words; anything else as it is."""
    if isinstance(error, sqlite3.IntegrityError):
        return Refused(str(error))
    if isinstance(error, sqlite3.OperationalError):
        return NoSpace(str(error)) if "full" in str(error) else StorageIO(str(error))
    return error


class _Compiled:
    """A statement for SQLite: its text with named placeholders, and how values go in and rows come out."""

    def __init__(self, statement: "Select[Any] | Insert | Update", names: tuple[str, ...], dialect: Dialect) -> None:
        columns = list(names) if names else None
        # named, so that the driver takes the values as they are given, in no order
        compiled = statement.compile(dialect=SQLiteDialect_pysqlite(paramstyle="named"), column_keys=columns)
        self.text = str(compiled)
        self.constants = {name: value for name, value in compiled.params.items() if value is not None}
        binds = compiled.binds.items()
        self.encoders = [(name, encoder) for name, bind in binds if (encoder := _encoder(bind, dialect))]
        selected = list(statement.selected_columns) if isinstance(statement, Select) else []
        decoders = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in selected]
        self.decoders = [(place, decoder) for place, decoder in enumerate(decoders) if decoder is not None]

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:  # a column's values
        """`values` as the driver takes them; the dictionary is the caller's to give away."""
        for name, encoder in self.encoders:
            values[name] = encoder(values[name])
        return {**self.constants, **values} if self.constants else values

    def decoded(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row with its columns' types."""
        if not self.decoders:
            return row
        values = list(row)
        for place, decoder in self.decoders:
            values[place] = decoder(values[place])
        return tuple(values)


def _encoder(bind: Any, dialect: Dialect) -> Encoder | None:  # a BindParameter of any type
    found: Encoder | None = bind.type.dialect_impl(dialect).bind_processor(dialect)
    return found


class Prepared:
    """One statement; placeholders are `bindparam(name)`, or the columns `names` of an insert."""

    def __init__(self, statement: "Select[Any] | Insert | Update", names: tuple[str, ...] = ()) -> None:
        self._statement = statement
        self._names = names
        self._compiled: _Compiled | None = None
        self._texts: dict[int, str] = {}

    def _cursor(self, tx: Connection, values: dict[str, Any]) -> tuple[_Compiled, sqlite3.Cursor]:
        compiled = self._compiled
        if compiled is None:
            compiled = self._compiled = _Compiled(self._statement, self._names, tx.dialect)
        driver = tx.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection), "the one dialect that is prepared"
        try:
            return compiled, driver.execute(compiled.text, compiled.arguments(values))
        except sqlite3.Error as error:
            raise sqlite_failure(error) from error

    def rows(self, tx: Connection, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a select."""
        if tx.dialect.name != "sqlite":
            return [tuple(row) for row in tx.execute(self._statement, values)]
        compiled, cursor = self._cursor(tx, values)
        return [compiled.decoded(row) for row in cursor.fetchall()]

    def each(self, tx: Connection, **values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a select, one after another, as the driver gives them: for more rows than fit into memory."""
        if tx.dialect.name != "sqlite":
            return (tuple(row) for row in tx.execute(self._statement, values))
        compiled, cursor = self._cursor(tx, values)
        return map(compiled.decoded, cursor) if compiled.decoders else cursor

    def first(self, tx: Connection, **values: Any) -> tuple[Any, ...] | None:
        """The first row of a select."""
        if tx.dialect.name != "sqlite":
            return next(iter(self.rows(tx, **values)), None)
        compiled, cursor = self._cursor(tx, values)
        row = cursor.fetchone()
        if row is None:
            return None
        cursor.close()  # a statement that is not at its end would hold its snapshot
        return compiled.decoded(row)

    def run(self, tx: Connection, **values: Any) -> int:
        """Execute an insert or update: how many rows changed."""
        if tx.dialect.name != "sqlite":
            return tx.execute(self._statement, values).rowcount
        return self._cursor(tx, values)[1].rowcount

    def insert(self, tx: Connection, **values: Any) -> int:
        """Execute an insert into a table whose primary key counts by itself: the new key."""
        if tx.dialect.name != "sqlite":
            key = tx.execute(self._statement, values).inserted_primary_key
            return int(key[0]) if key else 0
        return int(self._cursor(tx, values)[1].lastrowid or 0)


    def insert_all(self, tx: Connection, rows: list[dict[str, Any]]) -> int:
        """Execute an insert that names every column for many rows, as one statement: how many are there now."""
        if tx.dialect.name != "sqlite":
            return tx.execute(self._statement, rows).rowcount
        text = self._texts.get(len(rows))
        if text is None:
            assert isinstance(self._statement, Insert), "only inserts take many rows"
            columns, places = ", ".join(self._names), f"({', '.join('?' * len(self._names))})"
            text = f"INSERT INTO {self._statement.table.name} ({columns}) VALUES {', '.join([places] * len(rows))}"
            self._texts[len(rows)] = text
        driver = tx.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection), "the one dialect that is prepared"
        try:
            return driver.execute(text, [row[name] for row in rows for name in self._names]).rowcount
        except sqlite3.Error as error:
            raise sqlite_failure(error) from error


def inserting(table: Any, without: tuple[str, ...] = ()) -> Prepared:  # a Table of any columns
    """An insert that names every column of `table` but `without`."""
    names = tuple(column.name for column in table.c if column.name not in without)
    return Prepared(table.insert(), names)
