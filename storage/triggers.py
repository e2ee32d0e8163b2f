"""The one list of triggers that keep history as it was (contract §9). Every migration ends by making them anew.

Facts: on SQLite, INSERT OR REPLACE passes UPDATE and DELETE triggers, so a BEFORE INSERT trigger refuses
existing keys; Alembic's batch rebuilding of a table drops its triggers in silence.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, Table, text

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
        "series_instance_uid", "blob_sha256", "dataset_sha256", "size_bytes", "door", "stored_at",
        "patient_id", "issuer_of_patient_id", "accession_number",
    }),
    tables.ack: frozenset({"site", "session_id", "device", "server_image_id", "blob_sha256", "acked_at"}),
    tables.signing_key: frozenset({"kid", "public_jwk", "created_at"}),
    tables.image_receipt: frozenset({"image_id", "site", "receipt", "signed_at"}),
    tables.token: frozenset({
        "token_id", "site", "role", "visit_id", "radiology_order_id", "created_by_id", "secret_sha256", "created_at",
        "maker",
    }),
    tables.login_code: frozenset({"code_sha256", "site", "token_id", "expires_at"}),
    tables.browser: frozenset({"cookie_sha256", "site", "token_id", "expires_at"}),
}

# May go from NULL to a value, never again.
WRITE_ONCE: dict[Table, frozenset[str]] = {
    tables.session: frozenset({
        "visit_id", "radiology_order_id", "file_size", "checksum_sha256", "metadata", "metadata_uploaded_at",
        "synced_at", "ack_received_at", "server_image_id", "duplicate_of", "receipt",
    }),
    tables.upload: frozenset({"length_bytes", "finished_at", "blob_sha256"}),
    tables.image: frozenset({"superseded_by"}),
    tables.token: frozenset({"revoked_at"}),
    tables.login_code: frozenset({"used_at"}),
    tables.browser: frozenset({"ended_at"}),
    tables.quarantine: frozenset({"image_id"}),
}

APPEND_ONLY = (tables.audit,)
NEVER_DELETED = (
    tables.session, tables.audit, tables.ack, tables.image, tables.signing_key, tables.image_receipt)


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
        same = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
        exists = f"EXISTS (SELECT 1 FROM {table.name} WHERE {same})"
        yield _refuse(f"{table.name}_no_replace", "BEFORE INSERT", table, exists, f"{table.name} rows stay")
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


def create_triggers(tx: Connection) -> None:
    """Make every trigger of the list anew."""
    for name, statement in sqlite_triggers():
        tx.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        tx.execute(text(statement))


def missing_triggers(tx: Connection) -> list[str]:
    """The names of triggers that are gone or that differ from the list: somebody opened the lock."""
    present = {row.name: row.sql for row in tx.execute(
        text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))}
    return [name for name, statement in sqlite_triggers() if present.get(name) != statement]
