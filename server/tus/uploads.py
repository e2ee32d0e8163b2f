"""What can be done with an upload: append, tell its offset, complete, delete. Owns staged bytes' offsets.

Facts: the size of the staged file is the offset, for it survives `kill -9`; after a reboot only what was
flushed, and noted in the row, counts. A row that was read before its lock was taken may be stale: who begins
takes the lock first where it is free, so that one look is enough, and looks twice where it is not.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import Connection

from server.admission import AdmitsUploads, LimitsUploads, NewUpload, Taken, UploadPolicy, Verdict
from server.auth import Principal, Role
from server.errors import AppError, RequestError, SessionFailure
from server.tus.body import UploadBody
from server.tus.finishing import Finisher, nothing_first
from server.tus.flushing import Flushes
from server.tus.joining import Joiner
from server.tus.locks import Stop, UploadLocks
from server.tus.receiving import Receiver, Terms, Transfer
from server.tus.rows import Seen, UploadRows, alive
from storage import audit, uploads
from storage.blobs.base import Piece, Truncates, boot_id, staging
from storage.errors import Conflict, FlushFailed, NoSpace, NotFound, StorageError
from storage.records import UploadRecord, UploadState
from storage.store import Store

log = structlog.get_logger()
STOPPED = ("upload_interrupted", "upload_stopped", "read_timeout", "server_shutdown")
"""How a body may end early through no fault of its own."""
Check = Callable[[UploadRecord], None]
"""Looks whether a request fits the upload that it names, before its body is read. RequestError."""


@dataclass(frozen=True, slots=True)
class Patched:
    """Where an upload stands; `verdict` once it is finished and known."""

    upload: UploadRecord
    offset: int
    verdict: Verdict | None = None


class Uploads:
    """The use cases on uploads. Raises AppError and storage.errors."""

    def __init__(
        self, store: Store, intake: AdmitsUploads, policy: UploadPolicy, limits: LimitsUploads, locks: UploadLocks,
        rows: UploadRows, receiver: Receiver, finisher: Finisher, joiner: Joiner, flushes: Flushes, max_size_bytes: int,
    ) -> None:
        self._store = store
        self._intake = intake
        self._policy = policy
        self._limits = limits
        self._locks = locks
        self._max_size_bytes = max_size_bytes
        self._rows = rows
        self._receiver = receiver
        self._finisher = finisher
        self._joiner = joiner
        self._flushes = flushes
        self._truncates = store.blobs if isinstance(store.blobs, Truncates) else None

    def find(self, upload_id: str, who: Principal, *, reading: bool) -> Seen:
        """The upload, if `who` may use it and it is alive. RequestError `not_found`, `forbidden`, `gone`."""

        def unit(tx: Connection) -> Seen:
            upload = uploads.find(tx, upload_id)
            if upload is None or upload.site != who.site:
                raise RequestError("not_found", "there is no such upload")
            if who.expired and upload.principal != who.name:
                raise RequestError("unauthorized", "the token has expired")
            return Seen(upload, self._policy.authorize(tx, upload, who, reading=reading))

        return alive(self._store.glance(unit))

    @asynccontextmanager
    async def _held(
        self, upload_id: str, who: Principal, stop: Stop | None, *, reading: bool,
        check: Callable[[UploadRecord], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Seen]:
        """The upload as it is while nobody else writes to it.

        Whoever writes is asked to leave only by one who may use the upload, for a request that passes `check`.
        """
        free = await self._locks.take_free(upload_id, stop)
        if free is not None:
            async with free:
                seen = self.find(upload_id, who, reading=reading)
                with _expiry_told(seen.upload):
                    yield seen
            return
        seen = self.find(upload_id, who, reading=reading)
        if seen.upload.state is not UploadState.OPEN:
            yield seen  # nothing on a finished upload waits for a lock
            return
        with _expiry_told(seen.upload):
            if check is not None:
                await check(seen.upload)
            async with await self._locks.take(upload_id, stop):
                yield alive(self._rows.look(seen.upload))

    def room(self, upload: UploadRecord, offset: int) -> int:
        """How many bytes the upload can still take from `offset` on."""
        limit = self._max_size_bytes if upload.length_bytes is None else upload.length_bytes
        return max(0, limit - offset)

    async def offset(self, upload: UploadRecord) -> int:
        """How many bytes are held. RequestError `gone` (contract §5); needs no lock, and changes no byte."""
        if upload.state is UploadState.FINISHED:
            assert upload.length_bytes is not None, "it is known at the finish"
            return upload.length_bytes
        held = await self._store.held_bytes(upload)
        if held < upload.offset_bytes:
            present = alive(self._rows.look(upload)).upload
            if present.state is UploadState.FINISHED:
                return await self.offset(present)  # since its row was read: staged bytes go only after the row says so
            raise await self._rows.lost(upload, SessionFailure("STAGING_LOST"))
        return held

    def sha256(self, upload: UploadRecord) -> str | None:
        """The digest of all bytes as they came; None before the finish, and where they came compressed."""
        return None if upload.content_encoding is not None else self._rows.look(upload).upload.blob_sha256

    async def settled(self, upload: UploadRecord) -> tuple[UploadRecord, int]:
        """The upload and its offset after whoever still writes was asked to leave (contract §5): the last word."""
        if upload.state is UploadState.OPEN:
            async with await self._locks.take(upload.upload_id, None):
                upload = alive(self._rows.look(upload)).upload
                return upload, await self.offset(upload)
        return upload, await self.offset(upload)

    async def state(
        self, upload_id: str, who: Principal, peer: str | None, *, finishes: bool
    ) -> tuple[UploadRecord, int]:
        """Like `settled`, for HEAD. `finishes`: one that only lacks its end, as after a crash, gets it now.

        Who may not write is told where it stands, and evicts nobody.
        """
        if who.expired or not who.may(Role.UPLOADER):
            upload = self.find(upload_id, who, reading=True).upload
            return upload, await self.offset(upload)
        async with self._held(upload_id, who, None, reading=True) as seen:
            upload, offset = seen.upload, await self.offset(seen.upload)
        if not finishes or upload.is_partial or upload.state is not UploadState.OPEN or offset != upload.length_bytes:
            return upload, offset
        try:
            await self.complete(upload_id, peer, at_length=True)
        except SessionFailure:
            log.info("upload.finish_refused", upload_id=upload_id)  # its session tells why: 410 below
        return await self.settled(alive(self._rows.look(upload)).upload)

    # --- bytes --------------------------------------------------------------------------------------

    async def append(
        self, upload_id: str, who: Principal, offset: int, body: UploadBody, terms: Terms, check: Check
    ) -> Patched:
        """Append the body at `offset`; every byte that arrived is kept, also when the client leaves."""

        async def fits(upload: UploadRecord, is_wrong: Callable[[int], bool]) -> int:
            if upload.is_final:
                raise RequestError("final_upload")
            # the offset first: a client that is told of it can go on, whatever else is wrong with this body
            if is_wrong(stored := await self.offset(upload)):
                raise _wrong_offset(offset, stored)
            check(upload)
            return stored

        async def worth_evicting(upload: UploadRecord) -> None:
            # only what is surely wrong: a running writer may still bring the bytes in between
            await fits(upload, lambda stored: offset < stored)

        async with self._held(upload_id, who, body.stop, reading=False, check=worth_evicting) as seen:
            stored = await fits(seen.upload, lambda stored: offset != stored)
            if seen.upload.state is UploadState.FINISHED:
                return await self._finished_again(seen, body, terms)
            return await self._append(seen, stored, body, terms)

    async def append_first(self, upload: UploadRecord, body: UploadBody, terms: Terms) -> Patched:
        """Append the body of the request that made the upload."""
        async with await self._locks.take(upload.upload_id, body.stop):
            try:
                return await self._append(alive(self._rows.look(upload)), 0, body, terms)
            except RequestError as error:
                with suppress(AppError, StorageError):  # it has ended: there is nothing to go on with
                    error.members.setdefault("upload_offset", await self.offset(alive(self._rows.look(upload)).upload))
                raise

    async def create_whole(self, new: NewUpload, who: Principal, body: UploadBody) -> Patched | None:
        """Make an upload and finish it, where all of it comes at once with its creation: in one transaction.

        None where it must be made first; the body can still be read.
        """
        if body.declared_bytes != new.length_bytes or (content := await body.whole()) is None:
            return None

        def first(tx: Connection, upload: UploadRecord) -> None:
            audit.append(tx, Transfer(upload, 0, new.peer, body).entry(len(content), "complete"))

        taken: Taken | None = await self._intake.admit_whole(new, who, content, first)
        if taken is None:
            body.give_back(content)
            return None
        upload = replace(taken.upload, offset_bytes=len(content), state=UploadState.FINISHED)
        return Patched(upload, len(content), taken.verdict)

    async def _finished_again(self, seen: Seen, body: UploadBody, terms: Terms) -> Patched:
        if terms.ends is not None and body.declared_bytes != 0:
            raise RequestError("completed_upload")  # RUFH §4.4: a complete upload is not changed
        return Patched(seen.upload, await self.offset(seen.upload), await self._finisher.verdict(seen, terms.peer))

    async def _append(self, seen: Seen, start: int, body: UploadBody, terms: Terms) -> Patched:
        """Take the body, note the transfer whatever ends it, and complete the upload where this was the last."""
        seen = await self._begun(seen, start, body, terms)
        transfer = Transfer(seen.upload, start, terms.peer, body)
        self._flushes.resume(seen.upload, transfer)
        try:
            last = await self._last_piece(seen.upload, start, body, terms)
            if last is not None:
                return await self._finish(seen, transfer, start + len(last.content), terms, last)
            upload, end = await self._receiver.receive(seen.upload, start, body, terms)
        except (AppError, StorageError) as error:
            if isinstance(error, SessionFailure):
                raise
            return await self._stopped(seen, transfer, terms, error)
        upload = await self._ended(upload, end, terms)
        complete = end == upload.length_bytes if terms.ends is None else terms.ends
        if complete and not upload.is_partial:
            return await self._finish(replace(seen, upload=upload), transfer, end, terms, None)
        try:
            if end != upload.length_bytes:
                return Patched(await self._flushes.after(upload, transfer, end), end)
            await self._store.blobs.flush(staging(upload.site, upload.upload_id))
            upload = await self._store.write(self._rows.progress(upload, end, transfer.entry(end, "complete")))
        except StorageError as error:
            raise await self._interrupted(upload, transfer, error) from error
        await self._finals(upload, terms.peer)
        return Patched(upload, end)

    async def _begun(self, seen: Seen, start: int, body: UploadBody, terms: Terms) -> Seen:
        """What must be in rows before the first byte: a session that waited for it, a new boot, what is told now."""
        seen = await self._rows.taken_up(seen, terms.peer)
        upload = seen.upload
        length = _told_length(start, body, terms)
        if length is not None and length != upload.length_bytes:
            if upload.length_bytes is not None or length < start:
                raise RequestError("inconsistent_upload_length")
            upload = await self._rows.sized(upload, length, bytes_follow=True)
        elif upload.length_bytes is None:
            announced = start + (body.declared_bytes or 0)
            self._store.glance(lambda tx: self._limits.check_claim(tx, upload, announced))
        if terms.ends is not None and (body.declared_bytes or 0) > self.room(upload, start):
            raise await self._passed(upload)
        if _leaves_open(body, terms) != upload.awaits_end:
            upload = await self._rows.await_end(upload, not upload.awaits_end)
        if upload.boot_id != boot_id():
            key = staging(upload.site, upload.upload_id)
            if self._truncates is not None and await self._store.blobs.size(key) > start:
                await self._truncates.truncate(key, start)
            upload = await self._store.write(self._rows.progress(upload, start))
        return replace(seen, upload=upload)

    async def _last_piece(self, upload: UploadRecord, start: int, body: UploadBody, terms: Terms) -> Piece | None:
        """The body, where it is short, ends the upload and comes at once; else it can still be read."""
        if body.declared_bytes is None or start + body.declared_bytes != upload.length_bytes or terms.ends is False:
            return None
        if upload.is_partial or terms.claims or upload.content_encoding is not None or upload.repr_digest is not None:
            return None
        content = await body.whole()
        return None if content is None else Piece(start, content)

    async def _finish(
        self, seen: Seen, transfer: Transfer, end: int, terms: Terms, last: Piece | None
    ) -> Patched:
        def first(tx: Connection) -> None:
            audit.append(tx, transfer.entry(end, "complete"))

        verdict = await self._finisher.finish(seen, terms.peer, first, last)
        return Patched(replace(seen.upload, offset_bytes=end, state=UploadState.FINISHED), end, verdict)

    async def _stopped(
        self, seen: Seen, transfer: Transfer, terms: Terms, error: AppError | StorageError
    ) -> Patched:
        """The body ended early: raises why, unless every byte of the upload is here all the same."""
        failure = await self._interrupted(seen.upload, transfer, error)
        seen = self._rows.look(seen.upload)
        if terms.ends is not None and failure.code == "upload_size_exceeded" and seen.upload.length_bytes is not None:
            raise await self._passed(seen.upload) from error
        if terms.ends is not None or failure.code not in STOPPED or not await self._is_whole(seen):
            raise failure from error
        # a client that finds the offset at the end takes the upload for done
        verdict = await self._finisher.finish(seen, terms.peer, nothing_first)
        return Patched(replace(seen.upload, state=UploadState.FINISHED), seen.upload.offset_bytes, verdict)

    async def _passed(self, upload: UploadRecord) -> RequestError:
        """More bytes than the length that was told MUST make the upload invalid, for good (RUFH §4.4.2)."""
        await self._policy.failed(upload, SessionFailure("SIZE_MISMATCH", "more bytes came than were told of"))
        return RequestError("upload_size_exceeded", "more bytes came than were told of: the upload has ended")

    async def _is_whole(self, seen: Seen) -> bool:
        """Whether every byte is there and only the finish is missing."""
        upload = seen.upload
        if seen.standing.refusal is not None or upload.state is not UploadState.OPEN or upload.session_id is None:
            return False
        return not upload.is_final and await self.offset(upload) == upload.length_bytes

    async def _ended(self, upload: UploadRecord, end: int, terms: Terms) -> UploadRecord:
        """With RUFH's Upload-Complete the end tells the length, or must agree with it."""
        if not terms.ends or end == upload.length_bytes:
            return upload
        if upload.length_bytes is not None:
            raise RequestError("inconsistent_upload_length", f"{end} of {upload.length_bytes} bytes are here",
                               upload_offset=end)
        return await self._rows.sized(upload, end)

    async def _interrupted(
        self, upload: UploadRecord, transfer: Transfer, error: AppError | StorageError
    ) -> AppError | StorageError:
        """Keep what arrived, note the transfer, and give the error to answer with."""
        if isinstance(error, FlushFailed):
            await self._rows.note(transfer.entry(transfer.start, error.code))
            return await self._rows.lost(upload, SessionFailure("STAGING_LOST"))
        key = staging(upload.site, upload.upload_id)
        size = await self._store.blobs.size(key)
        entry = transfer.entry(size, error.code)
        seen = self._rows.look(upload)
        if seen.standing.refusal is not None:
            await self._rows.note(entry)
            return seen.standing.refusal
        try:
            if size:
                await self._store.blobs.flush(key)
            await self._store.write(self._rows.progress(seen.upload, size, entry))
        except FlushFailed:
            await self._rows.note(entry)
            return await self._rows.lost(upload, SessionFailure("STAGING_LOST"))
        except (NoSpace, Conflict, NotFound) as failure:
            # the bytes are in the page cache and survive kill -9: the offset stays true on this boot
            log.warning("upload.not_flushed", upload_id=upload.upload_id, reason=str(failure))
        if isinstance(error, NoSpace):
            return RequestError("insufficient_storage", "what arrived is kept", retry_after_s=60, upload_offset=size)
        return error

    # --- the end ------------------------------------------------------------------------------------

    async def complete(self, upload_id: str, peer: str | None, *, at_length: bool = False) -> Verdict | None:
        """Finish an upload whose bytes are all there, or ingest a finished one again. Idempotent.

        One that awaits RUFH's word is left, unless `at_length`: for a tus client its length is its end.
        """
        upload = await self._store.read(lambda tx: uploads.get(tx, upload_id))
        if upload.state is UploadState.FINISHED:
            return await self._finisher.verdict(self._rows.look(upload), peer)
        async with await self._locks.take(upload_id, None):
            seen = alive(self._rows.look(upload))
            if seen.upload.state is UploadState.FINISHED:
                return await self._finisher.verdict(seen, peer)
            seen = await self._rows.taken_up(seen, peer)
            if seen.upload.is_final:
                joined = await self._joiner.join(seen.upload)
                if joined is None:
                    return None
                return await self._finisher.finish(replace(seen, upload=joined), peer, nothing_first)
            awaits_end = seen.upload.awaits_end and not at_length
            if seen.upload.is_partial or awaits_end or await self.offset(seen.upload) != seen.upload.length_bytes:
                return None
            last = Piece(0, b"") if seen.upload.length_bytes == 0 else None  # a file of no bytes is one too
            return await self._finisher.finish(seen, peer, nothing_first, last)

    async def _finals(self, part: UploadRecord, peer: str | None) -> None:
        """A part is complete: so may be the final uploads that wait for it (concatenation-unfinished)."""
        for final_id in await self._store.read(lambda tx: uploads.finals_of(tx, part.upload_id)):
            try:
                await self.complete(final_id, peer)
            except (AppError, StorageError) as error:
                # the part itself is well: its sender's answer must not tell of the final upload's trouble
                log.warning("upload.concatenation", upload_id=final_id, code=error.code)

    async def delete(self, upload_id: str, who: Principal) -> None:
        """Terminate (termination extension): whoever writes is asked to leave first."""
        async with self._held(upload_id, who, None, reading=False) as seen:
            await self._policy.terminated(seen.upload, who)

    async def flush_all(self) -> None:
        """Before the end of the process: what was told of is on the medium."""
        await self._flushes.flush_all()


