"""What can be done with an upload: append, tell its offset, complete, delete. Owns staged bytes' offsets.

Facts: the size of the staged file is the offset, for it survives `kill -9`; after a reboot only what was
flushed, and noted in the row, counts. Bytes are flushed and noted at least every 64 MiB or 5 s. A row that was
read before its lock was taken may be stale: it is read again.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
from sqlalchemy import Connection

from server.admission import Standing, UploadPolicy, Verdict
from server.auth import Principal
from server.errors import AppError, RequestError, SessionFailure
from server.tus.body import UploadBody
from server.tus.checksum import RunningDigest
from server.tus.locks import UploadLocks
from server.tus.protocol import ChecksumClaim
from server.tus.representation import decoded
from storage import audit, uploads
from storage.blobs.base import BlobKey, Lists, Receives, Sealed, Truncates, boot_id, sealed, staging
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound, StorageError
from storage.records import AuditEntry, Sha256, UploadRecord, UploadState, now, timestamp
from storage.store import Store

log = structlog.get_logger()
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_S = 5.0
STOPPED = ("upload_interrupted", "upload_stopped", "read_timeout", "server_shutdown")
"""How a body may end early through no fault of its own."""
PARTS_KEPT = timedelta(days=1)
"""How long the parts of a concatenation stay once their final upload is done."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What one request says of its body.

    `ends`: whether the upload is complete with it; None (tus) where that is told by the length. `length_bytes`:
    the length of the whole, told now. `claims`: digests of this body. `on_durable` hears of offsets on the medium.
    """

    peer: str | None = None
    claims: tuple[ChecksumClaim, ...] = ()
    length_bytes: int | None = None
    ends: bool | None = None
    on_durable: Callable[[int], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Patched:
    """Where an upload stands; `verdict` once it is finished and known."""

    upload: UploadRecord
    offset: int
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """An upload as its row and its session told it in one read."""

    upload: UploadRecord
    standing: Standing


class Uploads:
    """The use cases on uploads. Raises AppError and storage.errors."""

    def __init__(
        self, store: Store, policy: UploadPolicy, locks: UploadLocks, expires_after: timedelta, max_size_bytes: int
    ) -> None:
        self._store = store
        self._policy = policy
        self._locks = locks
        self._expires_after = expires_after
        self._max_size_bytes = max_size_bytes

    async def find(self, upload_id: str, who: Principal, *, reading: bool) -> UploadRecord:
        """The upload, if `who` may use it and it is alive. RequestError `not_found`, `forbidden`, `gone`."""

        def unit(tx: Connection) -> _Seen:
            upload = uploads.find(tx, upload_id)
            if upload is None or upload.site != who.site:
                raise RequestError("not_found", "there is no such upload")
            self._policy.authorize(tx, upload, who, reading=reading)
            return _Seen(upload, self._policy.standing(tx, upload))

        return _alive(await self._store.read(unit)).upload

    async def parts_of(self, upload: UploadRecord) -> list[UploadRecord]:
        """The parts of a final upload, in order."""
        return await self._store.read(lambda tx: uploads.parts(tx, upload.upload_id))

    def room(self, upload: UploadRecord, offset: int) -> int:
        """How many bytes the upload can still take from `offset` on."""
        limit = self._max_size_bytes if upload.length_bytes is None else upload.length_bytes
        return max(0, limit - offset)

    async def offset(self, upload: UploadRecord) -> int:
        """How many bytes are held. RequestError `gone` (contract §5); never waits for a lock."""
        if upload.state is UploadState.FINISHED:
            assert upload.length_bytes is not None, "it is known at the finish"
            return upload.length_bytes
        key = staging(upload.site, upload.upload_id)
        size = await self._store.blobs.size(key)
        if size < upload.offset_bytes:
            present = (await self._look(upload)).upload
            if present.state is not UploadState.OPEN:
                # it ended since its row was read: staged bytes go only after the row says so
                return await self.offset(present)
            await self._lose(upload, SessionFailure("STAGING_LOST"))
        if upload.boot_id == boot_id() or size == upload.offset_bytes:
            return size
        if isinstance(self._store.blobs, Truncates):
            await self._store.blobs.truncate(key, upload.offset_bytes)
        return upload.offset_bytes

    async def settled(self, upload: UploadRecord) -> tuple[UploadRecord, int]:
        """The upload and its offset after whoever still writes was asked to leave (contract §5): the last word."""
        if upload.state is UploadState.OPEN:
            async with self._locks.take(upload.upload_id, stop=_nobody):
                upload = _alive(await self._look(upload)).upload
                return upload, await self.offset(upload)
        return upload, await self.offset(upload)

    async def settled_whole(self, upload: UploadRecord, peer: str | None) -> tuple[UploadRecord, int]:
        """Like `settled`; an upload whose last byte was taken by a process that died is finished now."""
        upload, offset = await self.settled(upload)
        if upload.state is UploadState.OPEN and offset == upload.length_bytes and not upload.is_partial:
            await self.complete(upload.upload_id, peer)
            return await self.settled((await self._look(upload)).upload)
        return upload, offset

    async def _is_whole(self, seen: _Seen) -> bool:
        """Whether every byte is there and only the finish is missing."""
        upload = seen.upload
        if seen.standing.refusal is not None or upload.state is not UploadState.OPEN or upload.session_id is None:
            return False
        return not upload.is_final and await self.offset(upload) == upload.length_bytes

    # --- bytes --------------------------------------------------------------------------------------

    async def append(self, upload: UploadRecord, offset: int, body: UploadBody, terms: Terms) -> Patched:
        """Append the body at `offset`; every byte that arrived is kept, also when the client leaves."""
        if upload.is_final:
            raise RequestError("final_upload")
        is_open = upload.state is UploadState.OPEN
        _check_offset(offset, await self.offset(upload), evicting=is_open)
        if not is_open:
            return await self._finished_again(await self._look(upload), body, terms)
        async with self._locks.take(upload.upload_id, body.stop):
            seen = _alive(await self._look(upload))
            stored = await self.offset(seen.upload)
            _check_offset(offset, stored)
            if seen.upload.state is UploadState.FINISHED:
                return await self._finished_again(seen, body, terms)
            upload = await self._sized(seen.upload, stored, body, terms)
            return await self._append(replace(seen, upload=upload), stored, body, terms)

    async def _finished_again(self, seen: _Seen, body: UploadBody, terms: Terms) -> Patched:
        if terms.ends is not None and body.declared_bytes != 0:
            raise RequestError("completed_upload")  # RUFH §4.4: a complete upload is not changed
        return Patched(seen.upload, await self.offset(seen.upload), await self._verdict(seen, terms.peer))

    async def _sized(self, upload: UploadRecord, stored: int, body: UploadBody, terms: Terms) -> UploadRecord:
        """Take the length that this request tells, or that its end implies."""
        length = terms.length_bytes
        if length is None and terms.ends and upload.length_bytes is None and body.declared_bytes is not None:
            length = stored + body.declared_bytes
        if length is None or length == upload.length_bytes:
            return upload
        if upload.length_bytes is not None or length < stored:
            raise RequestError("inconsistent_upload_length")
        known = length

        def unit(tx: Connection) -> UploadRecord:
            self._policy.sized(tx, upload, known)
            return uploads.get(tx, upload.upload_id)

        return await self._store.write(unit)

    async def _append(self, seen: _Seen, start: int, body: UploadBody, terms: Terms) -> Patched:
        """Take the body, note the transfer whatever ends it, and complete the upload where this was the last."""
        transfer = _Transfer(seen.upload, start, terms.peer, body)
        try:
            upload, end = await self._receive(seen.upload, start, body, terms)
        except (AppError, StorageError) as error:
            failure = await self._interrupted(seen.upload, transfer, error)
            seen = await self._look(seen.upload)
            if terms.ends is not None or failure.code not in STOPPED or not await self._is_whole(seen):
                raise failure from error
            # stopped after its last byte: a client that finds the offset at the end takes the upload for done
            verdict = await self._complete(seen, terms.peer, _nothing_first)
            return Patched(replace(seen.upload, state=UploadState.FINISHED), seen.upload.offset_bytes, verdict)
        upload = await self._ended(upload, end, terms)
        entry = transfer.entry(end, "complete")
        complete = end == upload.length_bytes if terms.ends is None else terms.ends
        if not complete or upload.is_partial:
            upload = await self._store.write(self._progress(upload, end, entry))
            if end == upload.length_bytes:
                await self._finals(upload, terms.peer)
            return Patched(upload, end)

        def first(tx: Connection) -> None:
            audit.append(tx, entry)

        verdict = await self._complete(replace(seen, upload=upload), terms.peer, first)
        return Patched(replace(upload, offset_bytes=end, state=UploadState.FINISHED), end, verdict)

    async def _ended(self, upload: UploadRecord, end: int, terms: Terms) -> UploadRecord:
        """With RUFH's Upload-Complete the end tells the length, or must agree with it."""
        if not terms.ends or end == upload.length_bytes:
            return upload
        if upload.length_bytes is not None:
            raise RequestError("inconsistent_upload_length", f"{end} of {upload.length_bytes} bytes are here",
                               upload_offset=end)

        def unit(tx: Connection) -> UploadRecord:
            self._policy.sized(tx, upload, end)
            return uploads.get(tx, upload.upload_id)

        return await self._store.write(unit)

    async def _receive(
        self, upload: UploadRecord, start: int, body: UploadBody, terms: Terms
    ) -> tuple[UploadRecord, int]:
        """The body into the staged file: by threads where it is long, else through the loop."""
        key = staging(upload.site, upload.upload_id)
        if terms.claims:
            return upload, await self._verified(upload, key, start, body, terms.claims)
        if isinstance(self._store.blobs, Receives) and await body.open_socket():
            return await self._receive_long(self._store.blobs, upload, key, start, body, terms)
        declared = body.declared_bytes
        seals_at_once = terms.ends is None and declared is not None and start + declared == upload.length_bytes
        end = start
        async with aclosing(body.chunks()) as chunks:
            segments = _Segments(chunks)
            while not segments.ended:
                end = await self._store.blobs.append(key, end, segments.next(), flush=not seals_at_once)
                if not segments.ended:
                    upload = await self._store.write(self._progress(upload, end))
                    await _tell(terms, end)
        return upload, end

    async def _receive_long(
        self, blobs: Receives, upload: UploadRecord, key: BlobKey, start: int, body: UploadBody, terms: Terms
    ) -> tuple[UploadRecord, int]:
        durable: asyncio.Queue[int | None] = asyncio.Queue()

        async def note() -> UploadRecord:
            noted = upload
            try:
                while (size := await durable.get()) is not None:
                    noted = await self._store.write(self._progress(noted, size))
                    await _tell(terms, size)
            except StorageError:
                body.stop("upload_stopped")  # the session was cancelled or failed while the bytes came
                raise
            return noted

        noting = asyncio.ensure_future(note())
        try:
            end = await blobs.receive(key, start, body.read, durable.put_nowait)
        finally:
            body.close_socket()
            durable.put_nowait(None)
            upload = await noting
        return upload, end

    async def _verified(
        self, upload: UploadRecord, key: BlobKey, start: int, body: UploadBody, claims: tuple[ChecksumClaim, ...]
    ) -> int:
        """A body with a digest waits aside until it is verified: unverified bytes never move the offset."""
        aside = staging(upload.site, f"{upload.upload_id}.chunk")
        digests = [RunningDigest(claim.algorithm) for claim in claims]
        await self._store.blobs.delete(aside)
        try:
            async with aclosing(body.chunks()) as chunks:
                source: AsyncIterator[bytes] = chunks
                for digest in digests:
                    source = digest.over(source)
                await self._store.blobs.append(aside, 0, source, flush=False)
            for digest, claim in zip(digests, claims, strict=True):
                if not hmac.compare_digest(digest.digest(), claim.digest):
                    raise RequestError("chunk_checksum_mismatch")
            return await self._store.blobs.append(key, start, self._store.blobs.read(aside))
        finally:
            await self._store.blobs.delete(aside)

    async def _interrupted(
        self, upload: UploadRecord, transfer: "_Transfer", error: AppError | StorageError
    ) -> AppError | StorageError:
        """Keep what arrived, note the transfer, and give the error to answer with."""
        if isinstance(error, FlushFailed):
            await self._note_transfer(transfer.entry(transfer.start, error.code))
            return await self._lost(upload, SessionFailure("STAGING_LOST"))
        size = await self._store.blobs.size(staging(upload.site, upload.upload_id))
        entry = transfer.entry(size, error.code)
        seen = await self._look(upload)
        if seen.standing.refusal is not None:
            await self._note_transfer(entry)
            return seen.standing.refusal
        try:
            await self._store.blobs.append(staging(upload.site, upload.upload_id), size, _nothing())
            await self._store.write(self._progress(seen.upload, size, entry))
        except (FlushFailed, NoSpace, Conflict, NotFound) as failure:
            # the bytes are in the page cache and survive kill -9: the offset stays true on this boot
            log.warning("upload.not_flushed", upload_id=upload.upload_id, reason=str(failure))
        if isinstance(error, NoSpace):
            return RequestError("insufficient_storage", "what arrived is kept", retry_after_s=60, upload_offset=size)
        return error

    async def _note_transfer(self, entry: AuditEntry) -> None:
        await self._store.write(lambda tx: audit.append(tx, entry))

    def _progress(
        self, upload: UploadRecord, durable: int, entry: AuditEntry | None = None
    ) -> Callable[[Connection], UploadRecord]:
        """A unit of work: `durable` bytes are on the medium, and the transfer that brought them."""
        expires_at, boot = timestamp(now() + self._expires_after), boot_id()

        def unit(tx: Connection) -> UploadRecord:
            uploads.advance(tx, upload.upload_id, upload.offset_bytes, durable, boot, expires_at)
            if entry is not None:
                audit.append(tx, entry)
            return replace(upload, offset_bytes=durable, boot_id=boot, expires_at=expires_at)

        return unit

    async def _lose(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """End the upload for good and say so. Always raises RequestError `gone`."""
        raise await self._lost(upload, failure)

    async def _lost(self, upload: UploadRecord, failure: SessionFailure) -> AppError:
        await self._policy.failed(upload, failure)
        refusal = (await self._look(upload)).standing.refusal
        return refusal or RequestError("gone", failure.title, session_id=upload.session_id)

    async def _look(self, upload: UploadRecord) -> _Seen:
        def unit(tx: Connection) -> _Seen:
            present = uploads.get(tx, upload.upload_id)
            return _Seen(present, self._policy.standing(tx, present))

        return await self._store.read(unit)

    # --- the end ------------------------------------------------------------------------------------

    async def complete(self, upload_id: str, peer: str | None) -> Verdict | None:
        """Finish an upload whose bytes are all there, or ingest a finished one again. Idempotent."""
        upload = await self._store.read(lambda tx: uploads.get(tx, upload_id))
        if upload.state is UploadState.FINISHED:
            return await self._verdict(await self._look(upload), peer)
        async with self._locks.take(upload_id, stop=_nobody):
            seen = _alive(await self._look(upload))
            if seen.upload.state is UploadState.FINISHED:
                return await self._verdict(seen, peer)
            if seen.upload.is_final:
                return await self._concatenate(seen, peer)
            if seen.upload.is_partial or await self.offset(seen.upload) != seen.upload.length_bytes:
                return None
            key = staging(seen.upload.site, seen.upload.upload_id)
            await self._store.blobs.append(key, seen.upload.length_bytes, _nothing())  # a file of no bytes is one too
            return await self._complete(seen, peer, _nothing_first)

    async def _finals(self, part: UploadRecord, peer: str | None) -> None:
        """A part is complete: so may be the final uploads that wait for it (concatenation-unfinished)."""
        for final_id in await self._store.read(lambda tx: uploads.finals_of(tx, part.upload_id)):
            try:
                await self.complete(final_id, peer)
            except (AppError, StorageError) as error:
                # the part itself is well: its sender's answer must not tell of the final upload's trouble
                log.warning("upload.concatenation", upload_id=final_id, code=error.code)

    async def _concatenate(self, seen: _Seen, peer: str | None) -> Verdict | None:
        """Join the parts once all are complete. The lock of the final upload is held."""
        final = seen.upload
        parts = await self.parts_of(final)
        if any(part.length_bytes is None or part.offset_bytes != part.length_bytes for part in parts):
            return None
        length, key = sum(part.length_bytes or 0 for part in parts), staging(final.site, final.upload_id)
        await self._store.blobs.delete(key)
        size = await self._store.blobs.append(key, 0, self._content_of(parts))
        if size != length:
            raise RequestError("gone", "a part is gone")

        def unit(tx: Connection) -> UploadRecord:
            if final.length_bytes is None:
                self._policy.sized(tx, final, length)
            uploads.shorten(tx, [part.upload_id for part in parts], timestamp(now() + PARTS_KEPT))
            return self._progress(uploads.get(tx, final.upload_id), length)(tx)

        upload = await self._store.write(unit)
        return await self._complete(replace(seen, upload=upload), peer, _nothing_first)

    async def _content_of(self, parts: list[UploadRecord]) -> AsyncIterator[bytes]:
        for part in parts:
            if part.length_bytes:
                async for chunk in self._store.blobs.read(staging(part.site, part.upload_id)):
                    yield chunk

    async def _complete(self, seen: _Seen, peer: str | None, first: Callable[[Connection], None]) -> Verdict | None:
        upload, standing = seen.upload, seen.standing
        key = staging(upload.site, upload.upload_id)
        try:
            await self._check_repr_digest(upload, key)
            content = await self._sealed(upload, standing, key)
        except SessionFailure as failure:
            await self._store.write(first)
            await self._policy.failed(upload, failure)
            raise SessionFailure(failure.code, failure.detail, session_id=upload.session_id) from None
        except NoSpace:
            await self._store.write(first)
            await self._policy.failed(upload, SessionFailure("STORAGE_FULL"))
            raise
        except (FlushFailed, NotFound):
            await self._store.write(first)
            raise await self._lost(upload, SessionFailure("STAGING_LOST")) from None
        try:
            assert standing.session is not None, "parts have none, and are never completed"
            verdict = await self._policy.finished(upload, standing.session, content, peer, first)
        except Conflict:
            raise (await self._look(upload)).standing.refusal or RequestError("upload_stopped") from None
        self._store.blobs.discard(key)
        return verdict

    async def _sealed(self, upload: UploadRecord, standing: Standing, key: BlobKey) -> Sealed:
        expected = Sha256(standing.checksum_sha256) if standing.checksum_sha256 else None
        plain = key
        try:
            if upload.content_encoding is not None:
                plain = staging(upload.site, f"{upload.upload_id}.decoded")
                await self._store.blobs.delete(plain)
                limit = self._max_size_bytes if standing.file_size is None else standing.file_size
                size = await self._store.blobs.append(
                    plain, 0, decoded(upload.content_encoding, self._store.blobs.read(key), limit))
                if standing.file_size is not None and size != standing.file_size:
                    raise SessionFailure("SIZE_MISMATCH", f"{size} bytes came, {standing.file_size} were declared")
            return await self._store.blobs.seal(plain, expected)
        except DigestMismatch:
            raise SessionFailure("CHECKSUM_MISMATCH") from None
        finally:
            if plain != key:
                await self._store.blobs.delete(plain)

    async def _check_repr_digest(self, upload: UploadRecord, key: BlobKey) -> None:
        """Repr-Digest is over the representation as it came, with its content coding (RFC 9530 §3)."""
        if upload.repr_digest is None:
            return
        algorithm, _, wanted = upload.repr_digest.partition(":")
        digest = RunningDigest(algorithm)
        async for _chunk in digest.over(self._store.blobs.read(key)):
            continue
        if not hmac.compare_digest(digest.digest().hex(), wanted):
            raise SessionFailure("CHECKSUM_MISMATCH")

    async def _verdict(self, seen: _Seen, peer: str | None) -> Verdict | None:
        upload, session = seen.upload, seen.standing.session
        assert upload.blob_sha256 is not None and session is not None, "a finished upload has both"
        digest = Sha256(upload.blob_sha256)
        content = Sealed(sealed(upload.site, digest), digest, 0, existed=True)
        return await self._policy.finished(upload, session, content, peer, _nothing_first)

    async def delete(self, upload: UploadRecord, who: Principal) -> None:
        """Terminate (termination extension): whoever writes is asked to leave first."""
        async with self._locks.take(upload.upload_id, stop=_nobody):
            upload = (await self._look(upload)).upload
            if upload.state is UploadState.GONE:
                raise RequestError("gone", session_id=upload.session_id)
            await self._policy.terminated(upload, who)

    async def clean_staging(self) -> None:
        """At start, when nobody writes: free what is staged for nobody.

        The bytes of an upload that is STAGING_LOST stay: a retry begins with their good prefix.
        """
        if isinstance(self._store.blobs, Lists):
            async for key in self._store.blobs.keys("staging"):
                owner = await self._store.read(lambda tx, key=key: uploads.find(tx, key.name))  # type: ignore[misc]
                if owner is None or (owner.state is not UploadState.OPEN and owner.gone_reason != "STAGING_LOST"):
                    await self._store.blobs.delete(key)

    async def finish_left(self) -> None:
        """Finish uploads whose last byte came before a crash of the process that took it."""
        for upload in await self._store.read(uploads.unfinished):
            if self._locks.is_held(upload.upload_id):
                continue
            try:
                if not upload.is_partial and (upload.is_final or await self.offset(upload) == upload.length_bytes):
                    await self.complete(upload.upload_id, None)
            except (AppError, StorageError) as error:
                log.warning("upload.recovery", upload_id=upload.upload_id, code=error.code)

    async def expire(self, upload: UploadRecord) -> None:
        """End one upload whose time is over, unless it is being written to."""
        if not self._locks.is_held(upload.upload_id):
            await self._policy.failed(upload, SessionFailure("UPLOAD_EXPIRED"))


class _Transfer:
    """One body on its way, for the audit: from where, how long."""

    def __init__(self, upload: UploadRecord, start: int, peer: str | None, body: UploadBody) -> None:
        self._upload = upload
        self.start = start
        self._peer = peer
        self._body = body
        self._began_s = time.monotonic()

    def entry(self, end: int, outcome: str) -> AuditEntry:
        """The audit row of the transfer that ended at `end`."""
        detail = {
            "upload_id": self._upload.upload_id, "offset_before": self.start, "offset_after": end,
            "bytes_read": self._body.bytes_read, "duration_ms": round(1000 * (time.monotonic() - self._began_s))}
        return AuditEntry(self._upload.site, "upload.transfer", self._upload.principal,
                          self._upload.session_id or self._upload.upload_id, self._peer, outcome, detail)


class _Segments:
    """Cuts a stream where its bytes must be made durable (contract §2)."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.ended = False

    async def next(self) -> AsyncIterator[bytes]:
        """Chunks up to the next such point, or the end."""
        began, given = time.monotonic(), 0
        while given < SEGMENT_BYTES and time.monotonic() - began < SEGMENT_S:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self.ended = True
                return
            given += len(chunk)
            yield chunk


def _check_offset(offset: int, stored: int, *, evicting: bool = False) -> None:
    # before the lock only what is surely wrong: a running writer may still bring the bytes in between
    if offset < stored or (offset != stored and not evicting):
        raise RequestError("offset_mismatch", f"the stored offset is {stored}", upload_offset=stored,
                           provided_offset=offset)


async def _tell(terms: Terms, offset: int) -> None:
    if terms.on_durable is not None:
        await terms.on_durable(offset)


def _alive(seen: _Seen) -> _Seen:
    if seen.standing.refusal is not None:
        raise seen.standing.refusal
    return seen


def _nobody(_code: str) -> None:
    """There is nobody to stop: the lock is held for a moment only."""


def _nothing_first(_tx: Connection) -> None:
    """Nothing to note before the finish."""


async def _nothing() -> AsyncIterator[bytes]:
    """Nothing to append: `append` only flushes."""
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk
