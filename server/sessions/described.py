"""The session calls as `/openapi.json` tells them: their shapes and refusals (contract §4)."""

from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.describing import UNREADABLE, Answer, Described, Parameter, answered, cached_answer
from server.errors import SESSION_FAILURES
from server.sessions import schema
from storage.records import Status

AnyId = int | str
LIMIT = {"type": "integer", "minimum": 1, "maximum": 500}


class Session(TypedDict):
    """A session (contract §4); times are RFC 3339, UTC; sizes in bytes."""

    session_id: str
    visit_id: AnyId | None
    radiology_order_id: AnyId | None
    status: Status
    status_text: str
    priority: schema.Priority
    file_name: str
    file_size: int | None
    content_type: str | None
    checksum_sha256: str | None
    checksum_source: Literal["client", "server"]
    bytes_received: int
    retry_count: int
    max_retries: int
    error_code: str | None
    error_message: str | None
    metadata: dict[str, Any]
    device_id: AnyId | None
    created_by_id: AnyId | None
    created_at: str
    updated_at: str
    metadata_uploaded_at: str | None
    binary_uploaded_at: str | None
    synced_at: str | None
    ack_received_at: str | None
    server_image_id: int | None
    images: list[dict[str, Any]]
    safe_to_delete_local: bool
    duplicate: bool
    duplicate_of: str | None
    supersedes: str | None
    seq: int
    links: dict[str, str]


class Replayed(Session):
    """A session, and whether the same had been asked before."""

    replayed: bool


class Acknowledged(Replayed):
    """The one answer that permits deletion, where it says `safe_to_delete_local`; the receipt is a JWS."""

    receipt: str | None


class SessionList(TypedDict):
    """A page of sessions."""

    results: list[Session]
    next_cursor: str | None


class BatchResults(TypedDict):
    """One result an item: a status with the session, or with a problem."""

    results: list[dict[str, Any]]


class UploadHandedOut(TypedDict):
    """Where the bytes go, and from which offset on."""

    session_id: str
    status: Status
    upload_url: str
    upload_offset: int
    upload_length: int | None
    chunk_size: int
    protocols: list[str]
    upload_expires: str


class Resume(TypedDict):
    """What comes next after a retry."""

    next: Literal["upload_metadata", "upload_binary"]
    upload_offset: int
    progress_preserved: bool


class Retried(TypedDict):
    """A session that begins again."""

    session_id: str
    status: Status
    retry_count: int
    retries_left: int
    resume: Resume


class History(TypedDict):
    """Audit rows, in order."""

    results: list[dict[str, Any]]


class Receipt(TypedDict):
    """A JWS, and where the keys are that verify it."""

    receipt: str
    jwks: str


KEY = Parameter("Idempotency-Key", "Repeats with the same key are answered as the first was, for 24 hours",
                {"type": "string", "maxLength": 128}, place="header")
DEVICE = Parameter("device_id", "Whether this device may delete")
FILTERS = (
    Parameter("radiology_order_id", "Of this order"), Parameter("device_id", "Of this device"),
    Parameter("updated_after", "Changed since, RFC 3339 with its offset", {"type": "string", "format": "date-time"}),
    Parameter("limit", "At most so many", LIMIT),
    Parameter("cursor", "The page after, as `next_cursor` said"))
MOVES = ("not_found", "invalid_transition", "invalid_header", "gone", *SESSION_FAILURES)
CREATION = ("session_conflict", "order_visit_mismatch", "checksum_required", "file_too_large", "insufficient_storage",
            "too_many_uploads", "idempotency_key_reused", "invalid_header", "not_found", "invalid_transition")

DESCRIBED = {
    "create": Described(
        {201: Answer("The session is new", Session, headers={"Location": "the session"}),
         200: Answer("It was there: the same again, or a duplicate", Session, headers={"Location": "the session"})},
        schema.CreateSession, (KEY,), CREATION + UNREADABLE),
    "batch": Described(answered(BatchResults, "A result an item"), schema.Batch, (KEY,), CREATION + UNREADABLE),
    "pending": Described(cached_answer(SessionList), parameters=FILTERS, refusals=("invalid_field", "not_found")),
    "failed": Described(cached_answer(SessionList), parameters=(
        *FILTERS, Parameter("include_exhausted", "true: those without retries too")),
        refusals=("invalid_field", "not_found")),
    "listing": Described(cached_answer(SessionList), parameters=(
        *FILTERS, Parameter("status", "One or more, with commas"), Parameter("error_code", "Failed for this reason")),
        refusals=("invalid_field", "not_found")),
    "upload_metadata": Described(
        answered(Replayed), schema.UploadMetadata, refusals=("metadata_immutable", *MOVES, *UNREADABLE)),
    "upload_binary": Described(
        answered(UploadHandedOut), schema.UploadBinary, refusals=(
            "metadata_required", "file_too_large", "insufficient_storage", "too_many_uploads", *MOVES, *UNREADABLE)),
    "acknowledge": Described(answered(Acknowledged), schema.Acknowledge, refusals=(
        "not_synced", "image_mismatch", "checksum_mismatch", "checksum_required", "readback_failed",
        "readback_running", *MOVES, *UNREADABLE)),
    "retry": Described(answered(Retried), schema.Retry, (KEY,), (
        "retries_exhausted", "not_retryable", "idempotency_key_reused", *MOVES, *UNREADABLE)),
    "cancel": Described(answered(Session), schema.Cancel, refusals=(*MOVES, *UNREADABLE)),
    "report_failure": Described(answered(Session), schema.ReportFailure, refusals=(*MOVES, *UNREADABLE)),
    "show": Described(answered(Session), parameters=(DEVICE,), refusals=("not_found", "invalid_field")),
    "history": Described(answered(History), refusals=("not_found",)),
    "receipt": Described(answered(Receipt), refusals=("not_found",)),
}
