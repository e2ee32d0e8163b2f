"""The words of tus 1.0.0 and how its headers are read. Pure: no input, no output, no store."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from wsgiref.handlers import format_date_time

from server.errors import RequestError
from server.tus.checksum import ALGORITHMS

VERSION = "1.0.0"
EXTENSIONS = (
    "creation", "creation-with-upload", "creation-defer-length", "termination", "checksum", "expiration",
    "concatenation", "concatenation-unfinished",
)
OFFSET_CONTENT_TYPE = "application/offset+octet-stream"

TUS_RESUMABLE = "Tus-Resumable"
TUS_VERSION = "Tus-Version"
TUS_EXTENSION = "Tus-Extension"
TUS_MAX_SIZE = "Tus-Max-Size"
TUS_CHECKSUM_ALGORITHM = "Tus-Checksum-Algorithm"
UPLOAD_OFFSET = "Upload-Offset"
UPLOAD_LENGTH = "Upload-Length"
UPLOAD_METADATA = "Upload-Metadata"
UPLOAD_CHECKSUM = "Upload-Checksum"
UPLOAD_EXPIRES = "Upload-Expires"
UPLOAD_DEFER_LENGTH = "Upload-Defer-Length"
UPLOAD_CONCAT = "Upload-Concat"
PACKHORSE_STATUS = "Packhorse-Status"

_NUMBER = re.compile(r"[0-9]{1,18}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PART = re.compile(rf"(?:https?://[^/,]+)?/(?:[^,]*/)?({_UPLOAD_ID.pattern})/?")
"""An upload's URL, absolute or a path; a comma is no part of one, so two that it joins are not taken for one."""
_KEY = re.compile(r"[^\s,]{1,255}")
MAX_METADATA_KEYS = 64
MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class ChecksumClaim:
    """What Upload-Checksum says of one chunk: the algorithm and the digest's bytes."""

    algorithm: str
    digest: bytes


def parse_number(name: str, text: str | None) -> int:
    """A non-negative integer; RequestError `invalid_header` for everything else (core, Upload-Offset)."""
    if text is None or not _NUMBER.fullmatch(text):
        raise RequestError("invalid_header", f"{name} must be a non-negative integer", header=name)
    return int(text)


def is_upload_id(text: str) -> bool:
    """Whether `text` can be the last part of an upload's URL."""
    return _UPLOAD_ID.fullmatch(text) is not None


def parse_deferred(headers: Mapping[str, str]) -> int | None:
    """The length that a creation declares, None when it defers it (creation-defer-length).

    RequestError `invalid_header` unless exactly one of Upload-Length and Upload-Defer-Length: 1 is there.
    """
    deferred = headers.get(UPLOAD_DEFER_LENGTH)
    if deferred is None:
        return parse_number(UPLOAD_LENGTH, headers.get(UPLOAD_LENGTH))
    if deferred != "1" or UPLOAD_LENGTH in headers:
        raise RequestError("invalid_header", "Upload-Defer-Length must be 1, without Upload-Length",
                           header=UPLOAD_DEFER_LENGTH)
    return None


def parse_concat(text: str) -> tuple[str, ...]:
    """The ids of the parts that Upload-Concat names; none for `partial` (concatenation, Upload-Concat).

    RequestError `invalid_header` for anything that is neither `partial` nor `final;` and URLs of uploads.
    """
    if text == "partial":
        return ()
    kind, _, urls = text.partition(";")
    parts = [_PART.fullmatch(url) for url in urls.split()]
    ids = tuple(part[1] for part in parts if part is not None)
    if not text.isascii() or kind != "final" or not 1 <= len(ids) <= MAX_PARTS or len(ids) != len(parts):
        raise RequestError("invalid_header", "it is partial, or final; and the URLs of its parts",
                           header=UPLOAD_CONCAT)
    return ids


def parse_metadata(text: str) -> dict[str, bytes]:
    """Upload-Metadata as key → bytes; a key without a value is legal (creation, Upload-Metadata).

    RequestError `invalid_metadata` for a bad key, bad base64, or a key given twice.
    """
    pairs: dict[str, bytes] = {}
    for part in text.split(",") if text.strip() else ():
        key, _, value = part.strip().partition(" ")
        if not _KEY.fullmatch(key) or not key.isascii():
            raise RequestError("invalid_metadata", "a key must be ASCII without spaces and commas")
        if key in pairs:
            raise RequestError("invalid_metadata", "a key is given twice")
        try:
            pairs[key] = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("invalid_metadata", f"the value of {key} is not base64") from error
    if len(pairs) > MAX_METADATA_KEYS:
        raise RequestError("invalid_metadata", f"more than {MAX_METADATA_KEYS} keys")
    return pairs


def format_metadata(pairs: Mapping[str, bytes]) -> str:
    """The inverse of `parse_metadata`."""
    return ",".join(f"{key} {base64.b64encode(value).decode()}".strip() for key, value in pairs.items())


def parse_checksum(text: str) -> ChecksumClaim:
    """Upload-Checksum: an algorithm and a base64 digest (checksum, Upload-Checksum)."""
    algorithm, _, value = text.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise RequestError("unsupported_checksum_algorithm", f"supported: {', '.join(ALGORITHMS)}")
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("invalid_header", "the digest is not base64", header=UPLOAD_CHECKSUM) from error
    if len(digest) != ALGORITHMS[algorithm]:
        raise RequestError("invalid_header", f"a {algorithm} digest has {ALGORITHMS[algorithm]} bytes",
                           header=UPLOAD_CHECKSUM)
    return ChecksumClaim(algorithm, digest)


def format_expires(moment: str) -> str:
    """Upload-Expires from RFC 3339 text, as an HTTP date (expiration, Upload-Expires)."""
    return format_date_time(datetime.fromisoformat(moment).timestamp())
