"""A Store: facts and bytes together, opened and closed as one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from storage.blobs.base import BlobStore, boot_id, staging
from storage.database.base import Database
from storage.records import UploadRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """What `server` works on: `read` and `write` run units of work, `blobs` keeps bytes."""

    database: Database
    blobs: BlobStore

    async def read(self, unit: Callable[[Connection], T]) -> T:
        """See Database.read."""
        return await self.database.read(unit)

    def glance(self, unit: Callable[[Connection], T]) -> T:
        """See Database.glance."""
        return self.database.glance(unit)

    async def write(self, unit: Callable[[Connection], T], *, light: bool = False) -> T:
        """See Database.write."""
        return await self.database.write(unit, light=light)

    async def held_bytes(self, upload: UploadRecord) -> int:
        """How many bytes of an open upload are there: all in its file while this boot lasts, the flushed ones after it.

        Fewer than its row says where the medium has lost some.
        """
        size = await self.blobs.size(staging(upload.site, upload.upload_id))
        return size if upload.boot_id == boot_id() else min(size, upload.offset_bytes)

    async def close(self) -> None:
        """See Database.close."""
        await self.database.close()
