"""Joins the parts of a concatenation into its final upload. Owns no lock and finishes nothing."""

from collections.abc import AsyncIterator
from datetime import timedelta

from sqlalchemy import Connection

from server.admission import UploadPolicy
from server.errors import RequestError
from server.tus.rows import UploadRows
from storage import uploads
from storage.blobs.base import staging
from storage.records import UploadRecord, now, timestamp
from storage.store import Store

PARTS_KEPT = timedelta(days=1)
"""How long the parts of a concatenation stay once their final upload is done."""


class Joiner:
    """Copies parts, in order, once all of them are complete."""

    def __init__(self, store: Store, policy: UploadPolicy, rows: UploadRows) -> None:
        self._store = store
        self._policy = policy
        self._rows = rows

    async def join(self, final: UploadRecord) -> UploadRecord | None:
        """The final upload with all bytes; None while a part is not complete. Its lock is held by the caller.

        RequestError `gone` when a part's bytes are.
        """
        parts = await self._store.read(lambda tx: uploads.parts(tx, final.upload_id))
        for part in parts:
            # its row may lag behind its bytes: a crash may have come between them
            if part.length_bytes is None or await self._store.held_bytes(part) != part.length_bytes:
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

        return await self._store.write(unit)

    async def _content_of(self, parts: list[UploadRecord]) -> AsyncIterator[bytes]:
        for part in parts:
            if part.length_bytes:
                async for chunk in self._store.blobs.read(staging(part.site, part.upload_id)):
                    yield chunk
