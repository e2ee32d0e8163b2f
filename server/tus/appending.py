"""Takes the body of one request onto an upload that its caller holds: what is noted before, after, and when it stops.

Every byte that arrived is kept, whatever ends the body. Takes no lock.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import Connection

from server.admission import LimitsUploads, UploadPolicy, Verdict
from server.errors import AppError, RequestError, SessionFailure
from server.tus.body import UploadBody
from server.tus.finishing import Finisher, nothing_first
from server.tus.flushing import Flushes
from server.tus.gaps import Gaps
from server.tus.receiving import Receiver, Terms, Transfer
from server.tus.rows import Seen, UploadRows, alive, room_of
from storage import audit
from storage.blobs.base import Piece, Truncates, staging
from storage.errors import Conflict, FlushFailed, NoSpace, NotFound, StorageError
from storage.moments import boot_id
from storage.records import UploadRecord, UploadState
from storage.store import Store

log = structlog.get_logger()
STOPPED = ("upload_interrupted", "upload_stopped", "read_timeout", "server_shutdown")
"""How a body may end early through no fault of its own."""


@dataclass(frozen=True, slots=True)
class Patched:
    """Where an upload stands; `verdict` once it is finished and known."""

    upload: UploadRecord
    offset: int
    verdict: Verdict | None = None


class Appender:
    """Appends, and finishes the upload where that was its end. Raises AppError and storage.errors."""

    def __init__(
        self, store: Store, policy: UploadPolicy, limits: LimitsUploads, rows: UploadRows, receiver: Receiver,
        finisher: Finisher, flushes: Flushes, gaps: Gaps, max_size_bytes: int,
    ) -> None:
        self._store = store
        self._policy = policy
        self._limits = limits
        self._rows = rows
        self._receiver = receiver
        self._finisher = finisher
        self._flushes = flushes
        self._gaps = gaps
        self._max_size_bytes = max_size_bytes
        self._truncates = store.blobs if isinstance(store.blobs, Truncates) else None

    async def append(self, seen: Seen, start: int, body: UploadBody, terms: Terms) -> Patched:
        """Take the body, note the transfer whatever ends it, and complete the upload where this was the last."""
        transfer = Transfer(seen.upload, start, terms, body)
        self._flushes.resume(seen.upload, transfer)
        if transfer.start == start:  # it goes on with nothing that waits here: are all bytes before it told of?
            seen = alive(await self._gaps.close(seen, start))
        try:
            seen = await self._begun(seen, start, body, terms)
        except BaseException:
            if transfer.start != start:
                self._flushes.wait(seen.upload, transfer, start)  # what it went on with is still to be told
            raise
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
            upload = await self._store.write(self._rows.progress(upload, end, transfer.entry(end)))
        except StorageError as error:
            raise await self._interrupted(upload, transfer, error) from error
        return Patched(upload, end)

    async def append_finished(self, seen: Seen, body: UploadBody, terms: Terms) -> Patched:
        """A finished upload takes no byte; who sends its end again is told what became of it."""
        if terms.ends is not None and body.declared_bytes != 0:
            raise RequestError("completed_upload")  # RUFH §4.4: a complete upload is not changed
        offset = await self._rows.offset(seen.upload)
        return Patched(seen.upload, offset, await self._finisher.verdict(seen, terms.peer))

    async def flush_all(self) -> None:
        """Before the end of the process: what was told of is on the medium."""
        await self._flushes.flush_all()

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
        if terms.ends is not None and (body.declared_bytes or 0) > room_of(upload, start, self._max_size_bytes):
            raise await self._end_oversized(upload)
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
            audit.append(tx, transfer.entry(end))

        verdict = await self._finisher.finish(seen, terms.peer, first, last)
        return Patched(replace(seen.upload, offset_bytes=end, state=UploadState.FINISHED), end, verdict)

    async def _stopped(
        self, seen: Seen, transfer: Transfer, terms: Terms, error: AppError | StorageError
    ) -> Patched:
        """The body ended early: raises why, unless every byte of the upload is here all the same."""
        failure = await self._interrupted(seen.upload, transfer, error)
        seen = self._rows.look(seen.upload)
        if terms.ends is not None and failure.code == "upload_size_exceeded" and seen.upload.length_bytes is not None:
            raise await self._end_oversized(seen.upload) from error
        if terms.ends is not None or failure.code not in STOPPED or not await self._is_whole(seen):
            raise failure from error
        # a client that finds the offset at the end takes the upload for done
        verdict = await self._finisher.finish(seen, terms.peer, nothing_first)
        return Patched(replace(seen.upload, state=UploadState.FINISHED), seen.upload.offset_bytes, verdict)

    async def _end_oversized(self, upload: UploadRecord) -> RequestError:
        """More bytes than the length that was told MUST make the upload invalid, for good (RUFH §4.4.2)."""
        await self._policy.failed(upload, SessionFailure("SIZE_MISMATCH", "more bytes came than were told of"))
        return RequestError("upload_size_exceeded", "more bytes came than were told of: the upload has ended")

    async def _is_whole(self, seen: Seen) -> bool:
        """Whether every byte is there and only the finish is missing."""
        upload = seen.upload
        if seen.standing.refusal is not None or upload.state is not UploadState.OPEN or upload.session_id is None:
            return False
        return not upload.is_final and await self._rows.offset(upload) == upload.length_bytes

    async def _ended(self, upload: UploadRecord, end: int, terms: Terms) -> UploadRecord:
        """With RUFH's Upload-Complete the end tells the length, or MUST agree with it (RUFH §4.1.3)."""
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
            return await self._rows.end_lost(upload)
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
            return await self._rows.end_lost(upload)
        except (NoSpace, Conflict, NotFound) as failure:
            # the bytes are in the page cache and survive kill -9: the offset stays true on this boot
            log.warning("upload.not_flushed", upload_id=upload.upload_id, reason=str(failure))
            with suppress(StorageError):  # where even this has no room, the next request tells of a gap
                await self._rows.account(upload, size, entry)
        if isinstance(error, NoSpace):
            return RequestError("insufficient_storage", "what arrived is kept", retry_after_s=60, upload_offset=size)
        return error


def _told_length(start: int, body: UploadBody, terms: Terms) -> int | None:
    """The length that a request tells; RUFH's last one by its Content-Length too: both MUST match (RUFH §4.1.3)."""
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
