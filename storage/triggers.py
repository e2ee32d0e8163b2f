"""The one list of triggers that keep history as it was (contract §9). Every migration ends by making them anew.

Facts: on SQLite, what OR REPLACE takes away passes DELETE triggers, so BEFORE INSERT and BEFORE UPDATE triggers refuse
whatever would make two rows one: the same primary key, the same rowid, the same values of a UNIQUE index. The number of
a row goes by three names, and also by that of an INTEGER PRIMARY KEY, whose UPDATE OF does not know the three.
Alembic's batch rebuilding of a table drops its triggers in silence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Integer, Table, UniqueConstraint, text
from sqlalchemy.dialects import sqlite

from storage import tables

# Never changed once the row is there. Everything else in the table may move.
IMMUTABLE: dict[Table, frozenset[str]] = {
    tables.session: frozenset({
        "session_id", "site", "file_name", "content_type",
        "checksum_source", "local_file_path", "local_file_uuid", "created_by_id", "device_id", "principal",
        "max_retries", "client_created_at", "created_at", "supersedes",
    }),  # not the priority: an order's raised one raises its waiting sessions (contract §4); not numeric_ids, which
    # tells the form of a visit that becomes known later
    tables.upload: frozenset({
        "upload_id", "site", "session_id", "principal", "upload_metadata", "created_at", "upload_concat",
        "content_encoding",
    }),
    tables.blob: frozenset({"site", "sha256", "size_bytes"}),
    tables.image: frozenset({
        "id", "site", "kind", "sop_class_uid", "sop_instance_uid", "study_instance_uid",
        "series_instance_uid", "transfer_syntax_uid", "blob_sha256", "dataset_sha256", "size_bytes", "door",
        "stored_at", "patient_id", "issuer_of_patient_id", "accession_number",
    }),
    tables.ack: frozenset({"site", "session_id", "device", "server_image_id", "blob_sha256", "acked_at"}),
    tables.signing_key: frozenset({"kid", "public_jwk", "created_at"}),
    tables.image_receipt: frozenset({"image_id", "site", "receipt", "signed_at"}),
    tables.token: frozenset({
        "token_id", "site", "role", "visit_id", "radiology_order_id", "created_by_id", "secret_sha256", "created_at",
        "maker",
    }),
    tables.login_code: frozenset({"code_sha256", "site", "token_id", "expires_at", "maker", "maker_expires_at"}),
    tables.browser: frozenset({"cookie_sha256", "site", "token_id", "expires_at", "maker"}),
}

# May go from NULL to a value, never again.
WRITE_ONCE: dict[Table, frozenset[str]] = {
    tables.session: frozenset({
        "visit_id", "radiology_order_id", "file_size", "checksum_sha256", "metadata", "metadata_uploaded_at",
        "synced_at", "ack_received_at", "server_image_id", "duplicate_of", "receipt",
        "blob_sha256",  # a retry comes to the same: the checksum is written once too
    }),
    tables.upload: frozenset({"length_bytes", "finished_at", "blob_sha256"}),
    tables.image: frozenset({"superseded_by"}),
    tables.token: frozenset({"revoked_at"}),
    tables.login_code: frozenset({"used_at"}),
    tables.browser: frozenset({"ended_at"}),
    tables.quarantine: frozenset({"image_id"}),
}

FOREIGN = "foreign trigger "
APPEND_ONLY = (tables.audit,)
BLOB_OWNERS = ("session", "upload", "image", "arrival", "quarantine")
NEVER_DELETED = (
    tables.session, tables.audit, tables.ack, tables.image, tables.signing_key, tables.image_receipt)

ROWID = ("rowid", "oid", "_rowid_")
"""The names of a row's number (SQLite: Rowids and the Rowid Table)."""


@dataclass(frozen=True, slots=True)
class _Unique:
    """Columns whose values no two rows may share, among those for which `where` holds."""

    columns: tuple[str, ...]
    where: str = ""

    def touched(self, table: Table) -> list[str]:
        """The columns that decide which rows they are."""
        words = set(re.findall(r"\w+", self.where))
        return [column.name for column in table.c if column.name in self.columns or column.name in words]

    def taken(self, table: Table, but: str = "") -> str:
        """The condition on NEW that another row has its values; `but` excludes a row. NULLs are distinct in SQLite."""
        same = [f"{name} = NEW.{name}" for name in self.columns]
        there = " AND ".join([*same, *filter(None, [self.where, but])])
        found = f"EXISTS (SELECT 1 FROM {table.name} WHERE {there})"
        names = "|".join(column.name for column in table.c)
        own = re.sub(rf"\b({names})\b", r"NEW.\1", self.where)
        return f"({own} AND {found})" if own else found


def _uniques(table: Table) -> Iterator[_Unique]:
    """What no two rows of a table may share, the primary key first; the row's number where it is something else."""
    keys = tuple(column.name for column in table.primary_key)
    yield _Unique(keys)
    if not _is_rowid(table):
        yield _Unique(ROWID[:1])
    constraints = [tuple(column.name for column in one.columns) for one in table.constraints
                   if isinstance(one, UniqueConstraint)]
    yield from map(_Unique, sorted(constraints))
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        if index.unique:
            where = index.dialect_options["sqlite"]["where"]
            yield _Unique(tuple(column.name for column in index.columns), str(where) if where is not None else "")