def _told_length(start: int, body: UploadBody, terms: Terms) -> int | None:
    """The length that a request tells; RUFH's last one tells it by its Content-Length too, and both MUST match."""
    if not terms.ends or body.declared_bytes is None:
        return terms.length_bytes
    length = start + body.declared_bytes
    if terms.length_bytes not in (None, length):
        raise RequestError("inconsistent_upload_length", "Upload-Length and Content-Length differ")
    return length


def _leaves_open(body: UploadBody, terms: Terms) -> bool:
    """Whether the upload goes on after this body, even at its length.

    RUFH's last request ends it once all of the body is here, which a crash in between does not change; but of a
    chunked body only its end tells that.
    """
    return terms.ends is False or (terms.ends is True and body.declared_bytes is None)


@contextmanager
def _expiry_told(upload: UploadRecord) -> Iterator[None]:
    """Upload-Expires MUST be in every answer to a PATCH, refusals too (tus, Upload-Expires)."""
    try:
        yield
    except RequestError as error:
        if upload.state is UploadState.OPEN and error.code != "gone":
            error.members.setdefault("upload_expires", upload.expires_at)
        raise


def _wrong_offset(offset: int, stored: int) -> RequestError:
    return RequestError("offset_mismatch", f"the stored offset is {stored}", upload_offset=stored,
                        provided_offset=offset)
