"""Units of work on the rows of sealed blobs. Nothing here touches bytes."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from storage.database.prepared import Prepared, inserting
from storage.records import BlobRecord, timestamp
from storage.tables import arrival, blob, image, quarantine, session, upload

_ADD = inserting(blob, without=("verified_at",))
_FIND = Prepared(select(blob).where(blob.c.site == bindparam("wanted_site"), blob.c.sha256 == bindparam("wanted")))


def add(tx: Connection, site: str, sha256: str, size_bytes: int, repaired: bool = False) -> None:
    """Note a sealed blob; `repaired` clears its alarm, its bytes having been replaced by good ones."""
    if find(tx, site, sha256) is None:
        _ADD.run(tx, site=site, sha256=sha256, size_bytes=size_bytes, sealed_at=timestamp(), alarm=None)
    elif repaired:
        tx.execute(update(blob).where(blob.c.site == site, blob.c.sha256 == sha256).values(alarm=None))


def find(tx: Connection, site: str, sha256: str) -> BlobRecord | None:
    """The row of a sealed blob."""
    row = _FIND.first(tx, wanted_site=site, wanted=sha256)
    return BlobRecord(*row) if row else None


def with_row(tx: Connection, sites: Collection[str], digests: Collection[str]) -> set[tuple[str, str]]:
    """Which (site, sha256) of these have a row."""
    named = select(blob.c.site, blob.c.sha256).where(blob.c.site.in_(sites), blob.c.sha256.in_(digests))
    return {(row.site, row.sha256) for row in tx.execute(named)}


def note_readback(tx: Connection, site: str, sha256: str, alarm: str | None) -> None:
    """Keep what reading a blob back found: verified now, or an alarm."""
    values: dict[str, Any] = {"alarm": alarm} if alarm else {"verified_at": timestamp()}
    tx.execute(update(blob).where(blob.c.site == site, blob.c.sha256 == sha256).values(**values))


def without_owner(tx: Connection) -> list[tuple[str, str]]:
    """Orphans (contract §6): (site, sha256) of blob rows that nothing refers to."""
    owners = [
        select(table.c.blob_sha256).where(table.c.blob_sha256 == blob.c.sha256, table.c.site == blob.c.site)
        for table in (session, upload, image, arrival, quarantine)
    ]
    query = select(blob.c.site, blob.c.sha256)
    for owner in owners:
        query = query.where(~owner.exists())
    return [(row.site, row.sha256) for row in tx.execute(query)]


def keys(tx: Connection) -> set[tuple[str, str]]:
    """Every (site, sha256) that has a row."""
    return {(row.site, row.sha256) for row in tx.execute(select(blob.c.site, blob.c.sha256))}
