"""A Store: facts and bytes together, opened and closed as one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from storage.blobs.base import BlobStore
from storage.database.base import Database

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

    async def write(self, unit: Callable[[Connection], T]) -> T:
        """See Database.write."""
        return await self.database.write(unit)

    async def close(self) -> None:
        """See Database.close."""
        await self.database.close()
