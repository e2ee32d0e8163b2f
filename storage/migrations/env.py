"""Runs migrations on one SQLite file; each ends with the triggers made anew from their one list."""

from alembic import context
from sqlalchemy import inspect

from storage.migrations.engine import migration_engine
from storage.tables import metadata
from storage.triggers import create_triggers

engine = migration_engine(context.config.attributes["database_path"])
with engine.connect() as connection:
    # a table that is rebuilt is dropped and renamed for a moment, at which its children must not be asked
    connection.connection.execute("PRAGMA foreign_keys=OFF")
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
        if inspect(connection).has_table("audit"):  # not yet when the first migration is being generated
            create_triggers(connection)
    connection.commit()
    assert not connection.exec_driver_sql("PRAGMA foreign_key_check").all(), "a migration lost a row's parent"
engine.dispose()
