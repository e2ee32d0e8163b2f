"""What both protocols tell of an upload in their answers: state fields, verdicts, failures as problems."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from aiohttp import hdrs, web

from server.admission import Verdict
from server.auth import Principal
from server.errors import AppError, RequestError, SessionFailure
from server.problems import as_app_error, problem
from server.tus import rufh_fields, tus_fields
from storage.errors import StorageError
from storage.records import Status, UploadRecord, UploadState, now


def is_complete(upload: UploadRecord, offset: int) -> bool:
    """Whether no more bytes are wanted: it is finished, or a part with all of its bytes."""
    return upload.state is UploadState.FINISHED or (upload.is_partial and offset == upload.length_bytes)


def limit_of(upload: UploadRecord | None, max_size_bytes: int) -> dict[str, str]:
    """Upload-Limit, of the server or of one upload."""
    if upload is None or upload.state is not UploadState.OPEN:
        return {rufh_fields.UPLOAD_LIMIT: rufh_fields.format_limit(max_size_bytes)}
    left = datetime.fromisoformat(upload.expires_at) - now()
    return {rufh_fields.UPLOAD_LIMIT: rufh_fields.format_limit(max_size_bytes, math.ceil(left.total_seconds()))}


def progress_of(upload: UploadRecord, offset: int) -> dict[str, str]:
    """Where an upload stands, in both protocols' words."""
    headers = {rufh_fields.UPLOAD_COMPLETE: rufh_fields.format_boolean(is_complete(upload, offset))}
    if not upload.is_final or upload.state is UploadState.FINISHED:
        # SHOULD NOT be told of a final upload before its parts are joined (tus, concatenation)
        headers[tus_fields.UPLOAD_OFFSET] = str(offset)
    if upload.state is UploadState.OPEN:
        headers[tus_fields.UPLOAD_EXPIRES] = tus_fields.format_expires(upload.expires_at)
    return headers


def state_of(upload: UploadRecord, offset: int, max_size_bytes: int, who: Principal) -> dict[str, str]:
    """All that HEAD tells, in both protocols' words; an expired token hears of offset and length (contract §5)."""
    headers = {**progress_of(upload, offset), **limit_of(upload, max_size_bytes)}
    if upload.length_bytes is None:
        headers[tus_fields.UPLOAD_DEFER_LENGTH] = "1"
    else:
        headers[tus_fields.UPLOAD_LENGTH] = str(upload.length_bytes)
    if upload.upload_metadata and not who.expired:
        headers[tus_fields.UPLOAD_METADATA] = upload.upload_metadata
    if upload.upload_concat is not None:
        headers[tus_fields.UPLOAD_CONCAT] = upload.upload_concat
    return headers


def with_verdict(
    verdict: Verdict | None, status: int, headers: dict[str, str], *, refused_status: int | None = None
) -> web.Response:
    """The verdict when it is known (contract §5): Packhorse-Status, or a problem when the content was refused."""
    if verdict is None:
        return web.Response(status=status, headers=headers)
    headers = {**headers, tus_fields.PACKHORSE_STATUS: verdict.status}
    if verdict.failure is not None:
        return problem(verdict.failure, headers, status=refused_status)
    return web.Response(status=status, headers=headers)


def has_body(request: web.Request) -> bool:
    """Whether the request brings bytes."""
    return request.body_exists and request.content_length != 0


def close_if_unread(request: web.Request, response: web.StreamResponse) -> None:
    """Answer early and close rather than read a body that will be thrown away, as that of an upload known before."""
    if has_body(request) and not request.content.is_eof():
        response.force_close()


@contextmanager
def told_in_failures(url: str) -> Iterator[None]:
    """A creation that fails after its upload was made tells where that is: what arrived is kept there."""
    try:
        yield
    except (RequestError, SessionFailure, StorageError) as error:
        known = as_app_error(error)
        known.members.setdefault("upload_url", url)
        raise known from error


def failure_headers(error: AppError) -> dict[str, str]:
    """Fields that go with a failure in either protocol."""
    headers: dict[str, str] = {}
    if isinstance(error, SessionFailure):
        headers[tus_fields.PACKHORSE_STATUS] = Status.FAILED
    if "upload_offset" in error.members:
        headers[tus_fields.UPLOAD_OFFSET] = str(error.members["upload_offset"])
    if "upload_url" in error.members:
        headers[hdrs.LOCATION] = str(error.members["upload_url"])
    if "upload_expires" in error.members:
        headers[tus_fields.UPLOAD_EXPIRES] = tus_fields.format_expires(str(error.members["upload_expires"]))
    if error.status == 412:
        headers[tus_fields.TUS_VERSION] = tus_fields.VERSION  # MUST (core, Tus-Resumable)
    return headers


def check_body_headers(request: web.Request, room: int, content_type: str) -> None:
    """Everything that the headers tell against a body, before its first byte is read. RequestError."""
    if request.content_type != content_type:
        raise RequestError("unsupported_media_type", f"Content-Type must be {content_type}")
    if hdrs.TRAILER in request.headers:
        raise RequestError("invalid_header", "trailers are not read: send the checksum as a header")
    if request.content_length is not None and request.content_length > room:
        raise RequestError("upload_size_exceeded", f"the upload has room for {room} bytes from there")
