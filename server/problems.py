"""Failures as RFC 9457 problems: which code any failure has at this door, and how it is written. Knows no feature."""

from collections.abc import Iterable

from aiohttp import web

from server.errors import AppError, RequestError
from storage import errors as storage_errors

STORAGE: tuple[tuple[type[storage_errors.StorageError], str], ...] = (
    (storage_errors.NotFound, "not_found"),
    (storage_errors.NoSpace, "insufficient_storage"),
    (storage_errors.Conflict, "invalid_transition"),
    (storage_errors.StorageError, "storage_unavailable"),
)
"""The one table from the storage's errors to the codes of this door; the first that fits."""

AIOHTTP = {404: "not_found", 413: "body_too_large", 400: "bad_request"}


def as_app_error(error: Exception) -> AppError:
    """Any failure as one of ours; unknown ones become `internal_error` without a word of their own."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, web.HTTPMethodNotAllowed):
        return method_not_allowed(error.allowed_methods)
    if isinstance(error, web.HTTPException):
        return RequestError(AIOHTTP.get(error.status, "bad_request"))
    if isinstance(error, UnicodeEncodeError):
        # header fields may hold any byte (RFC 9110 §5.5); what is no UTF-8 can be neither stored nor looked up
        return RequestError("bad_request", "the request holds bytes that are no text")
    for kind, code in STORAGE:
        if isinstance(error, kind):
            return RequestError(code)
    return RequestError("internal_error")


def method_not_allowed(allowed: Iterable[str]) -> RequestError:
    """The refusal of a method; MUST tell which ones are taken (RFC 9110 §15.5.6)."""
    return RequestError("method_not_allowed", allow=", ".join(sorted(allowed)))


def problem_body(error: AppError) -> dict[str, object]:
    """The members of a problem (RFC 9457 §3.1) and ours (contract §4)."""
    return {
        "type": f"/problems/{error.code}", "title": error.title, "status": error.status, "code": error.code,
        "detail": error.detail, "retryable": error.retryable, **error.members,
    }


def problem(
    error: AppError, headers: dict[str, str] | None = None, *, status: int | None = None, **members: object
) -> web.Response:
    """An error as application/problem+json (RFC 9457 §3); `status` and `members` where a protocol has its own."""
    status = status or error.status
    response = web.json_response(
        {**problem_body(error), "status": status, **members}, status=status, content_type="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503 or "retry_after_s" in error.members:
        response.headers["Retry-After"] = str(error.members.get("retry_after_s", 1))
    if "allow" in error.members:
        response.headers["Allow"] = str(error.members["allow"])
    response.headers.update(headers or {})
    return response
