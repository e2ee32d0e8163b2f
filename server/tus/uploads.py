"""What can be done with an upload: append, tell its offset, complete, delete. Owns who works on it meanwhile.

Facts: the size of the staged file is the offset, for it survives `kill -9`; after a reboot only what was
flushed, and noted in the row, counts. A row that was read before its lock was taken may be stale: who begins
takes the lock first where it is free, so that one look is enough, and looks twice where it is not.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace

import structlog
from sqlalchemy import Connection

from server.admission import AdmitsUploads, NewUpload, UploadPolicy, Verdict
from server.auth import Principal, Role
from server.errors import AppError, RequestError, SessionFailure
from server.seldom import Seldom
from server.tus.appending import Appender, Patched
from server.tus.body import UploadBody
from server.tus.finishing import Finisher, nothing_first
from server.tus.gaps import Gaps
from server.tus.joining import Joiner
from server.tus.locks import Stop, UploadLocks
from server.tus.receiving import Terms, Transfer
from server.tus.rows import Seen, UploadRows, alive
from storage import audit, uploads
from storage.blobs.base import Piece
from storage.errors import StorageError
from storage.records import AuditEntry, Status, UploadRecord, UploadState
from storage.store import Store

log = structlog.get_logger()
Check = Callable[[UploadRecord], None]
"""Looks whether a request fits the upload that it names, before its body is read. RequestError."""


class Uploads:
    """The use cases on uploads. Raises AppError and storage.errors."""

    def __init__(
        self, store: Store, intake: AdmitsUploads, policy: UploadPolicy, locks: UploadLocks, rows: UploadRows,
        appender: Appender, finisher: Finisher, joiner: Joiner, gaps: Gaps,
        seldom: Seldom,
    ) -> None:
        self._store = store
        self._intake = intake
        self._policy = policy
        self._locks = locks
        self._rows = rows
        self._appender = appender
        self._finisher = finisher
        self._joiner = joiner
        self._gaps = gaps
        self._seldom = seldom

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

    def sha256(self, upload: UploadRecord) -> str | None:
        """The digest of all bytes as they came; None before the finish, and where they came compressed."""
        return None if upload.content_encoding is not None else self._rows.look(upload).upload.blob_sha256

    async def settled(self, upload: UploadRecord) -> tuple[UploadRecord, int]:
        """The upload and its offset after whoever still writes was asked to leave (contract §5): the last word."""
        if upload.state is UploadState.OPEN:
            async with await self._locks.take(upload.upload_id, None):
                upload = alive(self._rows.look(upload)).upload
                return upload, await self._rows.offset(upload)
        return upload, await self._rows.offset(upload)

    async def retrieve_offset(
        self, upload_id: str, who: Principal, peer: str | None, *, finishes: bool
    ) -> tuple[UploadRecord, int]:
        """Like `settled`, for HEAD. `finishes`: one that only lacks its end, as after a crash, gets it now.

        Who may not write is told where it stands, and evicts nobody.
        """
        if who.expired or not who.may(Role.UPLOADER):
            upload = self.find(upload_id, who, reading=True).upload
            return upload, await self._rows.offset(upload)
        async with self._held(upload_id, who, None, reading=True) as seen:
            upload, offset = seen.upload, await self._rows.offset(seen.upload)
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
                raise RequestError("final_upload")  # MUST be 403 (concatenation, Upload-Concat)
            # the offset first: a client that is told of it can go on, whatever else is wrong with this body
            if is_wrong(stored := await self._rows.offset(upload)):
                refusal = _wrong_offset(offset, stored)
                await self._note_refusal(upload, who, terms, refusal)
                raise refusal
            check(upload)
            return stored

        async def worth_evicting(upload: UploadRecord) -> None:
            # only what is surely wrong: a running writer may still bring the bytes in between
            await fits(upload, lambda stored: offset < stored)

        async with self._held(upload_id, who, body.stop, reading=False, check=worth_evicting) as seen:
            stored = await fits(seen.upload, lambda stored: offset != stored)
            if seen.upload.state is UploadState.FINISHED:
                return await self._appender.append_finished(seen, body, terms)
            return await self._append(seen, stored, body, terms)

    async def _note_refusal(
        self, upload: UploadRecord, who: Principal, terms: Terms, refusal: RequestError
    ) -> None:
        """One row per principal, upload and minute: whoever guesses offsets fills no disk."""
        entry = AuditEntry(
            upload.site, "upload.refused", who.name, upload.session_id or upload.upload_id, terms.peer, refusal.code,
            {"upload_id": upload.upload_id, "door": terms.door, "stored": refusal.members["upload_offset"],
             "provided": refusal.members["provided_offset"]})
        try:
            await self._seldom.note(entry, upload.upload_id)
        except StorageError as error:
            log.warning("upload.refusal_not_noted", upload_id=upload.upload_id, code=error.code)

    async def append_first(self, upload: UploadRecord, body: UploadBody, terms: Terms) -> Patched:
        """Append the body of the request that made the upload."""
        async with await self._locks.take(upload.upload_id, body.stop):
            try:
                return await self._append(alive(self._rows.look(upload)), 0, body, terms)
            except RequestError as error:
                with suppress(AppError, StorageError):  # it has ended: there is nothing to go on with
                    present = alive(self._rows.look(upload)).upload
                    error.members.setdefault("upload_offset", await self._rows.offset(present))
                raise

    async def create_whole(
        self, new: NewUpload, who: Principal, body: UploadBody, terms: Terms
    ) -> Patched | None:
        """Make an upload and finish it, where all of it comes at once with its creation: in one transaction.

        None where it must be made first; the body can still be read.
        """
        if body.declared_bytes != new.length_bytes or (content := await body.whole()) is None:
            return None

        def first(tx: Connection, upload: UploadRecord) -> None:
            audit.append(tx, Transfer(upload, 0, terms, body).entry(len(content)))

        upload = await self._intake.admit_whole(new, who, content, first)
        if upload is None:
            body.give_back(content)
            return None
        return Patched(upload, len(content), Verdict(Status.SYNCED))

    async def _append(self, seen: Seen, start: int, body: UploadBody, terms: Terms) -> Patched:
        patched = await self._appender.append(seen, start, body, terms)
        if patched.upload.is_partial and patched.offset == patched.upload.length_bytes:
            await self._finals(patched.upload, terms.peer)
        return patched

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
            offset = 0
            if not seen.upload.is_final:
                offset = await self._rows.offset(seen.upload)
                seen = alive(await self._gaps.close(seen, offset))
            seen = await self._rows.taken_up(seen, peer)
            if seen.upload.is_final:
                joined = await self._joiner.join(seen.upload)
                if joined is None:
                    return None
                return await self._finisher.finish(replace(seen, upload=joined), peer, nothing_first)
            length, awaits_end = seen.upload.length_bytes, seen.upload.awaits_end and not at_length
            if seen.upload.is_partial or awaits_end or offset != length:
                return None
            last = Piece(0, b"") if length == 0 else None  # a file of no bytes is one too
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
            if seen.upload.state is UploadState.OPEN:
                seen = alive(await self._gaps.close(seen, await self._store.held_bytes(seen.upload)))
            await self._policy.terminated(seen.upload, who)

    async def flush_all(self) -> None:
        """Before the end of the process: what was told of is on the medium."""
        await self._appender.flush_all()


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
    """MUST be 409, and the upload stays as it is (core, PATCH; RUFH §4.4.2)."""
    return RequestError("offset_mismatch", f"the stored offset is {stored}", upload_offset=stored,
                        provided_offset=offset)
