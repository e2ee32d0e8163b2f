"""What the session calls take and give: the fields of each body, and sessions as JSON."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, WithJsonSchema

from server.bodies import Body, Reason, Text
from server.identifiers import PATTERN, OutsideId, parse_id, shown
from server.sessions.machine import FOR_PEOPLE, STORED
from storage.records import SessionRecord, Status

Priority = Literal["STAT", "URGENT", "ROUTINE"]
SHA256 = re.compile(r"[0-9a-f]{64}")
ID_FIELDS = ("visit_id", "radiology_order_id", "created_by_id", "device_id")
MAX_METADATA_BYTES = 64 * 1024


def _sha256(text: str) -> str:
    if not SHA256.fullmatch(text.lower()):
        raise ValueError("must be 64 hexadecimal digits")
    return text.lower()


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise ValueError("must be a UUID") from error


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value)) > MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes of JSON")
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(_bounded)]
Digest = Annotated[str, AfterValidator(_sha256), WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"})]
Uuid = Annotated[str, AfterValidator(_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
AnyId = Annotated[int | str, WithJsonSchema({"anyOf": [
    {"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{PATTERN.pattern}$"}]})]


class CreateSession(Body):
    """`create_session/`: what is to be sent. Sizes in bytes."""

    file_name: Annotated[Text, Field(min_length=1, max_length=255)]
    file_size: Annotated[int, Field(ge=0)]
    checksum_sha256: Digest
    radiology_order_id: AnyId | None = None
    session_id: Uuid | None = None
    local_file_path: Annotated[Text, Field(max_length=4096)] | None = None
    local_file_uuid: Annotated[Text, Field(max_length=64)] | None = None
    content_type: Annotated[Text, Field(max_length=255)] | None = None
    created_by_id: AnyId | None = None
    device_id: AnyId | None = None
    priority: Priority = "ROUTINE"
    max_retries: Annotated[int, Field(ge=0, le=100)] = 5
    client_created_at: Annotated[Text, Field(max_length=40)] | None = None
    metadata: Metadata | None = None


class UploadMetadata(Body):
    """`upload_metadata/`; without metadata it confirms what creation gave."""

    metadata: Metadata | None = None


class UploadBinary(Body):
    """`upload_binary/`: `resume_from` is the client's guess, the answer's `upload_offset` is the truth."""

    resume_from: Annotated[int, Field(ge=0)] = 0
    chunk_size: Annotated[int, Field(gt=0)] = 1024 * 1024
    content_encoding: Literal["zstd", "gzip"] | None = None
    encoded_size: Annotated[int, Field(ge=0)] | None = None


class Acknowledge(Body):
    """`acknowledge/`."""

    server_image_id: int
    checksum_sha256: Digest | None = None
    device_id: AnyId | None = None


class Cancel(Body):
    """`cancel/`."""

    reason: Reason


class Retry(Body):
    """`retry/` takes nothing."""


class ReportFailure(Body):
    """`report_failure/`: what broke on the client's side."""

    error_code: Literal["LOCAL_FILE_MISSING", "LOCAL_FILE_CHANGED", "LOCAL_READ_ERROR"]
    error_message: Annotated[Text, Field(max_length=500)] | None = None


class Batch(Body):
    """`batch/`: up to 100 creations, each answered for itself."""

    sessions: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=100)]


@dataclass(frozen=True, slots=True)
class NewSession:
    """A creation as any door words it, parsed; size and checksum are None where only the end will tell them."""

    file_name: str
    file_size: int | None
    checksum_sha256: str | None
    radiology_order_id: OutsideId | None = None
    visit_id: OutsideId | None = None
    session_id: str | None = None
    local_file_path: str | None = None
    local_file_uuid: str | None = None
    content_type: str | None = None
    created_by_id: OutsideId | None = None
    device_id: OutsideId | None = None
    priority: str = "ROUTINE"
    max_retries: int = 5
    client_created_at: str | None = None
    metadata: dict[str, Any] | None = None

    def numeric_ids(self) -> str:
        """The id fields that came as numbers, so that answers give them back as numbers."""
        return ",".join(name for name in ID_FIELDS if (given := getattr(self, name)) and given.numeric)


def optional_id(value: object, field: str) -> OutsideId | None:
    """`parse_id` where the field may be absent."""
    return None if value is None else parse_id(value, field)


def new_session(body: CreateSession, visit_id: OutsideId | None) -> NewSession:
    """The creation that a REST body asks for, under the visit of its URL."""
    fields = body.model_dump()
    for name in ("radiology_order_id", "created_by_id", "device_id"):
        fields[name] = optional_id(fields[name], name)
    return NewSession(**fields, visit_id=visit_id)


def session_json(
    record: SessionRecord, *, base_url: str, bytes_received: int, images: list[dict[str, Any]], safe: bool,
    owner: bool, sign: Callable[[str], str], duplicate: bool = False,
) -> dict[str, Any]:
    """A session as contract §4 shows it. The local path is its owner's only.

    `base_url` ends before `/api`; `sign` makes a path one that proves by itself, for minutes, who may read it.
    """
    ids = {name: shown(record, name) for name in ID_FIELDS}
    root = f"{base_url}/api/v1/upload-sessions/{record.session_id}"
    # "safe to delete" is said to the device that asked and may, while nothing casts doubt on the bytes (contract §8)
    says = FOR_PEOPLE[Status.SYNCED if record.status is Status.ACK_RECEIVED and not safe else record.status]
    if record.status is Status.BINARY_UPLOADING and record.file_size:
        says += f" {min(100, 100 * bytes_received // record.file_size)} %"
    body: dict[str, Any] = {
        "session_id": record.session_id, "visit_id": ids["visit_id"],
        "radiology_order_id": ids["radiology_order_id"], "status": record.status, "status_text": says,
        "priority": record.priority, "file_name": record.file_name, "file_size": record.file_size,
        "content_type": record.content_type, "checksum_sha256": record.checksum_sha256,
        "checksum_source": record.checksum_source, "bytes_received": bytes_received,
        "retry_count": record.retry_count, "max_retries": record.max_retries, "error_code": record.error_code,
        "error_message": record.error_message, "metadata": record.metadata or {}, "device_id": ids["device_id"],
        "created_by_id": ids["created_by_id"], "local_file_uuid": record.local_file_uuid,
        "client_created_at": record.client_created_at, "created_at": record.created_at,
        "updated_at": record.updated_at, "metadata_uploaded_at": record.metadata_uploaded_at,
        "binary_uploaded_at": record.binary_uploaded_at, "synced_at": record.synced_at,
        "ack_received_at": record.ack_received_at, "server_image_id": record.server_image_id, "images": images,
        "safe_to_delete_local": safe, "duplicate": duplicate, "duplicate_of": record.duplicate_of,
        "supersedes": record.supersedes, "seq": record.seq,
        "links": {"self": f"{root}/", **{
            name: f"{root}/{name}/"
            for name in ("upload_metadata", "upload_binary", "acknowledge", "retry", "cancel", "history")},
            "events": base_url + sign(f"/api/v1/events?session_id={record.session_id}")},
    }
    if owner:
        body["local_file_path"] = record.local_file_path
    if record.status in STORED:
        body["links"]["receipt"] = f"{root}/receipt/"
        body["awaiting_ack"] = record.status is Status.SYNCED
    return body
