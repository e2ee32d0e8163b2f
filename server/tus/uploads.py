"""What can be done with an upload: append, tell its offset, complete, join, delete. Owns staged bytes' offsets.

Facts: the size of the staged file is the offset, for it survives `kill -9`; after a reboot only what was
flushed, and noted in the row, counts. Bytes are flushed and noted at least every 64 MiB or 5 s. A row that was
read before its lock was taken may be stale: it is read again.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
from sqlalchemy import Connection

from server.admission import UploadPolicy, Verdict
from server.auth import Principal
from server.errors import AppError, RequestError, SessionFailure
from server.tus.body import UploadBody
from server.tus.finishing import Finisher, nothing_first
from server.tus.locks import UploadLocks
from server.tus.receiving import Receiver, Terms, Transfer
from server.tus.rows import Seen, UploadRows, alive
from storage import audit, uploads
from storage.blobs.base import Lists, Truncates, boot_id, staging
from storage.errors import Conflict, FlushFailed, NoSpace, NotFound, StorageError
from storage.records import UploadRecord, UploadState, now, timestamp
from storage.store import Store

log = structlog.get_logger()
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_S = 5.0
STOPPED = ("upload_interrupted", "upload_stopped", "read_timeout", "server_shutdown")
"""How a body may end early through no fault of its own."""
PARTS_KEPT = timedelta(days=1)
"""How long the parts of a concatenation stay once their final upload is done."""


@dataclass(frozen=True, slots=True)
class Patched:
    """Where an upload stands; `verdict` once it is finished and known."""

    upload: UploadRecord
    offset: int
    verdict: Verdict | None = None



class Uploads:
    """The use cases on uploads. Raises AppError and storage.errors."""

    def __init__(
        self, store: Store, policy: UploadPolicy, locks: UploadLocks, expires_after: timedelta, max_size_bytes: int
    ) -> None:
        self._store = store
        self._policy = policy
        self._locks = locks
        self._max_size_bytes = max_size_bytes
        self._rows = UploadRows(store, policy, expires_after)
        self._receiver = Receiver(store, self._rows)
        self._finisher = Finisher(store, policy, self._rows, max_size_bytes)

    async def find(self, upload_id: str, who: Principal, *, reading: bool) -> UploadRecord:
        """The upload, if `who` may use it and it is alive. RequestError `not_found`, `forbidden`, `gone`."""

        def unit(tx: Connection) -> Seen:
            upload = uploads.find(tx, upload_id)
            if upload is None or upload.site != who.site:
                raise RequestError("not_found", "there is no such upload")
            self._policy.authorize(tx, upload, who, reading=reading)
            return Seen(upload, self._policy.standing(tx, upload))

        return alive(self._store.glance(unit)).upload

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
            present = (await self._rows.look(upload)).upload
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
                upload = alive(await self._rows.look(upload)).upload
                return upload, await self.offset(upload)
        return upload, await self.offset(upload)

    async def settled_whole(self, upload: UploadRecord, peer: str | None) -> tuple[UploadRecord, int]:
        """Like `settled`; an upload whose last byte was taken by a process that died is finished now."""
        upload, offset = await self.settled(upload)
        if upload.state is UploadState.OPEN and offset == upload.length_bytes and not upload.is_partial:
            try:
                await self.complete(upload.upload_id, peer)
            except SessionFailure:
                log.info("upload.finish_refused", upload_id=upload.upload_id)  # its session tells why: 410 below
            return await self.settled(alive(await self._rows.look(upload)).upload)
        return upload, offset

    async def _is_whole(self, seen: Seen) -> bool:
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
            return await self._finished_again(await self._rows.look(upload), body, terms)
        async with self._locks.take(upload.upload_id, body.stop):
            seen = await self._rows.begin(upload, terms.peer)
            stored = await self.offset(seen.upload)
            _check_offset(offset, stored)
            if seen.upload.state is UploadState.FINISHED:
                return await self._finished_again(seen, body, terms)
            upload = await self._sized(seen.upload, stored, body, terms)
            return await self._append(replace(seen, upload=upload), stored, body, terms)

    async def _finished_again(self, seen: Seen, body: UploadBody, terms: Terms) -> Patched:
        if terms.ends is not None and body.declared_bytes != 0:
            raise RequestError("completed_upload")  # RUFH §4.4: a complete upload is not changed
        return Patched(seen.upload, await self.offset(seen.upload), await self._finisher.verdict(seen, terms.peer))

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

    async def _append(self, seen: Seen, start: int, body: UploadBody, terms: Terms) -> Patched:
        """Take the body, note the transfer whatever ends it, and complete the upload where this was the last."""
        transfer = Transfer(seen.upload, start, terms.peer, body)
        try:
            upload, end = await self._receiver.receive(seen.upload, start, body, terms)
        except (AppError, StorageError) as error:
            failure = await self._interrupted(seen.upload, transfer, error)
            seen = await self._rows.look(seen.upload)
            if terms.ends is not None or failure.code not in STOPPED or not await self._is_whole(seen):
                raise failure from error
            # stopped after its last byte: a client that finds the offset at the end takes the upload for done
            verdict = await self._finisher.finish(seen, terms.peer, nothing_first)
            return Patched(replace(seen.upload, state=UploadState.FINISHED), seen.upload.offset_bytes, verdict)
        upload = await self._ended(upload, end, terms)
        entry = transfer.entry(end, "complete")
        complete = end == upload.length_bytes if terms.ends is None else terms.ends
        if not complete or upload.is_partial:
            upload = await self._store.write(self._rows.progress(upload, end, entry))
            if end == upload.length_bytes:
                await self._finals(upload, terms.peer)
            return Patched(upload, end)

        def first(tx: Connection) -> None:
            audit.append(tx, entry)

        verdict = await self._finisher.finish(replace(seen, upload=upload), terms.peer, first)
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

    async def _interrupted(
        self, upload: UploadRecord, transfer: Transfer, error: AppError | StorageError
    ) -> AppError | StorageError:
        """Keep what arrived, note the transfer, and give the error to answer with."""
        if isinstance(error, FlushFailed):
            await self._rows.note(transfer.entry(transfer.start, error.code))
            return await self._rows.lost(upload, SessionFailure("STAGING_LOST"))
        size = await self._store.blobs.size(staging(upload.site, upload.upload_id))
        entry = transfer.entry(size, error.code)
        seen = await self._rows.look(upload)
        if seen.standing.refusal is not None:
            await self._rows.note(entry)
            return seen.standing.refusal
        try:
            await self._store.blobs.append(staging(upload.site, upload.upload_id), size, _nothing())
            await self._store.write(self._rows.progress(seen.upload, size, entry))
        except (FlushFailed, NoSpace, Conflict, NotFound) as failure:
            # the bytes are in the page cache and survive kill -9: the offset stays true on this boot
            log.warning("upload.not_flushed", upload_id=upload.upload_id, reason=str(failure))
        if isinstance(error, NoSpace):
            return RequestError("insufficient_storage", "what arrived is kept", retry_after_s=60, upload_offset=size)
        return error

    async def _lose(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """End the upload for good and say so. Always raises RequestError `gone`."""
        raise await self._rows.lost(upload, failure)

    # --- the end ------------------------------------------------------------------------------------

    async def complete(self, upload_id: str, peer: str | None) -> Verdict | None:
        """Finish an upload whose bytes are all there, or ingest a finished one again. Idempotent."""
        upload = await self._store.read(lambda tx: uploads.get(tx, upload_id))
        if upload.state is UploadState.FINISHED:
            return await self._finisher.verdict(await self._rows.look(upload), peer)
        async with self._locks.take(upload_id, stop=_nobody):
            seen = await self._rows.begin(upload, peer)
            if seen.upload.state is UploadState.FINISHED:
                return await self._finisher.verdict(seen, peer)
            if seen.upload.is_final:
                return await self._concatenate(seen, peer)
            if seen.upload.is_partial or await self.offset(seen.upload) != seen.upload.length_bytes:
                return None
            key = staging(seen.upload.site, seen.upload.upload_id)
            await self._store.blobs.append(key, seen.upload.length_bytes, _nothing())  # a file of no bytes is one too
            return await self._finisher.finish(seen, peer, nothing_first)

    async def _finals(self, part: UploadRecord, peer: str | None) -> None:
        """A part is complete: so may be the final uploads that wait for it (concatenation-unfinished)."""
        for final_id in await self._store.read(lambda tx: uploads.finals_of(tx, part.upload_id)):
            try:
                await self.complete(final_id, peer)
            except (AppError, StorageError) as error:
                # the part itself is well: its sender's answer must not tell of the final upload's trouble
                log.warning("upload.concatenation", upload_id=final_id, code=error.code)

    async def _concatenate(self, seen: Seen, peer: str | None) -> Verdict | None:
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
            return self._rows.progress(uploads.get(tx, final.upload_id), length)(tx)

        upload = await self._store.write(unit)
        return await self._finisher.finish(replace(seen, upload=upload), peer, nothing_first)

    async def _content_of(self, parts: list[UploadRecord]) -> AsyncIterator[bytes]:
        for part in parts:
            if part.length_bytes:
                async for chunk in self._store.blobs.read(staging(part.site, part.upload_id)):
                    yield chunk

    async def delete(self, upload: UploadRecord, who: Principal) -> None:
        """Terminate (termination extension): whoever writes is asked to leave first."""
        async with self._locks.take(upload.upload_id, stop=_nobody):
            upload = (await self._rows.look(upload)).upload
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


def _check_offset(offset: int, stored: int, *, evicting: bool = False) -> None:
    # before the lock only what is surely wrong: a running writer may still bring the bytes in between
    if offset < stored or (offset != stored and not evicting):
        raise RequestError("offset_mismatch", f"the stored offset is {stored}", upload_offset=stored,
                           provided_offset=offset)


def _nobody(_code: str) -> None:
    """There is nobody to stop: the lock is held for a moment only."""


async def _nothing() -> AsyncIterator[bytes]:
    """Nothing to append: `append` only flushes."""
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk
