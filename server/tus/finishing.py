"""The end of an upload: its bytes are verified, decoded where they are compressed, sealed, and handed on."""

import asyncio
import hmac

from sqlalchemy import Connection

from server.admission import CompletesUploads, Standing, Unit, UploadPolicy, Verdict
from server.errors import RequestError, SessionFailure
from server.tus.checksum import RunningDigest
from server.tus.representation import decoded
from server.tus.rows import Seen, UploadRows
from storage import uploads
from storage.blobs.base import BlobKey, Piece, Sealed, sealed, staging
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound
from storage.records import Sha256, UploadRecord
from storage.store import Store

DECODERS = 2
"""How many representations are decoded at once: each holds a window and a batch, and a core."""
AGAIN = "what came is not the file that was declared: send it again from 0"


class Finisher:
    """Finishes uploads whose bytes are all there; whoever calls holds the upload's lock."""

    def __init__(
        self, store: Store, policy: UploadPolicy, completion: CompletesUploads, rows: UploadRows, max_size_bytes: int
    ) -> None:
        self._store = store
        self._policy = policy
        self._completion = completion
        self._rows = rows
        self._max_size_bytes = max_size_bytes
        self._decoders = asyncio.Semaphore(DECODERS)

    async def finish(
        self, seen: Seen, peer: str | None, first: Unit, last: Piece | None = None
    ) -> Verdict | None:
        """Verify, seal and file the bytes, whose end may be the `last` piece; `first` is noted with the finish.

        SessionFailure, RequestError; NoSpace, the bytes before it kept, when there is no room for the last piece.
        """
        upload, standing = seen.upload, seen.standing
        key = staging(upload.site, upload.upload_id)

        def told(tx: Connection) -> None:
            first(tx)
            uploads.tell(tx, upload.upload_id, upload.length_bytes or 0)

        try:
            await self._check_repr_digest(upload, key)
            content = await self._sealed(upload, standing, key, last)
        except SessionFailure as failure:
            await self._store.write(told)
            await self._policy.failed(upload, failure)
            raise SessionFailure(failure.code, failure.detail, session_id=upload.session_id) from None
        except NoSpace:
            if last is not None:
                raise
            await self._store.write(told)
            await self._policy.failed(upload, SessionFailure("STORAGE_FULL"))
            raise RequestError("insufficient_storage", "there was no room to finish it", retry_after_s=60,
                               session_id=upload.session_id) from None
        except (FlushFailed, NotFound):
            await self._store.write(told)
            raise await self._rows.end_lost(upload) from None
        try:
            assert standing.session is not None, "parts have none, and are never completed"
            verdict = await self._completion.finished(upload, standing.session, content, peer, first)
        except (Conflict, NotFound):  # the session moved on; or clean-up took the sealed bytes, not the staged ones
            raise self._rows.look(upload).standing.refusal or RequestError("upload_stopped") from None
        self._store.blobs.discard(key)
        return verdict

    async def _sealed(
        self, upload: UploadRecord, standing: Standing, key: BlobKey, last: Piece | None
    ) -> Sealed:
        expected = Sha256(standing.checksum_sha256) if standing.checksum_sha256 else None
        plain = key
        try:
            if upload.content_encoding is not None:
                plain = staging(upload.site, f"{upload.upload_id}.decoded")
                await self._store.blobs.delete(plain)
                limit = self._max_size_bytes if standing.file_size is None else standing.file_size
                async with self._decoders:
                    size = await self._store.blobs.append(
                        plain, 0, decoded(upload.content_encoding, self._store.blobs.read(key), limit))
                if standing.file_size is not None and size != standing.file_size:
                    raise SessionFailure("SIZE_MISMATCH", f"{size} bytes came, {standing.file_size} were declared")
            return await self._store.blobs.seal(plain, expected, last)
        except DigestMismatch:
            raise SessionFailure("CHECKSUM_MISMATCH", AGAIN) from None
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
            raise SessionFailure("CHECKSUM_MISMATCH", AGAIN)

    async def verdict(self, seen: Seen, peer: str | None) -> Verdict | None:
        """What became of a finished upload; ingest is begun again where it had not ended."""
        upload, session = seen.upload, seen.standing.session
        assert upload.blob_sha256 is not None and session is not None, "a finished upload has both"
        digest = Sha256(upload.blob_sha256)
        content = Sealed(sealed(upload.site, digest), digest, 0, existed=True)
        return await self._completion.finished(upload, session, content, peer, nothing_first)


def nothing_first(_tx: Connection) -> None:
    """Nothing to note before the finish."""