def _is_rowid(table: Table) -> bool:
    """Whether the primary key is the row's number: one column of type INTEGER."""
    columns = list(table.primary_key)
    return len(columns) == 1 and isinstance(columns[0].type.dialect_impl(sqlite.dialect()), Integer)


def _refuse(name: str, when: str, table: Table, condition: str, why: str) -> tuple[str, str]:
    body = f"SELECT RAISE(ABORT, '{why}');"
    guard = f" WHEN {condition}" if condition else ""
    return name, f"CREATE TRIGGER {name} {when} ON {table.name} FOR EACH ROW{guard} BEGIN {body} END"


def sqlite_triggers() -> Iterator[tuple[str, str]]:
    """Every trigger as (name, CREATE TRIGGER statement) in SQLite's dialect."""
    for table in APPEND_ONLY:
        yield _refuse(f"{table.name}_no_update", "BEFORE UPDATE", table, "", f"{table.name} rows never change")
    for table in NEVER_DELETED:
        yield _refuse(f"{table.name}_no_delete", "BEFORE DELETE", table, "", f"{table.name} rows stay")
        taken = " OR ".join(one.taken(table) for one in _uniques(table))
        yield _refuse(f"{table.name}_no_replace", "BEFORE INSERT", table, taken, f"{table.name} rows stay")
        if table not in APPEND_ONLY:
            yield from _no_replace_by_update(table)
    owned = " OR ".join(
        f"EXISTS (SELECT 1 FROM {name} WHERE site = OLD.site AND blob_sha256 = OLD.sha256)" for name in BLOB_OWNERS)
    yield _refuse("blob_owned_no_delete", "BEFORE DELETE", tables.blob, owned, "a blob row stays while it is named")
    for table, columns in IMMUTABLE.items():
        for column in sorted(columns):
            yield _refuse(
                f"{table.name}_{column}_immutable", f"BEFORE UPDATE OF {column}", table,
                f"NEW.{column} IS NOT OLD.{column}", f"{table.name}.{column} never changes",
            )
    for table, columns in WRITE_ONCE.items():
        for column in sorted(columns):
            yield _refuse(
                f"{table.name}_{column}_once", f"BEFORE UPDATE OF {column}", table,
                f"OLD.{column} IS NOT NULL AND NEW.{column} IS NOT OLD.{column}",
                f"{table.name}.{column} is written once",
            )


def _no_replace_by_update(table: Table) -> Iterator[tuple[str, str]]:
    """No row takes the number of another, nor values that are another's alone."""
    yield _refuse(f"{table.name}_no_move", f"BEFORE UPDATE OF {', '.join(ROWID)}", table,
                  "NEW.rowid IS NOT OLD.rowid", f"{table.name} rows stay")
    for one in _uniques(table):
        movable = [name for name in one.touched(table) if name not in IMMUTABLE[table]]
        if movable:
            yield _refuse(f"{table.name}_{one.columns[-1]}_no_replace", f"BEFORE UPDATE OF {', '.join(movable)}", table,
                          one.taken(table, but="rowid IS NOT OLD.rowid"), f"{table.name} rows stay")


def create_triggers(tx: Connection) -> None:
    """Make every trigger of the list anew."""
    for name, statement in sqlite_triggers():
        tx.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        tx.execute(text(statement))


def make_missing(tx: Connection) -> dict[str, str]:
    """Make anew what `missing_triggers` names, and take away what is not ours: each name, and what stood there."""
    missing, listed, present = missing_triggers(tx), dict(sqlite_triggers()), _present(tx)
    for told in missing:
        name = told.removeprefix(FOREIGN)
        tx.exec_driver_sql(f"DROP TRIGGER IF EXISTS {_quoted(name)}")
        if told in listed:
            tx.exec_driver_sql(listed[told])
    return {told: present.get(told.removeprefix(FOREIGN), "") for told in missing}


def missing_triggers(tx: Connection) -> list[str]:
    """The names of triggers that are gone or that differ from the list: somebody opened the lock.

    What is there and not on the list follows as `foreign trigger NAME`: it may keep rows out without a word.
    """
    present, listed = _present(tx), dict(sqlite_triggers())
    missing = [name for name, statement in listed.items() if present.get(name) != statement]
    return missing + [f"{FOREIGN}{name}" for name in sorted(present.keys() - listed.keys())]


def _present(tx: Connection) -> dict[str, str]:
    return {row.name: row.sql for row in tx.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))}


def _quoted(name: str) -> str:
    """A name that somebody else chose, as SQL."""
    return '"' + name.replace('"', '""') + '"'


def said_of(name: str) -> str:
    """What one of `missing_triggers` means, in words."""
    if name.startswith(FOREIGN):
        return f"the trigger {name.removeprefix(FOREIGN)} is not ours"
    return f"the trigger {name} is gone or changed"
