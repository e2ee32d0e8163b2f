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
from server.tus.protocol import ChecksumClaim
from server.tus.rows import UploadRows
from storage.blobs.base import BlobKey, Receives, staging
from storage.errors import StorageError
from storage.records import AuditEntry, UploadRecord
from storage.store import Store

SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_S = 5.0


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


class Receiver:
    """By threads where a body is long, else through the loop; aside first where it has a digest."""

    def __init__(self, store: Store, rows: UploadRows) -> None:
        self._store = store
        self._rows = rows

    async def receive(
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


class Transfer:
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


async def _tell(terms: Terms, offset: int) -> None:
    if terms.on_durable is not None:
        await terms.on_durable(offset)
