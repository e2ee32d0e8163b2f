"""What can be done with an upload: patch, tell its offset, complete, delete, expire. Owns staged bytes' offsets.

Facts: the size of the staged file is the offset, for it survives `kill -9`; after a reboot only what was
flushed, and noted in the row, counts. Bytes are flushed and noted at least every 64 MiB or 5 s.
"""

import hmac
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy import Connection

from server.admission import UploadPolicy, Verdict
from server.auth import Principal
from server.errors import AppError, RequestError, SessionFailure
from server.tus.body import UploadBody
from server.tus.checksum import RunningDigest
from server.tus.locks import UploadLocks
from server.tus.protocol import ChecksumClaim
from storage import audit, uploads
from storage.blobs.base import BlobKey, Lists, Sealed, Truncates, boot_id, sealed, staging
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound, StorageError
from storage.records import AuditEntry, Sha256, UploadRecord, UploadState, now, timestamp
from storage.store import Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Patched:
    """Where an upload stands; `verdict` once it is finished and known."""

    upload: UploadRecord
    offset: int
    verdict: Verdict | None = None


class Uploads:
    """The use cases on uploads. Raises AppError and storage.errors."""

    def __init__(self, store: Store, policy: UploadPolicy, locks: UploadLocks, expires_after: timedelta) -> None:
        self._store = store
        self._policy = policy
        self._locks = locks
        self._expires_after = expires_after

    async def find(self, upload_id: str, who: Principal, *, reading: bool) -> UploadRecord:
        """The upload, if `who` may use it. RequestError `not_found`, `forbidden`."""
        upload = await self._store.read(lambda tx: uploads.find(tx, upload_id))
        if upload is None or upload.site != who.site:
            raise RequestError("not_found", "there is no such upload")
        await self._policy.authorize(upload, who, reading=reading)
        return upload

    async def offset(self, upload: UploadRecord, *, holding: bool = False) -> int:
        """How many bytes are held. RequestError `gone` (contract §5); never waits for a lock.

        `holding`: the caller has the upload's lock, so nobody else writes and an expired one ends now.
        """
        refusal = await self._policy.refusal(upload)
        if refusal is not None:
            raise refusal
        if upload.state is UploadState.FINISHED:
            return upload.length_bytes
        if upload.expires_at <= timestamp() and (holding or not self._locks.is_held(upload.upload_id)):
            await self._lose(upload, SessionFailure("UPLOAD_EXPIRED"))
        return await self._survived(upload)

    async def settled_offset(self, upload: UploadRecord) -> int:
        """Like `offset`, after whoever still writes was asked to leave (contract §5): the last word."""
        if upload.state is not UploadState.OPEN:
            return await self.offset(upload)
        async with self._locks.take(upload.upload_id, stop=lambda: None):
            return await self.offset(await self._again(upload), holding=True)

    async def patch(
        self, upload: UploadRecord, offset: int, body: UploadBody, claim: ChecksumClaim | None, peer: str | None
    ) -> Patched:
        """Append the body at `offset`; every byte that arrived is kept, also when the client leaves."""
        self._check_offset(offset, await self.offset(upload), evicting=True)
        if upload.state is UploadState.FINISHED:
            return Patched(upload, upload.length_bytes, await self._verdict(upload, peer))
        async with self._locks.take(upload.upload_id, body.stop):
            upload = await self._again(upload)
            stored = await self.offset(upload, holding=True)
            self._check_offset(offset, stored)
            upload = await self._receive(upload, stored, body, claim, peer)
            if upload.offset_bytes < upload.length_bytes:
                return Patched(upload, upload.offset_bytes)
            return Patched(upload, upload.length_bytes, await self._complete(upload, peer))

    def _check_offset(self, offset: int, stored: int, *, evicting: bool = False) -> None:
        # before the lock only what is surely wrong: a running writer may still bring the bytes in between
        if offset < stored or (offset != stored and not evicting):
            raise RequestError("offset_mismatch", f"the stored offset is {stored}", upload_offset=stored)

    async def _receive(
        self, upload: UploadRecord, start: int, body: UploadBody, claim: ChecksumClaim | None, peer: str | None
    ) -> UploadRecord:
        """Take the body in durable segments and note the transfer, whatever ends it."""
        began, outcome = time.monotonic(), "interrupted"
        before = start
        try:
            while not body.ended:
                upload = await self._segment(upload, start, body, claim)
                start = upload.offset_bytes
            outcome = "complete"
            return upload
        except (AppError, StorageError) as error:
            outcome = error.code
            if isinstance(error, Conflict | NotFound):
                # the session was cancelled or failed while the bytes came
                raise await self._policy.refusal(await self._again(upload)) or error from error
            if not isinstance(error, FlushFailed):
                start = await self._keep(upload)
            if isinstance(error, NoSpace):
                raise RequestError("insufficient_storage", "what arrived is kept", retry_after_s=60) from error
            if isinstance(error, FlushFailed):
                await self._lose(upload, SessionFailure("STAGING_LOST"))
            raise
        finally:
            detail = {
                "upload_id": upload.upload_id, "offset_before": before, "offset_after": start,
                "bytes_read": body.bytes_read, "duration_ms": round(1000 * (time.monotonic() - began))}
            entry = AuditEntry(upload.site, "upload.transfer", upload.principal, upload.session_id, peer, outcome,
                               detail)
            await self._store.write(lambda tx: audit.append(tx, entry))

    async def _segment(
        self, upload: UploadRecord, start: int, body: UploadBody, claim: ChecksumClaim | None
    ) -> UploadRecord:
        key = staging(upload.site, upload.upload_id)
        if claim is None:
            async with aclosing(body.segment()) as chunks:
                durable = await self._store.blobs.append(key, start, chunks)
        else:
            durable = await self._verified(upload, key, start, body, claim)
        return await self._note(upload, durable)

    async def _verified(
        self, upload: UploadRecord, key: BlobKey, start: int, body: UploadBody, claim: ChecksumClaim
    ) -> int:
        """A chunk with Upload-Checksum waits aside until it is verified: unverified bytes never move the offset."""
        aside, digest, size = staging(upload.site, f"{upload.upload_id}.chunk"), RunningDigest(claim.algorithm), 0
        await self._store.blobs.delete(aside)
        await self._store.blobs.create(aside)
        try:
            while not body.ended:
                async with aclosing(body.segment()) as chunks:
                    size = await self._store.blobs.append(aside, size, digest.over(chunks))
            if not hmac.compare_digest(digest.digest(), claim.digest):
                raise RequestError("chunk_checksum_mismatch")
            return await self._store.blobs.append(key, start, self._store.blobs.read(aside))
        finally:
            await self._store.blobs.delete(aside)

    async def _keep(self, upload: UploadRecord) -> int:
        """After an interruption: flush what arrived and note it, so that it counts after a reboot too."""
        key = staging(upload.site, upload.upload_id)
        size = await self._store.blobs.size(key)
        if size > upload.offset_bytes:
            try:
                await self._store.blobs.append(key, size, _nothing())
                await self._note(upload, size)
            except (FlushFailed, NoSpace, Conflict) as error:
                # the bytes are in the page cache and survive kill -9: the offset stays true on this boot
                log.warning("upload.not_flushed", upload_id=upload.upload_id, reason=str(error))
        return size

    async def _note(self, upload: UploadRecord, durable: int) -> UploadRecord:
        expires_at, boot = timestamp(now() + self._expires_after), boot_id()

        def unit(tx: Connection) -> UploadRecord:
            uploads.advance(tx, upload.upload_id, upload.offset_bytes, durable, boot, expires_at)
            return uploads.get(tx, upload.upload_id)

        return await self._store.write(unit)

    async def _survived(self, upload: UploadRecord) -> int:
        key = staging(upload.site, upload.upload_id)
        try:
            size = await self._store.blobs.size(key)
        except NotFound:
            size = -1
        if size < upload.offset_bytes:
            present = await self._again(upload)
            if present.state is not UploadState.OPEN:
                # it ended since its row was read: staged bytes go only after the row says so
                return await self.offset(present)
            await self._lose(upload, SessionFailure("STAGING_LOST"))
        if upload.boot_id == boot_id() or size == upload.offset_bytes:
            return size
        if isinstance(self._store.blobs, Truncates):
            await self._store.blobs.truncate(key, upload.offset_bytes)
        return upload.offset_bytes

    async def _lose(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """End the upload for good and say so. Always raises RequestError `gone`."""
        await self._policy.failed(upload, failure)
        refusal = await self._policy.refusal(await self._again(upload))
        raise refusal or RequestError("gone", failure.title, session_id=upload.session_id)

    async def _again(self, upload: UploadRecord) -> UploadRecord:
        return await self._store.read(lambda tx: uploads.get(tx, upload.upload_id))

    # --- the end ------------------------------------------------------------------------------------

    async def complete(self, upload_id: str, peer: str | None) -> Verdict | None:
        """Finish an upload whose bytes are all there, or ingest a finished one again. Idempotent."""
        upload = await self._store.read(lambda tx: uploads.get(tx, upload_id))
        if upload.state is UploadState.FINISHED:
            return await self._verdict(upload, peer)
        async with self._locks.take(upload_id, stop=lambda: None):
            upload = await self._again(upload)
            if upload.state is UploadState.FINISHED:
                return await self._verdict(upload, peer)
            if await self.offset(upload, holding=True) != upload.length_bytes:
                return None
            return await self._complete(upload, peer)

    async def _complete(self, upload: UploadRecord, peer: str | None) -> Verdict | None:
        key = staging(upload.site, upload.upload_id)
        expected = await self._policy.expected_sha256(upload)
        try:
            content = await self._store.blobs.seal(key, Sha256(expected) if expected else None)
        except DigestMismatch:
            await self._policy.failed(upload, SessionFailure("CHECKSUM_MISMATCH"))
            raise SessionFailure("CHECKSUM_MISMATCH", session_id=upload.session_id) from None
        except NoSpace:
            await self._policy.failed(upload, SessionFailure("STORAGE_FULL"))
            raise
        try:
            verdict = await self._policy.finished(upload, content, peer)
        except Conflict:
            refusal = await self._policy.refusal(await self._again(upload))
            raise refusal or RequestError("upload_stopped") from None
        await self._store.blobs.delete(key)
        return verdict

    async def _verdict(self, upload: UploadRecord, peer: str | None) -> Verdict | None:
        assert upload.blob_sha256 is not None, "a finished upload has its blob"
        digest = Sha256(upload.blob_sha256)
        content = Sealed(sealed(upload.site, digest), digest, upload.length_bytes, existed=True)
        return await self._policy.finished(upload, content, peer)

    async def delete(self, upload: UploadRecord, who: Principal) -> None:
        """Terminate (termination extension): whoever writes is asked to leave first."""
        async with self._locks.take(upload.upload_id, stop=lambda: None):
            upload = await self._again(upload)
            if upload.state is UploadState.GONE:
                raise RequestError("gone", session_id=upload.session_id)
            await self._policy.terminated(upload, who)

    async def recover(self) -> None:
        """At start, when nobody writes: finish uploads whose last byte came before a crash.

        What is staged for nobody is freed.
        The bytes of an upload that is STAGING_LOST stay: a retry begins with their good prefix.
        """
        if isinstance(self._store.blobs, Lists):
            async for key in self._store.blobs.keys("staging"):
                owner = await self._store.read(lambda tx, key=key: uploads.find(tx, key.name))  # type: ignore[misc]
                if owner is None or (owner.state is not UploadState.OPEN and owner.gone_reason != "STAGING_LOST"):
                    await self._store.blobs.delete(key)
        for upload in await self._store.read(uploads.unfinished):
            try:
                if await self.offset(upload) == upload.length_bytes:
                    await self.complete(upload.upload_id, None)
            except (AppError, StorageError) as error:
                log.warning("upload.recovery", upload_id=upload.upload_id, code=error.code)

    async def expire(self) -> None:
        """End every open upload whose time is over, but those that are being written to."""
        for upload in await self._store.read(lambda tx: uploads.expired(tx, timestamp())):
            if not self._locks.is_held(upload.upload_id):
                await self._policy.failed(upload, SessionFailure("UPLOAD_EXPIRED"))


async def _nothing() -> AsyncIterator[bytes]:
    """Nothing to append: `append` only flushes."""
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk
