"""The seam between the upload protocols and the sessions: values and one Protocol, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from server.auth import Principal
from server.errors import AppError, SessionFailure
from storage.blobs.base import Sealed
from storage.records import Status, UploadRecord


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload that a client asks for; `metadata` are the untrusted bytes of Upload-Metadata."""

    length_bytes: int
    metadata: Mapping[str, bytes]
    raw_metadata: str
    peer: str | None


@dataclass(frozen=True, slots=True)
class Admission:
    """The upload to go on with; not `created`: it was there before, and a body sent now is not stored."""

    upload: UploadRecord
    created: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a finished upload: SYNCED, or FAILED and why."""

    status: Status
    failure: SessionFailure | None = None


class UploadPolicy(Protocol):
    """Asked by the upload protocols, answered by the sessions. Raises AppError only."""

    async def admit(self, new: NewUpload, who: Principal) -> Admission:
        """Make or find session, upload row and staged blob, in one transaction. RequestError."""
        ...

    async def authorize(self, upload: UploadRecord, who: Principal, *, reading: bool) -> None:
        """RequestError `not_found` or `forbidden` unless `who` may read, or write, this upload."""
        ...

    async def expected_sha256(self, upload: UploadRecord) -> str | None:
        """The SHA-256 that the whole must have; None when the client declared none."""
        ...

    async def finished(self, upload: UploadRecord, sealed: Sealed, peer: str | None) -> Verdict | None:
        """Note the finish and file the content. None when the verdict takes longer. Idempotent."""
        ...

    async def failed(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """The session fails; where §2 says so the upload is gone for good, in the same transaction.

        Nothing happens when the upload has finished or gone since `upload` was read.
        """
        ...

    async def terminated(self, upload: UploadRecord, who: Principal) -> None:
        """The client sent DELETE: the URL is gone; an unfinished session is CLIENT_ABORTED."""
        ...

    async def refusal(self, upload: UploadRecord) -> AppError | None:
        """Why this upload answers 410: it is gone, or its session FAILED. None when it is alive."""
        ...
