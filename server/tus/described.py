"""`/files` as `/openapi.json` tells it: both protocols on one URL, told apart by Tus-Resumable (contract §5)."""

from typing import Any

from server.describing import BYTES, TEXT, Answer, Described, Parameter
from server.errors import SESSION_FAILURES
from server.tus import rufh_fields, tus_fields

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
STATE = {
    tus_fields.UPLOAD_OFFSET: "bytes that are held", tus_fields.UPLOAD_LENGTH: "of the whole, where it is known",
    tus_fields.UPLOAD_EXPIRES: "when an unfinished upload ends", rufh_fields.UPLOAD_COMPLETE: "?1 once all are held",
    rufh_fields.UPLOAD_LIMIT: "what the upload may still be",
    tus_fields.PACKHORSE_STATUS: "the verdict, where it is known"}


def _field(name: str, says: str, *, required: bool = False, shape: dict[str, Any] = TEXT) -> Parameter:
    return Parameter(name, says, shape, required, "header")


DIGITS = {"type": "string", "pattern": "^[0-9]{1,18}$"}
BOOLEAN = {"type": "string", "enum": ["?1", "?0"]}
VERSION = _field(tus_fields.TUS_RESUMABLE, "1.0.0: the request is tus; without it the request is RUFH",
                 shape={"type": "string", "enum": [tus_fields.VERSION]})
OVERRIDE = _field("X-HTTP-Method-Override", "The method meant, for clients that cannot send it", required=True,
                  shape={"type": "string", "enum": ["HEAD", "PATCH", "DELETE"]})
CREATION = (
    VERSION, _field(tus_fields.UPLOAD_LENGTH, "tus: the size in bytes; RUFH: where it is known beforehand",
                    shape=DIGITS),
    _field(tus_fields.UPLOAD_DEFER_LENGTH, "tus: 1, the length comes later", shape={"type": "string", "enum": ["1"]}),
    _field(tus_fields.UPLOAD_METADATA, "Pairs of a key and base64, with commas"),
    _field(tus_fields.UPLOAD_CONCAT, "tus: partial, or final; and the parts"),
    _field(tus_fields.UPLOAD_CHECKSUM, "tus: the digest of this body"),
    _field(rufh_fields.UPLOAD_COMPLETE, "RUFH: ?1 where the body is all of the file, ?0 where more comes",
           shape=BOOLEAN),
    _field(rufh_fields.REPR_DIGEST, "RUFH: the digest of the whole file (RFC 9530)"),
    _field(rufh_fields.CONTENT_DIGEST, "RUFH: the digest of this body (RFC 9530)"),
    _field(rufh_fields.INTEROP_VERSION, "RUFH: with 9, interim answers 104 tell of progress"))
APPEND = (
    VERSION, _field(tus_fields.UPLOAD_OFFSET, "Where this body begins", required=True, shape=DIGITS),
    _field(tus_fields.UPLOAD_CHECKSUM, "tus: the digest of this body"),
    _field(tus_fields.UPLOAD_LENGTH, "The length, where it had been deferred", shape=DIGITS),
    _field(rufh_fields.UPLOAD_COMPLETE, "RUFH: ?1 where the file ends with this body", shape=BOOLEAN),
    _field(rufh_fields.CONTENT_DIGEST, "RUFH: the digest of this body (RFC 9530)"))
BODIES = (tus_fields.OFFSET_CONTENT_TYPE, rufh_fields.PARTIAL_CONTENT_TYPE, BYTES)
ANY = ("not_found", "method_not_allowed", "invalid_header", "unsupported_version", "gone", "upload_locked",
       "upload_stopped", "server_shutdown", *SESSION_FAILURES)
BRINGS = (
    *ANY, "invalid_metadata", "unsupported_checksum_algorithm", "inconsistent_upload_length", "completed_upload",
    "final_upload", "file_too_large", "upload_size_exceeded", "unsupported_media_type", "invalid_field",
    "content_refused", "chunk_checksum_mismatch", "too_many_uploads", "upload_interrupted", "read_timeout",
    "insufficient_storage", "offset_mismatch", "session_conflict", "order_visit_mismatch", "metadata_required",
    "invalid_transition", "checksum_required")
LOCATED = {"Location": "the upload, absolute", **STATE}
CREATED = Described(
    {201: Answer("The upload is there; with all of its bytes the verdict too", headers=LOCATED),
     202: Answer("RUFH: every byte is held, the verdict comes later", headers=LOCATED)},
    parameters=CREATION, refusals=BRINGS, rewords=True, content=BODIES,
    summary="Create an upload, with its first bytes if it has a body.")
APPENDED = {
    200: Answer("With an overriding HEAD: the offset", headers=STATE),
    202: Answer("RUFH: every byte is held, the verdict comes later", headers=STATE),
    204: Answer("The bytes are held; after the last one the verdict too, where it is known", headers=STATE)}
OPTIONS = Described(
    {204: Answer("Versions, extensions, limits", headers={
        tus_fields.TUS_VERSION: "of tus", tus_fields.TUS_EXTENSION: "of tus", tus_fields.TUS_MAX_SIZE: "in bytes",
        tus_fields.TUS_CHECKSUM_ALGORITHM: "for Upload-Checksum", rufh_fields.UPLOAD_LIMIT: "of RUFH"})},
    summary="What this server speaks.", refusals=("method_not_allowed",))

DESCRIBED = {
    "OPTIONS /files": OPTIONS, "OPTIONS /files/{upload_id}": OPTIONS, "POST /files": CREATED,
    "POST /files/{upload_id}": Described(
        APPENDED, parameters=(OVERRIDE, *APPEND), refusals=BRINGS, rewords=True, content=BODIES,
        summary="PATCH, HEAD or DELETE for clients that cannot send them."),
    "PATCH /files/{upload_id}": Described(
        {status: APPENDED[status] for status in (202, 204)}, parameters=APPEND, refusals=BRINGS, rewords=True,
        content=BODIES, summary="Bytes at an offset."),
    "HEAD /files/{upload_id}": Described(
        {200: Answer("The offset to go on from", headers=STATE)}, parameters=(VERSION,), refusals=ANY, rewords=True,
        summary="The offset to go on from; takes an unfinished upload over."),
    "DELETE /files/{upload_id}": Described(
        {204: Answer("The upload is given up")}, parameters=(VERSION,), refusals=ANY, rewords=True,
        summary="Give an upload up."),
    "GET /files/{upload_id}": Described({
        200: Answer("The bytes", BINARY, ("application/dicom", "image/png", "image/jpeg", "application/pdf", BYTES)),
        206: Answer("The bytes that Range asked for", BINARY, (
            "application/dicom", "image/png", "image/jpeg", "application/pdf", BYTES, "multipart/byteranges")),
        304: Answer("Not modified"), 412: Answer("If-Match or If-Unmodified-Since does not hold"),
        416: Answer("Range names no bytes of it")},
        parameters=(_field("Range", "bytes=…"),), refusals=("not_synced", "bytes_damaged", *ANY), rewords=True,
        summary="The bytes of a finished upload, with Range."),
}
