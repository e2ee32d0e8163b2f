"""Takes the body of one request into the staged file, durably in segments, and accounts for it. Completes nothing."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from server.errors import RequestError
from server.tus.body import UploadBody
from server.tus.checksum import RunningDigest
from server.tus.rows import UploadRows
from server.tus.tus_fields import ChecksumClaim
from storage.blobs.base import SEGMENT_BYTES, SEGMENT_S, BlobKey, Receives, staging
from storage.errors import StorageError
from storage.records import AuditEntry, UploadRecord
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Terms:
    """What one request says of its body.

    `door`: "tus" or "rufh". `ends`: whether the upload is complete with it; None (tus) where that is told by the
    length. `length_bytes`: the length of the whole, told now. `claims`: digests of this body. `on_durable` hears of
    offsets on the medium.
    """

    peer: str | None = None
    door: str = "tus"
    claims: tuple[ChecksumClaim, ...] = ()
    length_bytes: int | None = None
    ends: bool | None = None
    on_durable: Callable[[int], Awaitable[None]] | None = None


class Receiver:
    """By threads where a body is long, else through the loop; aside first where it has a digest."""

    def __init__(self, store: Store, rows: UploadRows) -> None:
        self._store = store
        self._rows = rows
        # asked once: looking whether a class fits a Protocol costs more than many a request
        self._receives = store.blobs if isinstance(store.blobs, Receives) else None

    async def receive(
        self, upload: UploadRecord, start: int, body: UploadBody, terms: Terms
    ) -> tuple[UploadRecord, int]:
        """The body into the staged file, all but what comes after the last 64 MiB or 5 s flushed."""
        key = staging(upload.site, upload.upload_id)
        if terms.claims:
            return upload, await self._verified(upload, key, start, body, terms.claims)
        if self._receives is not None and await body.open_socket():
            return await self._receive_long(self._receives, upload, key, start, body, terms)
        end = start
        async with aclosing(body.chunks()) as chunks, _Segments(chunks) as segments:
            while not segments.ended:
                end = await self._store.blobs.append(key, end, segments.next(), flush=False)
                if not segments.ended and end != upload.offset_bytes:
                    await self._store.blobs.flush(key)
                    upload = await self._store.write(self._rows.progress(upload, end))
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
                    noted = await self._store.write(self._rows.progress(noted, size))
                    await _tell(terms, size)
            except StorageError:
                body.stop("upload_stopped")  # the session was cancelled or failed while the bytes came
                raise
            return noted

        # in no group: `finally` gives it its end and waits for it, so it does not outlive this call
        noting, end = asyncio.ensure_future(note()), start
        noted_at_s, noted_end = time.monotonic(), upload.offset_bytes
        try:
            # a thread is held only while bytes flow: a sender that is silent, or slow, is waited for in the loop
            while True:
                end = await blobs.receive(key, end, body.read, durable.put_nowait)
                if body.ended:
                    break
                left_s = noted_at_s + SEGMENT_S - time.monotonic()
                if left_s <= 0 and end != noted_end:
                    await blobs.flush(key)
                    durable.put_nowait(end)
                    noted_at_s, noted_end = time.monotonic(), end
                await body.flows(left_s if left_s > 0 else SEGMENT_S)
        finally:
            body.close_socket()
            durable.put_nowait(None)
            # not shielded: it must not note an offset after the lock is let go. Who is cancelled here cancels it and
            # waits for that; what it had still to note is told by the staged file's size
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
                    raise RequestError("chunk_checksum_mismatch")  # MUST be discarded: below (checksum)
            return await self._store.blobs.append(key, start, self._store.blobs.read(aside), flush=False)
        finally:
            await self._store.blobs.delete(aside)


class Transfer:
    """Bytes on their way, for the audit: from where, how long. Several PATCHes in turn are one (contract §9)."""

    def __init__(self, upload: UploadRecord, start: int, terms: Terms, body: UploadBody) -> None:
        self._upload = upload
        self.start = start
        self._peer = terms.peer
        self._door = terms.door
        self._body = body
        self._began_s = time.monotonic()
        self._requests = 1
        self._read_before = 0

    @property
    def age_s(self) -> float:
        """Seconds since its first request began."""
        return time.monotonic() - self._began_s

    def continues(self, earlier: "Transfer", end: int) -> bool:
        """Whether this goes on where `earlier` stopped, for the same sender through the same door."""
        return self.start == end and (self._peer, self._door) == (earlier._peer, earlier._door)

    def take_over(self, earlier: "Transfer") -> None:
        """Tell of `earlier` too."""
        self.start, self._began_s = earlier.start, earlier._began_s
        self._requests += earlier._requests
        self._read_before = earlier.bytes_read

    @property
    def bytes_read(self) -> int:
        """What its bodies brought."""
        return self._read_before + self._body.bytes_read

    def entry(self, end: int, outcome: str = "ok") -> AuditEntry:
        """The audit row of the transfer that ended at `end`; `outcome` is the code of what stopped it."""
        detail = {
            "upload_id": self._upload.upload_id, "offset_before": self.start, "offset_after": end,
            "bytes_read": self.bytes_read, "duration_ms": round(1000 * self.age_s), "door": self._door}
        if self._requests > 1:
            detail["requests"] = self._requests
        return AuditEntry(self._upload.site, "upload.transfer", self._upload.principal,
                          self._upload.session_id or self._upload.upload_id, self._peer, outcome, detail)


class _Segments:
    """Cuts a stream where its bytes must be made durable (contract §2)."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._coming: asyncio.Future[bytes] | None = None
        self.ended = False

    async def next(self) -> AsyncIterator[bytes]:
        """Chunks up to the next such point, or the end; none where none came in time."""
        began, given = time.monotonic(), 0
        while given < SEGMENT_BYTES and (left_s := began + SEGMENT_S - time.monotonic()) > 0:
            if self._coming is None:
                # in no group: `__aexit__` cancels it and waits for it, so it does not outlive the body
                self._coming = asyncio.ensure_future(anext(self._chunks, b""))
            await asyncio.wait([self._coming], timeout=left_s)
            if not self._coming.done():
                return
            chunk, self._coming = self._coming.result(), None
            if not chunk:
                self.ended = True
                return
            given += len(chunk)
            yield chunk

    async def __aenter__(self) -> "_Segments":
        return self

    async def __aexit__(self, *_failure: object) -> None:
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait([self._coming])


async def _tell(terms: Terms, offset: int) -> None:
    if terms.on_durable is not None:
        await terms.on_durable(offset)
