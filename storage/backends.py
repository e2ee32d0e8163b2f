"""Opens a Store: migrates the embedded database after a copy, then starts its writer. Knows every backend."""

import shutil
import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from storage.blobs.filesystem import FilesystemBlobs
from storage.database.sqlite import SqliteDatabase, writer_engine, writer_lock
from storage.store import Store


def _alembic(database_path: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["database_path"] = database_path
    return config


def revisions(database_path: Path) -> tuple[str | None, str]:
    """(the revision of the database, the newest one); None when the database is new."""
    newest = ScriptDirectory.from_config(_alembic(database_path)).get_current_head()
    assert newest is not None, "there is at least one migration"
    if not database_path.exists():
        return None, newest
    engine = writer_engine(database_path)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision(), newest
    finally:
        engine.dispose()


def migrate(database_path: Path) -> Path | None:
    """Bring the database to the newest revision. Gives the copy that was made first, if there was data."""
    database_path.parent.mkdir(parents=True, exist_ok=True)
    with writer_lock(database_path):
        present, newest = revisions(database_path)
        if present == newest:
            return None
        copy = None
        if present is not None:
            copy = database_path.with_name(f"{database_path.name}.before-{newest}")
            _copy(database_path, copy)
        command.upgrade(_alembic(database_path), "head")
        return copy


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    with sqlite3.connect(source) as reading, sqlite3.connect(partial) as writing:
        reading.backup(writing)
    reading.close()
    writing.close()
    shutil.move(partial, target)


def open_store(database_path: Path, blobs_path: Path, reserve_bytes: int = 0) -> Store:
    """Open the embedded backends; the database must be migrated. `reserve_bytes`: see FilesystemBlobs."""
    return Store(SqliteDatabase(database_path), FilesystemBlobs(blobs_path, reserve_bytes))
