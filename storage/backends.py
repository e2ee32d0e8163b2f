"""Opens a Store: migrates the embedded database after a copy, then starts its writer. Knows every backend."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from storage.blobs.filesystem import FilesystemBlobs
from storage.blobs.medium import sync_directory, sync_file
from storage.database.sqlite import SqliteDatabase, writer_lock
from storage.errors import UnusableDatabase
from storage.migrations.engine import migration_engine
from storage.store import Store

REVISIONS = sorted(path.name.partition("_")[0] for path in Path(__file__).parent.glob("migrations/versions/[0-9]*.py"))
"""What this version knows, the newest last: each migration's file is named for its revision."""


def revisions(database_path: Path) -> tuple[str | None, str]:
    """(the revision of the database, the newest one); None when the database is new.

    UnusableDatabase, also for a revision that this version does not know.
    """
    newest = REVISIONS[-1]
    if not database_path.exists():
        return None, newest
    with naming(database_path):
        engine = migration_engine(database_path)
        try:
            with engine.connect() as connection:
                present = _revision_of(connection)
        finally:
            engine.dispose()
    if present is not None and present not in REVISIONS:
        raise UnusableDatabase(
            f"{database_path} is of revision {present}, which this version does not know, for its newest is {newest}: "
            "start the newer Packhorse that made it, or restore a copy from before")
    return present, newest


def _revision_of(connection: Connection) -> str | None:
    """What Alembic noted in it."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


@contextmanager
def naming(database_path: Path) -> Iterator[None]:
    """What SQLite says of a file that it cannot use, with the file's name: UnusableDatabase."""
    try:
        yield
    except (sqlite3.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise UnusableDatabase(f"{database_path} cannot be used as a database: {cause}") from error


def migrate(database_path: Path) -> Path | None:
    """Bring the database to the newest revision. Gives the copy that was made first, if there was data.

    UnusableDatabase, before anything is copied.
    """
    database_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with writer_lock(database_path), naming(database_path):
        present, newest = revisions(database_path)
        if present == newest:
            return None
        copy = None
        if present is not None:
            copy = _free_name(database_path, newest)
            copy_database(database_path, copy)
        from storage.migrations.upgrading import upgrade  # noqa: PLC0415 - see there

        upgrade(database_path)
        return copy


def _free_name(database_path: Path, newest: str) -> Path:
    """A name for the copy that no copy has: the one from before may be the only good one."""
    plain = f"{database_path.name}.before-{newest}"
    names = (plain if number == 1 else f"{plain}.{number}" for number in count(1))
    return next(path for name in names if not (path := database_path.with_name(name)).exists())


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a database that others may write to meanwhile: one file, 0600, on the medium."""
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)  # what a crash left
    partial.touch(mode=0o600)
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(partial)) as writing:
        reading.backup(writing)
        writing.execute("PRAGMA journal_mode=DELETE")  # whoever opens it as ours returns to the log
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(target)
    sync_directory(target.parent)


@contextmanager
def reading(database_path: Path) -> Iterator[Connection]:
    """One consistent look at a database, beside whoever works on it; nothing is migrated, nothing can be written."""
    engine = create_engine(f"sqlite:///file:{quote(str(database_path))}?mode=ro&uri=true", poolclass=NullPool)
    with naming(database_path):
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()


def open_store(database_path: Path, blobs_path: Path, reserve_bytes: int = 0) -> Store:
    """Open the embedded backends; the database must be migrated. `reserve_bytes`: see FilesystemBlobs."""
    with naming(database_path):
        return Store(SqliteDatabase(database_path), FilesystemBlobs(blobs_path, reserve_bytes))
