"""Every failure that Packhorse expects, by its code; never how a door words it (see middleware, DIMSE).

AppError
├── RequestError     lower_case codes: they answer one request
└── SessionFailure   UPPER_CASE codes: they say why a session FAILED

The closed list of codes is `REQUEST_ERRORS` and `SESSION_FAILURES`; docs/errors.md is compared with it.
"""

from dataclasses import dataclass


class AppError(Exception):
    """An expected failure: `code` for machines, `title` and `detail` for people (never patient data)."""

    code = "internal_error"
    title = "Internal error"
    status = 500
    retryable = False

    def __init__(self, detail: str = "", **members: object) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.members = members


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means: its HTTP status, whether the same request may succeed later, its title."""

    status: int
    retryable: bool
    title: str


REQUEST_ERRORS: dict[str, Meaning] = {
    "bad_request": Meaning(400, False, "The request cannot be read"),
    "invalid_json": Meaning(400, False, "The body is not JSON"),
    "invalid_metadata": Meaning(400, False, "The Upload-Metadata header cannot be read"),
    "invalid_header": Meaning(400, False, "A header cannot be read"),
    "unsupported_checksum_algorithm": Meaning(400, False, "The checksum algorithm is not supported"),
    "unauthorized": Meaning(401, False, "A valid token is needed"),
    "forbidden": Meaning(403, False, "The token's role does not allow this"),
    "foreign_page": Meaning(403, False, "Another site's page may not call here"),
    "csrf_refused": Meaning(403, False, "A page must prove that the request is its own"),
    "not_found": Meaning(404, False, "There is nothing here"),
    "method_not_allowed": Meaning(405, False, "The method is not allowed here"),
    "invalid_transition": Meaning(409, False, "The session's status does not allow this"),
    "session_conflict": Meaning(409, False, "The session exists with other fields"),
    "order_visit_mismatch": Meaning(409, False, "The order belongs to another visit"),
    "already_accepted": Meaning(409, False, "It was accepted already"),
    "metadata_immutable": Meaning(409, False, "The metadata was already given and differs"),
    "metadata_required": Meaning(409, False, "The metadata comes first"),
    "not_synced": Meaning(409, True, "The server has not stored the image yet"),
    "image_mismatch": Meaning(409, False, "That image is not this session's"),
    "checksum_mismatch": Meaning(409, False, "The checksum is not that of the stored file"),
    "retries_exhausted": Meaning(409, False, "No retries are left"),
    "not_retryable": Meaning(409, False, "This failure cannot be retried"),
    "idempotency_key_reused": Meaning(409, False, "The Idempotency-Key was used for another request"),
    "offset_mismatch": Meaning(409, True, "The offset is not the stored one"),
    "upload_locked": Meaning(503, True, "Another request still writes to this upload"),
    "inconsistent_upload_length": Meaning(400, False, "The length contradicts what is known of the upload"),
    "completed_upload": Meaning(400, False, "The upload is complete already"),
    "final_upload": Meaning(403, False, "A final upload takes no bytes of its own"),
    "too_many_attempts": Meaning(429, True, "Too many wrong tokens or codes"),
    "headers_too_large": Meaning(431, False, "The request has too many header fields"),
    "gone": Meaning(410, False, "The upload is gone"),
    "unsupported_version": Meaning(412, False, "Tus-Resumable 1.0.0 is needed"),
    "file_too_large": Meaning(413, False, "The file is larger than this server takes"),
    "body_too_large": Meaning(413, False, "The body is larger than this call takes"),
    "upload_size_exceeded": Meaning(413, False, "The body passes the declared length"),
    "unsupported_media_type": Meaning(415, False, "The Content-Type is not the one needed"),
    "invalid_field": Meaning(422, False, "A field is not valid"),
    "checksum_required": Meaning(422, False, "checksum_sha256 is needed"),
    "render_failed": Meaning(422, False, "The image cannot be shown"),
    "content_refused": Meaning(422, False, "The content was refused"),
    "chunk_checksum_mismatch": Meaning(460, True, "The checksum of the chunk does not match"),
    "too_many_streams": Meaning(503, True, "Too many listen already"),
    "too_many_uploads": Meaning(503, True, "Too many uploads at once"),
    "internal_error": Meaning(500, True, "Something broke on our side"),
    "upload_interrupted": Meaning(500, True, "The connection was lost; what arrived is kept"),
    "upload_stopped": Meaning(503, True, "A newer request took the upload over"),
    "server_shutdown": Meaning(503, True, "The server is stopping; what arrived is kept"),
    "readback_failed": Meaning(503, True, "The stored bytes could not be verified: keep your copy"),
    "bytes_damaged": Meaning(503, True, "The stored bytes are damaged until somebody sends them again"),
    "readback_running": Meaning(503, True, "The stored bytes are still being verified: ask again"),
    "read_timeout": Meaning(503, True, "No bytes came for too long; what arrived is kept"),
    "issuer_unavailable": Meaning(503, True, "The issuer of the token does not answer"),
    "insufficient_storage": Meaning(507, True, "There is no room for this now"),
    "storage_unavailable": Meaning(503, True, "The storage does not answer as it should"),
}

SESSION_FAILURES: dict[str, Meaning] = {
    "STORAGE_FULL": Meaning(507, True, "There was no room to store the file"),
    "STORAGE_IO": Meaning(503, True, "The storage failed"),
    "INGEST_TIMEOUT": Meaning(503, True, "Reading the file took too long"),
    "INGEST_CRASH": Meaning(503, True, "Reading the file failed on our side"),
    "INTERNAL": Meaning(500, True, "Something broke on our side"),
    "LOCAL_READ_ERROR": Meaning(422, True, "The local file could not be read"),
    "LOCAL_FILE_MISSING": Meaning(422, True, "The local file was missing"),
    "STAGING_LOST": Meaning(410, True, "Some received bytes were lost by the storage"),
    "CHECKSUM_MISMATCH": Meaning(460, True, "The file received is not the file declared"),
    "UPLOAD_EXPIRED": Meaning(410, True, "The upload expired before it was complete"),
    "SIZE_MISMATCH": Meaning(422, False, "The size is not the one declared"),
    "NOT_DICOM": Meaning(422, False, "The file is not DICOM"),
    "DICOM_REJECTED": Meaning(422, False, "The DICOM file is damaged or unusable"),
    "SOP_INSTANCE_CONFLICT": Meaning(422, False, "Another image has this SOP Instance UID"),
    "PATIENT_MISMATCH": Meaning(422, False, "The image is of another patient than the order"),
    "POLICY_REJECTED": Meaning(422, False, "This server does not take such files"),
    "LOCAL_FILE_CHANGED": Meaning(422, False, "The local file changed"),
    "CLIENT_ABORTED": Meaning(410, False, "The sender cancelled"),
}

TOLD_BY_CLIENTS = frozenset({
    "CLIENT_ABORTED", "LOCAL_READ_ERROR", "LOCAL_FILE_MISSING", "LOCAL_FILE_CHANGED"})
"""Codes whose words are the client's own, who may name anybody: they are told in the session, never in a problem."""

