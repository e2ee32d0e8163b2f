"""A Store: facts and bytes together, opened and closed as one; and how sealed bytes get a row, or lose their file.

Facts: bytes are sealed before the transaction that names them, so a crash, a cancelled request or a lost race leaves
sealed bytes that no row names; and whoever seals the same bytes meanwhile finds them there. So both sides act inside
a write unit: `keep` adds the row only while the file is there, `take_back` moves the file away only while no row names
it. Units run one after another, over all processes, and each sees those before it: whichever of the two comes second
sees what the first did, and never is there a row without its file. A unit that is undone after it moved a file away
harms nothing, for no row named it. This is the one file work inside units: a look at a name, and a rename.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from storage import blob_rows, integrity, inventory, pauses
from storage.blobs.base import BlobKey, BlobStore, Sealed, Withdraws, staging
from storage.database.base import Database
from storage.errors import Conflict
from storage.moments import boot_id
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

    async def flush(self) -> None:
        """See Database.flush."""
        await self.database.flush()

    async def held_bytes(self, upload: UploadRecord) -> int:
        """How many bytes of an open upload are there: all in its file while this boot lasts, the flushed ones after it.

        Fewer than its row says where the medium has lost some.
        """
        size = await self.blobs.size(staging(upload.site, upload.upload_id))
        return size if upload.boot_id == boot_id() else min(size, upload.offset_bytes)

    def keep(self, tx: Connection, content: Sealed) -> None:
        """A unit of work: sealed bytes have a row from now on; an alarm on them closes.

        Conflict when they were taken back since they were sealed: they are to be sealed again.
        """
        known = blob_rows.find(tx, content.key.site, content.sha256)
        if known is not None:
            integrity.note_sealed_again(tx, known, content.looked_at, replaced=not content.existed)
            return
        if isinstance(self.blobs, Withdraws) and not self.blobs.holds(content.key):
            raise Conflict("the sealed bytes were taken back")
        blob_rows.add(tx, content.key.site, content.sha256, content.size_bytes)

    def take_back(self, tx: Connection, key: BlobKey, older_than_s: float) -> BlobKey | None:
        """A unit of work: sealed bytes of at least that age that no row names become staged ones of nobody.

        A row is the blob's own, or one of what owns it: that is lost at times, and the bytes may be the last copy then.
        Gives their new key, to be deleted; None where they stay: while a backup copies, and for ever where they were
        there before the database was. Those are another database's, which was lost: rebuild-index reads them.
        """
        if not isinstance(self.blobs, Withdraws) or blob_rows.find(tx, key.site, key.name) is not None:
            return None
        if blob_rows.is_owned(tx, key.site, key.name):
            return None
        born_at = inventory.born_at(tx)
        if born_at is None or pauses.cleanup_is_paused(tx):
            return None
        return self.blobs.withdraw(key, older_than_s, datetime.fromisoformat(born_at).timestamp())

    async def close(self) -> None:
        """See Database.close."""
        await self.database.close()
