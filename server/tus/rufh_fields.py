"""The words of RUFH (draft-ietf-httpbis-resumable-upload-12) and how its fields are read. Pure.

Structured fields (RFC 9651) that are malformed are ignored, as the draft asks (§4.1), so a reader sees None.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import http_sf
from multidict import MultiMapping

from server.errors import RequestError
from server.tus.checksum import ALGORITHMS
from server.tus.tus_fields import UPLOAD_LENGTH, UPLOAD_OFFSET, ChecksumClaim

INTEROP_VERSIONS = ("9", "8")
INTEROP_VERSION = "Upload-Draft-Interop-Version"
UPLOAD_COMPLETE = "Upload-Complete"
UPLOAD_LIMIT = "Upload-Limit"
REPR_DIGEST = "Repr-Digest"
CONTENT_DIGEST = "Content-Digest"
PARTIAL_CONTENT_TYPE = "application/partial-upload"
PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types#"
MOST = 10**15 - 1  # an Integer of RFC 9651 §3.3.1 has at most 15 digits

ACTIVE = {"sha-256": "sha256", "sha-512": "sha512"}
"""The active algorithms of RFC 9530 §5 → their names in hashlib."""


def field(headers: MultiMapping[str], name: str) -> str | None:
    """A field that may stand on several lines, which are one value (RFC 9110 §5.3, RFC 9651 §4.2); None without it."""
    lines = headers.getall(name, [])
    return ", ".join(lines) if lines else None


def _item(text: str | None) -> object:
    if text is None:
        return None
    try:
        parsed: Any = http_sf.parse(text.encode("latin-1"), tltype="item")  # the library has one type for all
    except (ValueError, UnicodeEncodeError):
        return None
    value: object = parsed[0]  # beside its parameters
    return value


def parse_boolean(text: str | None) -> bool | None:
    """A Boolean; None when it is missing or malformed."""
    value = _item(text)
    return value if isinstance(value, bool) else None


def parse_integer(text: str | None) -> int | None:
    """A non-negative Integer; None when it is missing or malformed."""
    value = _item(text)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None


def parse_digests(text: str | None) -> tuple[ChecksumClaim, ...]:
    """The digests of Content-Digest or Repr-Digest whose algorithm we know (RFC 9530 §2, §3); others are ignored."""
    if text is None:
        return ()
    try:
        values: Any = http_sf.parse(text.encode("latin-1"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError):
        return ()
    claims = []
    for name, algorithm in ACTIVE.items():
        digest = values[name][0] if name in values else None
        if isinstance(digest, bytes) and len(digest) == ALGORITHMS[algorithm]:
            claims.append(ChecksumClaim(algorithm, digest))
    return tuple(claims)


@dataclass(frozen=True, slots=True)
class Append:
    """What the header of an append says."""

    offset: int
    complete: bool
    length_bytes: int | None


def parse_append(headers: MultiMapping[str]) -> Append:
    """Upload-Offset, Upload-Complete, Upload-Length of a PATCH. RequestError `invalid_header` (§4.4.1)."""
    offset, complete = parse_integer(field(headers, UPLOAD_OFFSET)), parse_boolean(field(headers, UPLOAD_COMPLETE))
    if offset is None:
        raise RequestError("invalid_header", "Upload-Offset must be a non-negative integer", header=UPLOAD_OFFSET)
    if complete is None:
        raise RequestError("invalid_header", "Upload-Complete must be ?1 or ?0", header=UPLOAD_COMPLETE)
    return Append(offset, complete, parse_integer(field(headers, UPLOAD_LENGTH)))


def format_boolean(value: bool) -> str:
    """A Boolean (RFC 9651 §4.1.9)."""
    return "?1" if value else "?0"


def format_digest(sha256: str) -> str:
    """Repr-Digest of what has that SHA-256, in hexadecimal (RFC 9530 §3)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def format_limit(max_size_bytes: int, max_age_s: int | None = None) -> str:
    """Upload-Limit (§4.1.4): sizes in bytes, `max-age` in seconds."""
    limits = f"max-size={min(max_size_bytes, MOST)}, min-size=0"
    return limits if max_age_s is None else f"{limits}, max-age={max(0, max_age_s)}"


def interop_version(headers: Mapping[str, str]) -> str | None:
    """The interop version that client and server share; 104 goes to nobody else."""
    version = headers.get(INTEROP_VERSION)
    return version if version in INTEROP_VERSIONS else None