RETRYABLE_FROM_ZERO = frozenset({"CHECKSUM_MISMATCH", "UPLOAD_EXPIRED"})
"""Codes whose retry starts with an empty upload (contract §7); all other retryable ones keep progress."""


class RequestError(AppError):
    """Answers one request; `code` is a key of `REQUEST_ERRORS`. `members` go into the problem body."""

    def __init__(self, code: str, detail: str = "", **members: object) -> None:
        meaning = REQUEST_ERRORS[code]
        self.code, self.title, self.status, self.retryable = (
            code, meaning.title, meaning.status, meaning.retryable,
        )
        super().__init__(detail, **members)


class SessionFailure(AppError):
    """Why a session fails; `code` is a key of `SESSION_FAILURES`."""

    def __init__(self, code: str, detail: str = "", **members: object) -> None:
        meaning = SESSION_FAILURES[code]
        self.code, self.title, self.status, self.retryable = (
            code, meaning.title, meaning.status, meaning.retryable,
        )
        super().__init__(detail, **members)


class NotDicom(SessionFailure):
    """The bytes are no DICOM Part 10 file (PS3.10 §7.1)."""

    def __init__(self, detail: str = "") -> None:
        super().__init__("NOT_DICOM", detail)


class DicomRejected(SessionFailure):
    """The bytes are DICOM, but damaged, unusable or beyond the reader's limits."""

    def __init__(self, detail: str = "") -> None:
        super().__init__("DICOM_REJECTED", detail)


class RenderFailed(RequestError):
    """The pixels cannot be shown; the stored bytes are untouched."""

    def __init__(self, detail: str = "") -> None:
        super().__init__("render_failed", detail)


class ConfigurationError(AppError):
    """The configuration is unusable; the message names the key."""

    code = "configuration_error"
    title = "The configuration is unusable"
