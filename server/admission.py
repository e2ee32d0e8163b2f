"""The seam between the upload protocols and the sessions: values and Protocols, no behaviour.

Each Protocol is a part of what the upload protocols ask: all raise AppError, and storage.errors where they say so.
Methods that take a Connection are units of work, which the caller runs. Every other one may raise StorageIO.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from server.auth import Principal
from server.errors import AppError, SessionFailure
from storage.blobs.base import Sealed
from storage.records import SessionRecord, Status, UploadRecord


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload that a client asks for; `metadata` are the untrusted bytes of Upload-Metadata.

    `length_bytes` counts the bytes on the wire, None while it is deferred. `upload_concat` is that header as it came,
    with `part_ids` for a final one. `content_encoding`: the wire carries a compressed representation of the file.
    `checksum_sha256` (hex) and `repr_digest` (`algorithm:hex`) are what a Repr-Digest declared. `awaits_end`: its
    request does not end it (UploadRecord).
    """

    length_bytes: int | None
    metadata: Mapping[str, bytes]
    raw_metadata: str
    peer: str | None
    upload_concat: str | None = None
    part_ids: tuple[str, ...] = ()
    content_encoding: str | None = None
    checksum_sha256: str | None = None
    repr_digest: str | None = None
    awaits_end: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """The upload to go on with; not `created`: it was there before, and a body sent now is not stored."""

    upload: UploadRecord
    created: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What the sessions say of an upload: why it answers 410 (None: it is alive), and its session, if it has one."""

    refusal: AppError | None
    session: SessionRecord | None = None

    @property
    def checksum_sha256(self) -> str | None:
        """The SHA-256 that its sender declared."""
        return self.session.checksum_sha256 if self.session else None

    @property
    def waits(self) -> bool:
        """Whether its session waits for bytes that were not sent yet, or are to be sent again."""
        return self.session is not None and self.session.status in (Status.QUEUED, Status.METADATA_UPLOADED)

    @property
    def file_size(self) -> int | None:
        """Its size in bytes, None while that is not known."""
        return self.session.file_size if self.session else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a finished upload: SYNCED, or FAILED and why."""

    status: Status
    failure: SessionFailure | None = None


Unit = Callable[[Connection], None]


class AdmitsUploads(Protocol):
    """How uploads begin."""

    async def admit(self, new: NewUpload, who: Principal) -> Admission:
        """Make or find session and upload row, in one transaction. RequestError; Conflict when a session moved on."""
        ...

    async def admit_whole(
        self, new: NewUpload, who: Principal, content: bytes, first: Callable[[Connection, UploadRecord], None]
    ) -> UploadRecord | None:
        """Make, finish and file an upload whose `content` is all here, in one transaction; `first` runs in it.

        None, nothing done, where that cannot be: `admit` then finds out why. RequestError as `admit`.
        """
        ...


class UploadPolicy(Protocol):
    """Who may use an upload, how it stands, and what else moves its session on before its last byte."""

    def authorize(self, tx: Connection, upload: UploadRecord, who: Principal, *, reading: bool) -> Standing:
        """How the upload stands. RequestError `not_found` or `forbidden` unless `who` may read, or write, it."""
        ...

    def standing(self, tx: Connection, upload: UploadRecord) -> Standing:
        """How the upload stands."""
        ...

    def taken_up(self, tx: Connection, upload: UploadRecord, peer: str | None) -> Standing:
        """Bytes come for an open upload: a session that waits for them, as after a retry, goes on. How it stands then.

        Conflict when somebody else moved the session.
        """
        ...

    def sized(self, tx: Connection, upload: UploadRecord, length_bytes: int) -> None:
        """The length that was deferred is known now.

        RequestError `file_too_large`, `inconsistent_upload_length`; Conflict when the upload has another length.
        """
        ...

    async def failed(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """The session fails; where §2 says so the upload is gone for good, in the same transaction.

        Nothing happens when the upload has finished or gone since `upload` was read.
        """
        ...

    async def terminated(self, upload: UploadRecord, who: Principal) -> None:
        """The client sent DELETE: the URL is gone; an unfinished session is CLIENT_ABORTED."""
        ...


class LimitsUploads(Protocol):
    """How much may come in."""

    async def check_room(self, size_bytes: int) -> None:
        """RequestError `file_too_large`, or `insufficient_storage` for what cannot fit now."""
        ...

    def check_claim(self, tx: Connection, upload: UploadRecord, size_bytes: int) -> None:
        """An upload of deferred length is to hold so many bytes. RequestError `file_too_large`, `too_many_uploads`."""
        ...


class CompletesUploads(Protocol):
    """How uploads end well."""

    async def finished(
        self, upload: UploadRecord, session: SessionRecord, sealed: Sealed, peer: str | None, first: Unit
    ) -> Verdict | None:
        """Note the finish and file the content. None when the verdict takes longer. Idempotent.

        `session` is that of the upload's standing. `first` runs in the transaction that notes the finish of an open
        upload, before it. Conflict when the session moved on; NotFound when clean-up took the sealed bytes.
        """
        ...
