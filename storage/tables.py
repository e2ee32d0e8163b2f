"""The tables (SQLAlchemy Core). Migrations make them; triggers.py guards them. Every row names its site."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts only INTEGER PRIMARY KEY by itself; AUTOINCREMENT never gives an id twice (contract §1).
_ID = BigInteger().with_variant(Integer, "sqlite")


def _site() -> Column[str]:
    return Column("site", String(64), nullable=False)


def _time(name: str, nullable: bool = True) -> Column[str]:
    return Column(name, String(24), nullable=nullable)


session = Table(
    "session", metadata,
    Column("session_id", String(36), primary_key=True),
    _site(),
    Column("visit_id", String(64)),
    Column("radiology_order_id", String(64)),
    Column("status", String(20), nullable=False),
    Column("priority", String(8), nullable=False),
    Column("file_name", Text, nullable=False),
    Column("file_size", BigInteger),
    Column("content_type", String(255)),
    Column("checksum_sha256", String(64)),
    Column("checksum_source", String(8), nullable=False),
    Column("local_file_path", Text),
    Column("local_file_uuid", String(64)),
    Column("created_by_id", String(64)),
    Column("device_id", String(64)),
    Column("principal", String(64), nullable=False),
    Column("numeric_ids", Text, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("retry_count", Integer, nullable=False),
    Column("error_code", String(32)),
    Column("error_message", Text),
    Column("metadata", JSON(none_as_null=True)),
    Column("client_created_at", String(40)),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    _time("metadata_uploaded_at"),
    _time("binary_uploaded_at"),
    _time("synced_at"),
    _time("ack_received_at"),
    Column("server_image_id", _ID),
    Column("blob_sha256", String(64)),
    Column("duplicate_of", String(36)),
    Column("supersedes", String(36)),
    Column("dedup_key", Text, unique=True),
    Column("receipt", Text),
    Column("seq", BigInteger, nullable=False),
    Index("ix_session_site_order", "site", "radiology_order_id"),
    Index("ix_session_site_status", "site", "status"),
    Index("ix_session_seq", "seq"),
    Index("ix_session_blob", "site", "blob_sha256"),
)

session_alias = Table(
    "session_alias", metadata,
    Column("alias_id", String(36), primary_key=True),
    _site(),
    Column("session_id", String(36), nullable=False),
    ForeignKeyConstraint(["session_id"], ["session.session_id"]),
)

session_member = Table(
    "session_member", metadata,
    Column("session_id", String(36), primary_key=True),
    Column("principal", String(64), primary_key=True),
    _site(),
    ForeignKeyConstraint(["session_id"], ["session.session_id"]),
)

upload = Table(
    "upload", metadata,
    Column("upload_id", String(36), primary_key=True),
    _site(),
    Column("session_id", String(36)),
    Column("principal", String(64), nullable=False),
    Column("length_bytes", BigInteger),
    Column("offset_bytes", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("gone_reason", String(32)),
    Column("boot_id", String(64), nullable=False),
    Column("upload_metadata", Text, nullable=False),
    Column("upload_concat", Text),
    Column("content_encoding", String(8)),
    Column("repr_digest", Text),
    Column("awaits_end", Boolean, nullable=False, server_default=false()),
    Column("audited_bytes", BigInteger, nullable=False, server_default=text("0")),
    _time("created_at", nullable=False),
    _time("expires_at", nullable=False),
    _time("finished_at"),
    Column("blob_sha256", String(64)),
    ForeignKeyConstraint(["session_id"], ["session.session_id"]),
    Index("ix_upload_state_expires", "state", "expires_at"),
    # holds what open_count adds up, which each creation asks: with 10,000 open uploads ten times as fast
    # whether an upload names a blob is asked before its bytes are freed
    Index("ix_upload_blob", "site", "blob_sha256", sqlite_where=text("blob_sha256 IS NOT NULL"),
          postgresql_where=text("blob_sha256 IS NOT NULL")),
    Index("ix_upload_principal", "principal", "state", "length_bytes", "offset_bytes"),
    # a session has at most one live upload (contract §1)
    Index("uq_upload_live", "session_id", unique=True,
          sqlite_where=text("state != 'gone'"), postgresql_where=text("state != 'gone'")),
)

upload_part = Table(
    "upload_part", metadata,
    Column("final_id", String(36), primary_key=True),
    Column("position", Integer, primary_key=True),
    _site(),
    Column("part_id", String(36), nullable=False),
    ForeignKeyConstraint(["final_id"], ["upload.upload_id"]),
    ForeignKeyConstraint(["part_id"], ["upload.upload_id"]),
    Index("ix_upload_part_part", "part_id"),
)

clock = Table(
    "clock", metadata,
    Column("name", String(16), primary_key=True),
    _site(),
    _time("believed_at", nullable=False),
)

blob = Table(
    "blob", metadata,
    Column("site", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    _time("sealed_at", nullable=False),
    _time("verified_at"),
    Column("alarm", Text),
    _time("read_at"),
    _time("alarm_at"),
    Column("read_moment", String(64)),
    Column("verified_moment", String(64)),
    Index("ix_blob_alarm", "alarm_at", sqlite_where=text("alarm IS NOT NULL"),
          postgresql_where=text("alarm IS NOT NULL")),
)

readback_wait = Table(
    "readback_wait", metadata,
    Column("asker", String(160), primary_key=True),
    _site(),
    Column("sha256", String(64), primary_key=True),
    _time("asked_at", nullable=False),
    Column("asked_moment", String(64)),
)

study = Table(
    "study", metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("study_instance_uid", String(64), nullable=False),
    Column("attributes", JSON, nullable=False),
    _time("created_at", nullable=False),
    UniqueConstraint("site", "study_instance_uid"),
    sqlite_autoincrement=True,
)

series = Table(
    "series", metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("study_id", _ID, nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("attributes", JSON, nullable=False),
    _time("created_at", nullable=False),
    ForeignKeyConstraint(["study_id"], ["study.id"]),
    UniqueConstraint("study_id", "series_instance_uid"),
    sqlite_autoincrement=True,
)

image = Table(
    "image", metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("kind", String(12), nullable=False),
    Column("series_id", _ID),
    Column("sop_class_uid", String(64)),
    Column("sop_instance_uid", String(64)),
    Column("study_instance_uid", String(64)),
    Column("series_instance_uid", String(64)),
    Column("transfer_syntax_uid", String(64)),
    Column("blob_sha256", String(64), nullable=False),
    Column("dataset_sha256", String(64)),
    Column("size_bytes", BigInteger, nullable=False),
    Column("instance_number", String(16)),
    Column("number_of_frames", Integer),
    Column("file_name", Text),
    Column("content_type", String(255)),
    Column("flags", Text, nullable=False),
    Column("door", String(8), nullable=False),
    _time("stored_at", nullable=False),
    Column("superseded_by", _ID),
    Column("patient_id", Text),
    Column("issuer_of_patient_id", Text),
    Column("accession_number", Text),
    Column("rejection_code", String(16)),
    _time("rejected_at"),
    ForeignKeyConstraint(["series_id"], ["series.id"]),
    # at most one image per SOP Instance UID is not superseded (contract §6)
    Index("uq_image_live", "site", "sop_instance_uid", unique=True,
          sqlite_where=text("superseded_by IS NULL AND sop_instance_uid IS NOT NULL"),
          postgresql_where=text("superseded_by IS NULL AND sop_instance_uid IS NOT NULL")),
    Index("ix_image_study", "site", "study_instance_uid"),
    Index("ix_image_blob", "site", "blob_sha256"),
    Index("ix_image_accession", "site", "accession_number"),
    sqlite_autoincrement=True,
)

image_receipt = Table(
    "image_receipt", metadata,
    Column("image_id", _ID, primary_key=True, autoincrement=False),
    _site(),
    Column("receipt", Text, nullable=False),
    _time("signed_at", nullable=False),
    ForeignKeyConstraint(["image_id"], ["image.id"]),
)

image_order = Table(
    "image_order", metadata,
    _site(),
    Column("image_id", _ID, primary_key=True),
    Column("radiology_order_id", String(64), primary_key=True),
    Column("linked_by", String(16), nullable=False),
    _time("linked_at", nullable=False),
    _time("undone_at"),
    ForeignKeyConstraint(["image_id"], ["image.id"]),
    Index("ix_image_order_order", "site", "radiology_order_id"),
)

imaging_order = Table(
    "imaging_order", metadata,
    Column("site", String(64), primary_key=True),
    Column("radiology_order_id", String(64), primary_key=True),
    Column("visit_id", String(64)),
    Column("accession_number", String(64)),
    Column("verified", Boolean, nullable=False),
    Column("attributes", JSON, nullable=False),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    Column("numeric_ids", Text, nullable=False, server_default=""),
    Index("ix_imaging_order_accession", "site", "accession_number"),
)

arrival = Table(
    "arrival", metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("door", String(8), nullable=False),
    Column("calling", String(64)),
    Column("called", String(64)),
    Column("peer", String(64)),
    Column("sop_instance_uid", String(64)),
    Column("blob_sha256", String(64)),
    Column("dataset_sha256", String(64)),
    Column("image_id", _ID),
    Column("outcome", String(32), nullable=False),
    _time("arrived_at", nullable=False),
    Index("ix_arrival_blob", "site", "blob_sha256"),
    sqlite_autoincrement=True,
)

quarantine = Table(
    "quarantine", metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("blob_sha256", String(64), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("sop_instance_uid", String(64)),
    Column("conflicts_with", _ID),
    Column("session_id", String(36)),
    Column("radiology_order_id", String(64)),
    Column("door", String(8), nullable=False, server_default="tus"),
    Column("state", String(12), nullable=False),
    Column("image_id", _ID),
    _time("created_at", nullable=False),
    _time("decided_at"),
    Index("ix_quarantine_blob", "site", "blob_sha256"),
    sqlite_autoincrement=True,
)

job = Table(
    "job", metadata,
    Column("job_id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("kind", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("state", String(8), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    _time("run_after", nullable=False),
    _time("lease_until"),
    Column("last_error", Text),
    UniqueConstraint("kind", "subject"),
    Index("ix_job_due", "state", "run_after"),
    sqlite_autoincrement=True,
)

delivery = Table(
    "delivery", metadata,
    Column("delivery_id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("image_id", _ID, nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(10), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_status", String(8)),
    Column("last_error", Text),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    _time("delivered_at"),
    ForeignKeyConstraint(["image_id"], ["image.id"]),
    UniqueConstraint("image_id", "destination"),
    sqlite_autoincrement=True,
)

audit = Table(
    "audit", metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    _site(),
    _time("at", nullable=False),
    Column("action", String(40), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("subject", String(80)),
    Column("peer", String(64)),
    Column("outcome", String(40), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("row_hash", String(64), nullable=False),
    Index("ix_audit_subject", "subject", "seq"),
)

ack = Table(
    "ack", metadata,
    _site(),
    Column("session_id", String(36), primary_key=True),
    Column("device", String(80), primary_key=True),
    Column("server_image_id", _ID, nullable=False),
    Column("blob_sha256", String(64), nullable=False),
    _time("acked_at", nullable=False),
    ForeignKeyConstraint(["session_id"], ["session.session_id"]),
)

token = Table(
    "token", metadata,
    Column("token_id", String(32), primary_key=True),
    _site(),
    Column("role", String(10), nullable=False),
    Column("visit_id", String(64)),
    Column("secret_sha256", String(64), nullable=False),
    _time("created_at", nullable=False),
    _time("expires_at"),
    _time("revoked_at"),
    Column("label", String(80)),
    Column("radiology_order_id", String(64)),
    Column("created_by_id", String(64)),
    Column("numeric_ids", Text, nullable=False, server_default=""),
    Column("maker", String(64)),
    _time("last_used_at"),
    Index("ix_token_maker", "maker"),
)

login_code = Table(
    "login_code", metadata,
    Column("code_sha256", String(64), primary_key=True),
    _site(),
    Column("token_id", String(32), nullable=False),
    _time("created_at", nullable=False),
    _time("expires_at", nullable=False),
    _time("used_at"),
    Column("maker", String(64)),
    _time("maker_expires_at"),
)

browser = Table(
    "browser", metadata,
    Column("cookie_sha256", String(64), primary_key=True),
    _site(),
    Column("token_id", String(32), nullable=False),
    _time("created_at", nullable=False),
    _time("expires_at", nullable=False),
    _time("ended_at"),
    Column("maker", String(64)),
)

signing_key = Table(
    "signing_key", metadata,
    Column("kid", String(64), primary_key=True),
    _site(),
    Column("public_jwk", JSON, nullable=False),
    _time("created_at", nullable=False),
)

chain_cursor = Table(
    "chain_cursor", metadata,
    Column("name", String(16), primary_key=True),
    _site(),
    Column("seq", BigInteger, nullable=False),
)

study_watch = Table(
    "study_watch", metadata,
    Column("site", String(64), primary_key=True),
    Column("study_instance_uid", String(64), primary_key=True),
    _time("last_image_at", nullable=False),
    Column("told", Boolean, nullable=False),
    Index("ix_study_watch_told", "told", "last_image_at"),
)

webhook_delivery = Table(
    "webhook_delivery", metadata,
    Column("delivery_id", _ID, primary_key=True, autoincrement=True),
    _site(),
    Column("webhook", Text, nullable=False),
    Column("event_id", String(64), nullable=False),
    Column("event", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(10), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_status", Integer),
    Column("last_error", Text),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    _time("delivered_at"),
    UniqueConstraint("webhook", "event_id"),
    Index("ix_webhook_delivery_state", "site", "state"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency", metadata,
    Column("principal", String(64), primary_key=True),
    Column("route", String(160), primary_key=True),
    Column("key", String(128), primary_key=True),
    _site(),
    Column("request_sha256", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("answer", JSON, nullable=False),
    _time("created_at", nullable=False),
    Index("ix_idempotency_created", "created_at"),
)
