"""The values that the storage takes and gives: rows as frozen dataclasses, ids as types."""

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NewType

Sha256 = NewType("Sha256", str)
"""64 lower-case hexadecimal digits."""

DEFAULT_SITE = "default"


class Status(StrEnum):
    """The status of a session (contract §3)."""

    QUEUED = "QUEUED"
    METADATA_UPLOADING = "METADATA_UPLOADING"
    METADATA_UPLOADED = "METADATA_UPLOADED"
    BINARY_UPLOADING = "BINARY_UPLOADING"
    SYNCED = "SYNCED"
    ACK_RECEIVED = "ACK_RECEIVED"
    FAILED = "FAILED"


class UploadState(StrEnum):
    """The life of an upload: open, finished (all bytes sealed), or gone for good."""

    OPEN = "open"
    FINISHED = "finished"
    GONE = "gone"


class JobState(StrEnum):
    """The life of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class DeliveryState(StrEnum):
    """The life of a delivery to a destination; parked ones wait for a person, held ones for their image's return."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    PARKED = "parked"
    HELD = "held"


PRIORITIES = ("ROUTINE", "URGENT", "STAT")
"""From the lowest to the highest: a priority's place is its rank."""


def rank(priority: str | None) -> int:
    """How high a priority is; none is the lowest."""
    return PRIORITIES.index(priority) if priority else 0


class QuarantineState(StrEnum):
    """The life of what is held: a rejected one may still be accepted, for its bytes stay."""

    HELD = "held"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class Door(StrEnum):
    """A way in."""

    TUS = "tus"
    DIMSE = "dimse"
    REBUILT = "rebuilt"
    """No way in: the blob was here, and its rows were made anew."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that happened, before it has its place in the chain. `detail` holds ids, never names."""

    site: str
    action: str
    actor: str = "server"
    subject: str | None = None
    peer: str | None = None
    outcome: str = "ok"
    detail: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AuditPosition:
    """The place of a row in the chain: `seq` is commit order."""

    seq: int
    row_hash: str


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as stored; times are RFC 3339 UTC text, ids from outside are text.

    `numeric_ids` names the id fields that first came as JSON numbers; `metadata` is None until known;
    `file_size`, in bytes, is None while its sender has not told it (a deferred length);
    `dedup_key` is held by at most one session of (site, order or principal, declared checksum).
    """

    session_id: str
    site: str
    visit_id: str | None
    radiology_order_id: str | None
    status: Status
    priority: str
    file_name: str
    file_size: int | None
    content_type: str | None
    checksum_sha256: str | None
    checksum_source: str
    local_file_path: str | None
    local_file_uuid: str | None
    created_by_id: str | None
    device_id: str | None
    principal: str
    numeric_ids: str
    max_retries: int
    retry_count: int
    error_code: str | None
    error_message: str | None
    metadata: dict[str, Any] | None
    client_created_at: str | None
    created_at: str
    updated_at: str
    metadata_uploaded_at: str | None
    binary_uploaded_at: str | None
    synced_at: str | None
    ack_received_at: str | None
    server_image_id: int | None
    blob_sha256: str | None
    duplicate_of: str | None
    supersedes: str | None
    dedup_key: str | None
    receipt: str | None
    seq: int

    @property
    def retries_left(self) -> int:
        """How many retries this session still has."""
        return max(0, self.max_retries - self.retry_count)


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload as stored: `offset_bytes` are known to be on the medium, more may be in its cache.

    `boot_id` is the boot in which the last bytes were written: after another boot only `offset_bytes`
    count (contract §2). A session has at most one live upload. `session_id` is None for a partial upload
    of a concatenation; `length_bytes` is None while it is deferred, and counts the bytes on the wire, which
    are a compressed representation where `content_encoding` says so. `upload_concat` is the header as it
    came; `repr_digest` is `algorithm:hex` of the whole where a client declared other than SHA-256. `awaits_end`: the
    request that wrote last does not end the upload, however many bytes are there (RUFH, Upload-Complete: ?0).
    `audited_bytes`: up to where rows of the audit tell how the bytes came.
    """

    upload_id: str
    site: str
    session_id: str | None
    principal: str
    length_bytes: int | None
    offset_bytes: int
    state: UploadState
    gone_reason: str | None
    boot_id: str
    upload_metadata: str
    created_at: str
    expires_at: str
    finished_at: str | None = None
    blob_sha256: str | None = None
    upload_concat: str | None = None
    content_encoding: str | None = None
    repr_digest: str | None = None
    awaits_end: bool = False
    audited_bytes: int = 0

    @property
    def is_partial(self) -> bool:
        """Whether this is a part of a concatenation, which has no session of its own."""
        return self.upload_concat == "partial"

    @property
    def is_final(self) -> bool:
        """Whether this is the final upload of a concatenation, which takes no bytes of its own."""
        return self.upload_concat is not None and not self.is_partial


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A sealed blob; `alarm` says why its bytes are doubted, None while they are not, `alarm_at` since when.

    `read_at`: when it was last read to its end, whatever that found; `verified_at`: when such a reading last found the
    right bytes. They are for people. What came after what is told by moments, which no clock moves: `read_moment`, the
    end of the last reading; `verified_moment`, the beginning of the last one that found the right bytes.
    """

    site: str
    sha256: str
    size_bytes: int
    sealed_at: str
    verified_at: str | None
    alarm: str | None
    read_at: str | None
    alarm_at: str | None
    read_moment: str | None
    verified_moment: str | None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One stored object: a DICOM instance (kind `dicom`) or any other file (kind `attachment`).

    Patient and accession are what the object itself says. `rejection_code` hides it (IHE IOCM), reversibly.
    """

    id: int
    site: str
    kind: str
    series_id: int | None
    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    transfer_syntax_uid: str | None
    blob_sha256: str
    dataset_sha256: str | None
    size_bytes: int
    instance_number: str | None
    number_of_frames: int | None
    file_name: str | None
    content_type: str | None
    flags: str
    door: str
    stored_at: str
    superseded_by: int | None
    patient_id: str | None = None
    issuer_of_patient_id: str | None = None
    accession_number: str | None = None
    rejection_code: str | None = None
    rejected_at: str | None = None

    @property
    def is_shown(self) -> bool:
        """Whether lists, viewers and destinations get it."""
        return self.superseded_by is None and self.rejected_at is None


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """What the EMR said of an order; `attributes`: the fields of contract §4, `numeric_ids` as in SessionRecord."""

    site: str
    radiology_order_id: str
    visit_id: str | None
    accession_number: str | None
    verified: bool
    attributes: dict[str, Any]
    created_at: str
    updated_at: str
    numeric_ids: str

    @property
    def priority(self) -> str:
        """How soon it is wanted."""
        return str(self.attributes.get("priority") or PRIORITIES[0])

    @property
    def expected_images(self) -> int | None:
        """How many images the EMR expects, if it said so."""
        return self.attributes.get("expected_images")


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """Bytes that are held for a person. `image_id`: what they became when they were accepted."""

    id: int
    site: str
    blob_sha256: str
    reason: str
    sop_instance_uid: str | None
    conflicts_with: int | None
    session_id: str | None
    radiology_order_id: str | None
    door: str
    state: QuarantineState
    image_id: int | None
    created_at: str
    decided_at: str | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Work that must happen, once, even after a crash. `attempt` fences a late holder of the lease.

    Of what is due, the highest `priority` goes first.
    """

    job_id: int
    site: str
    kind: str
    subject: str
    state: JobState
    attempt: int
    priority: int
    run_after: str
    lease_until: str | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One image on its way to one destination. `attempts` counts sends, so a re-send is seen."""

    delivery_id: int
    site: str
    image_id: int
    destination: str
    state: DeliveryState
    attempts: int
    last_status: str | None
    last_error: str | None
    created_at: str
    updated_at: str
    delivered_at: str | None


