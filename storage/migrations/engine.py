"""The engine that migrations run on, which also tells a database's revision. The server's writer has none of it."""

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event

from storage.database.sqlite import DURABLE, LOCK_WAIT_S


def migration_engine(path: Path) -> Engine:
    """An engine whose connections write durably, and whose transactions take SQLite's write lock as they begin."""
    engine = create_engine(f"sqlite:///{path}", hide_parameters=True,
                           connect_args={"timeout": LOCK_WAIT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def durable(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # pysqlite would begin and commit on its own
        for pragma in DURABLE:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def immediately(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
