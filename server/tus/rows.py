"""What rows tell of an upload and its session, and what is noted in them. Touches no bytes, only counts them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import Connection

from server.admission import LimitsUploads, Standing, UploadPolicy
from server.errors import AppError, RequestError, SessionFailure
from storage import audit, uploads
from storage.moments import boot_id
from storage.records import AuditEntry, UploadRecord, UploadState, now, timestamp
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Seen:
    """An upload as its row and its session told it in one read."""

    upload: UploadRecord
    standing: Standing


class UploadRows:
    """Reads and notes; what an upload means is asked of the policy."""

    def __init__(
        self, store: Store, policy: UploadPolicy, limits: LimitsUploads, expires_after: timedelta
    ) -> None:
        self._store = store
        self._policy = policy
        self._limits = limits
        self._expires_after = expires_after

    def look(self, upload: UploadRecord) -> Seen:
        """The upload as it is now: a row that was read before a lock was taken may be stale."""

        def unit(tx: Connection) -> Seen:
            present = uploads.get(tx, upload.upload_id)
            return Seen(present, self._policy.standing(tx, present))

        return self._store.glance(unit)

    async def taken_up(self, seen: Seen, peer: str | None) -> Seen:
        """For one who holds the lock and brings bytes: a session that waited for them goes on. RequestError `gone`."""
        if seen.upload.state is not UploadState.OPEN or not seen.standing.waits:
            return seen
        standing = await self._store.write(lambda tx: self._policy.taken_up(tx, seen.upload, peer))
        return alive(replace(seen, standing=standing))

    async def sized(self, upload: UploadRecord, length_bytes: int, *, bytes_follow: bool = False) -> UploadRecord:
        """The length that was deferred is known now. RequestError `file_too_large`, `inconsistent_upload_length`.

        `bytes_follow`: they are not here yet. Then also `too_many_uploads`.
        """

        def unit(tx: Connection) -> UploadRecord:
            if bytes_follow:
                self._limits.check_claim(tx, upload, length_bytes)
            self._policy.sized(tx, upload, length_bytes)
            return uploads.get(tx, upload.upload_id)

        return await self._store.write(unit)

    async def await_end(self, upload: UploadRecord, awaits_end: bool) -> UploadRecord:
        """The bytes that come now do, or do not, leave the upload open at its length (RUFH)."""

        def unit(tx: Connection) -> UploadRecord:
            uploads.await_end(tx, upload.upload_id, awaits_end)
            return replace(upload, awaits_end=awaits_end)

        return await self._store.write(unit)

    def progress(
        self, upload: UploadRecord, durable: int, entry: AuditEntry | None = None
    ) -> Callable[[Connection], UploadRecord]:
        """A unit of work: `durable` bytes are on the medium, and the transfer that brought them."""
        expires_at, boot = timestamp(now() + self._expires_after), boot_id()

        def unit(tx: Connection) -> UploadRecord:
            told = upload.audited_bytes if entry is None else durable
            present = replace(
                upload, offset_bytes=durable, boot_id=boot, expires_at=expires_at, audited_bytes=told)
            uploads.advance(tx, upload, present)
            if entry is not None:
                audit.append(tx, entry)
            return present

        return unit

    async def account(self, upload: UploadRecord, end: int, entry: AuditEntry) -> None:
        """Tell of a transfer that ended at `end` where it could not be noted with the offset; each byte once."""
        await self._store.write(lambda tx: told(tx, upload.upload_id, end, entry))

    async def note(self, entry: AuditEntry) -> None:
        """Append to the audit chain."""
        await self._store.write(lambda tx: audit.append(tx, entry))

    async def offset(self, upload: UploadRecord) -> int:
        """How many bytes are held. RequestError `gone` (contract §5); needs no lock, and changes no byte."""
        if upload.state is UploadState.FINISHED:
            assert upload.length_bytes is not None, "it is known at the finish"
            return upload.length_bytes
        held = await self._store.held_bytes(upload)
        if held < upload.offset_bytes:
            present = alive(self.look(upload)).upload
            if present.state is UploadState.FINISHED:
                return await self.offset(present)  # since its row was read: staged bytes go only after the row says so
            raise await self.end_lost(upload)
        return held

    async def end_lost(self, upload: UploadRecord) -> AppError:
        """End for good an upload that is STAGING_LOST; gives what its requests are answered from now on."""
        failure = SessionFailure("STAGING_LOST")
        await self._policy.failed(upload, failure)
        refusal = self.look(upload).standing.refusal
        return refusal or RequestError("gone", failure.title, session_id=upload.session_id)


def told(tx: Connection, upload_id: str, end: int, entry: AuditEntry) -> None:
    """A unit of work: the row of a transfer that ended at `end`, unless the audit tells of those bytes already."""
    if uploads.tell(tx, upload_id, end):
        audit.append(tx, entry)


def alive(seen: Seen) -> Seen:
    """`seen`, unless the upload is gone or its session FAILED: then RequestError `gone`."""
    if seen.standing.refusal is not None:
        raise seen.standing.refusal
    return seen


def room_of(upload: UploadRecord, offset: int, max_size_bytes: int) -> int:
    """How many bytes the upload can still take from `offset` on."""
    limit = max_size_bytes if upload.length_bytes is None else upload.length_bytes
    return max(0, limit - offset)