@dataclass(frozen=True, slots=True)
class WebhookDeliveryRecord:
    """One event on its way to one receiver; `webhook` is its URL, `event_id` stays the same for every attempt."""

    delivery_id: int
    site: str
    webhook: str
    event_id: str
    event: str
    body: str
    state: DeliveryState
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: str
    updated_at: str
    delivered_at: str | None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token without its secret: only the SHA-256 of the secret is kept.

    `visit_id` and `radiology_order_id` are the one that it may touch, `created_by_id` the user it acts for, `maker`
    the principal that minted it over the API; `numeric_ids` as in SessionRecord. `last_used_at` is true to a minute.
    """

    token_id: str
    site: str
    role: str
    visit_id: str | None
    secret_sha256: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    label: str | None
    radiology_order_id: str | None = None
    created_by_id: str | None = None
    numeric_ids: str = ""
    maker: str | None = None
    last_used_at: str | None = None


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """A one-time code, of which only the SHA-256 is kept: good until `expires_at`, for one browser of the token.

    `maker`: the principal that made it over the API, whose own time is over at `maker_expires_at`.
    """

    code_sha256: str
    site: str
    token_id: str
    created_at: str
    expires_at: str
    maker: str | None = None
    maker_expires_at: str | None = None


@dataclass(frozen=True, slots=True)
class BrowserRecord:
    """A browser that is logged in by a cookie, of which only the SHA-256 is kept; what it may do its token says.

    `maker`: the principal that made its code over the API.
    """

    cookie_sha256: str
    site: str
    token_id: str
    created_at: str
    expires_at: str
    ended_at: str | None = None
    maker: str | None = None


def new_id() -> str:
    """A UUID of version 7 (RFC 9562 §5.7): ids that are made together lie together in every index."""
    bits = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    text = f"{bits & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def now() -> datetime:
    """The server's clock: aware UTC."""
    return datetime.now(UTC)


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with milliseconds: sorts as text in order of time."""
    if moment is None:
        seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        return f"{_to_the_second(seconds)}.{milliseconds:03d}Z"
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


@lru_cache(maxsize=4)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")
