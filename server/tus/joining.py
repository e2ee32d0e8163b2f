"""Joins the parts of a concatenation into its final upload. Owns no lock and finishes nothing."""

from collections.abc import AsyncIterator
from datetime import timedelta

from sqlalchemy import Connection

from server.admission import LimitsUploads, UploadPolicy
from server.errors import RequestError, SessionFailure
from server.tus.rows import UploadRows
from storage import uploads
from storage.blobs.base import BlobKey, staging
from storage.errors import FlushFailed, NoSpace, NotFound
from storage.records import UploadRecord, UploadState, now, timestamp
from storage.store import Store

PARTS_KEPT = timedelta(days=1)
"""How long the parts of a concatenation stay once their final upload is done."""
PASSED_ON = ("CLIENT_ABORTED", "UPLOAD_EXPIRED")
"""What a part may have gone for that its final upload then fails with too."""


class Joiner:
    """Copies parts, in order, once all of them are complete."""

    def __init__(self, store: Store, policy: UploadPolicy, limits: LimitsUploads, rows: UploadRows) -> None:
        self._store = store
        self._policy = policy
        self._limits = limits
        self._rows = rows

    async def join(self, final: UploadRecord) -> UploadRecord | None:
        """The final upload with all bytes; None while a part is not complete. Its lock is held by the caller.

        SessionFailure, the session failed with it and nothing left staged, when it can never be joined, or not now.
        """
        key = staging(final.site, final.upload_id)
        try:
            return await self._join(final, key)
        except SessionFailure as failure:
            await self._store.blobs.delete(key)
            await self._policy.failed(final, failure)
            raise SessionFailure(failure.code, failure.detail, session_id=final.session_id) from None

    async def _join(self, final: UploadRecord, key: BlobKey) -> UploadRecord | None:
        parts = await self._store.read(lambda tx: uploads.parts(tx, final.upload_id))
        for part in parts:
            if part.state is UploadState.GONE:
                code = part.gone_reason if part.gone_reason in PASSED_ON else "STAGING_LOST"
                raise SessionFailure(code, "a part is gone")
        for part in parts:
            # its row may lag behind its bytes: a crash may have come between them
            if part.length_bytes is None or await self._store.held_bytes(part) != part.length_bytes:
                return None
        length, declared = sum(part.length_bytes or 0 for part in parts), self._rows.look(final).standing.file_size
        if final.content_encoding is None and declared not in (None, length):
            raise SessionFailure("SIZE_MISMATCH", f"the parts hold {length} bytes, {declared} were declared")
        await self._store.blobs.delete(key)
        try:
            await self._limits.check_room(length)  # of a part that deferred its length nothing was known before
            size = await self._store.blobs.append(key, 0, self._content_of(parts))
        except RequestError as error:
            code = "POLICY_REJECTED" if error.code == "file_too_large" else "STORAGE_FULL"
            raise SessionFailure(code, error.detail) from error
        except NoSpace as error:
            raise SessionFailure("STORAGE_FULL") from error
        except (FlushFailed, NotFound) as error:
            raise SessionFailure("STAGING_LOST") from error
        if size != length:
            raise SessionFailure("STAGING_LOST", "a part is gone")

        def unit(tx: Connection) -> UploadRecord:
            if final.length_bytes is None:
                self._policy.sized(tx, final, length)
            uploads.shorten(tx, [part.upload_id for part in parts], timestamp(now() + PARTS_KEPT))
            return self._rows.progress(uploads.get(tx, final.upload_id), length)(tx)

        return await self._store.write(unit)

    async def _content_of(self, parts: list[UploadRecord]) -> AsyncIterator[bytes]:
        for part in parts:
            if part.length_bytes:
                async for chunk in self._store.blobs.read(staging(part.site, part.upload_id)):
                    yield chunk
