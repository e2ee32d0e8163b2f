"""What may come in, and how much of it: the size of one file, the room on the medium, and each principal's share.

Refuses what is to come; never ends what is there.
"""

from sqlalchemy import Connection

from server.auth import Principal
from server.errors import RequestError
from storage import uploads
from storage.blobs.base import Measures
from storage.records import UploadRecord
from storage.store import Store


class Limits:
    """The LimitsUploads of the sessions. `max_open` uploads and `max_staged_bytes` are for each principal."""

    def __init__(self, store: Store, *, max_size_bytes: int, max_open: int, max_staged_bytes: int) -> None:
        self._measures = store.blobs if isinstance(store.blobs, Measures) else None
        self._max_size_bytes = max_size_bytes
        self._max_open = max_open
        self._max_staged_bytes = max_staged_bytes

    async def check_room(self, size_bytes: int) -> None:
        """RequestError `file_too_large`, or `insufficient_storage` for what cannot fit now."""
        self.check_size(size_bytes, await self.room_bytes())

    async def room_bytes(self) -> int | None:
        """What the store can still take, in bytes; None where it cannot tell."""
        return await self._measures.room_bytes() if self._measures is not None else None

    def check_size(self, size_bytes: int, room_bytes: int | None = None) -> None:
        """Like `check_room`, for a room that was asked for before; None: it counts for nothing."""
        if size_bytes > self._max_size_bytes:
            raise RequestError("file_too_large", f"at most {self._max_size_bytes} bytes are taken")
        if room_bytes is not None and size_bytes > room_bytes:
            raise RequestError("insufficient_storage", "it would not fit on the disk now", retry_after_s=300)

    def check_new(self, tx: Connection, who: Principal, length_bytes: int | None, room_bytes: int | None) -> None:
        """Just before an upload's row is made, and not for one that was there before (contract §5).

        RequestError as `check_size`, and `too_many_uploads`.
        """
        if length_bytes is not None:
            self.check_size(length_bytes, room_bytes)
        count, claimed_bytes = uploads.open_count(tx, who.name)
        passes = claimed_bytes + (length_bytes or 0) > self._max_staged_bytes
        if count >= self._max_open or passes:
            raise _too_many(count)

    def check_claim(self, tx: Connection, upload: UploadRecord, size_bytes: int) -> None:
        """What all its principal's uploads would hold or have announced, against the limit."""
        self.check_size(size_bytes)
        count, claimed_bytes = uploads.open_count(tx, upload.principal)
        if claimed_bytes - upload.offset_bytes + size_bytes > self._max_staged_bytes:
            raise _too_many(count)


def _too_many(count: int) -> RequestError:
    return RequestError("too_many_uploads", f"{count} uploads of yours are unfinished", retry_after_s=60)
