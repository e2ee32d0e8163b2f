"""Units of work on the rows of sealed blobs. Nothing here touches bytes."""

from collections.abc import Collection

from sqlalchemy import Connection, bindparam, select

from storage.database.prepared import Prepared, inserting
from storage.records import BlobRecord, timestamp
from storage.tables import arrival, blob, image, quarantine, session, upload

_ADD = inserting(blob, without=("verified_at", "alarm", "read_at", "alarm_at", "read_moment", "verified_moment"))
_FIND = Prepared(select(blob).where(blob.c.site == bindparam("wanted_site"), blob.c.sha256 == bindparam("wanted")))

OWNERS = (session, upload, image, arrival, quarantine)
"""The tables that refer to blobs."""


def add(tx: Connection, site: str, sha256: str, size_bytes: int) -> None:
    """Note a sealed blob that has no row yet."""
    _ADD.run(tx, site=site, sha256=sha256, size_bytes=size_bytes, sealed_at=timestamp())


def find(tx: Connection, site: str, sha256: str) -> BlobRecord | None:
    """The row of a sealed blob."""
    row = _FIND.first(tx, wanted_site=site, wanted=sha256)
    return BlobRecord(*row) if row else None


def is_doubted(tx: Connection, site: str, sha256: str) -> bool:
    """Whether an integrity alarm is open on the blob."""
    found = find(tx, site, sha256)
    return found is not None and found.alarm is not None


def with_row(tx: Connection, sites: Collection[str], digests: Collection[str]) -> set[tuple[str, str]]:
    """Which (site, sha256) of these have a row."""
    named = select(blob.c.site, blob.c.sha256).where(blob.c.site.in_(sites), blob.c.sha256.in_(digests))
    return {(row.site, row.sha256) for row in tx.execute(named)}


def is_owned(tx: Connection, site: str, sha256: str) -> bool:
    """Whether anything refers to these bytes, whether they have a row or not."""
    return any(
        tx.execute(select(table.c.site).where(table.c.site == site, table.c.blob_sha256 == sha256).limit(1)).first()
        for table in OWNERS)


def without_owner(tx: Connection) -> list[tuple[str, str]]:
    """Orphans (contract §6): (site, sha256) of blob rows that nothing refers to."""
    owners = [
        select(table.c.blob_sha256).where(table.c.blob_sha256 == blob.c.sha256, table.c.site == blob.c.site)
        for table in OWNERS
    ]
    query = select(blob.c.site, blob.c.sha256)
    for owner in owners:
        query = query.where(~owner.exists())
    return [(row.site, row.sha256) for row in tx.execute(query)]


def keys(tx: Connection) -> set[tuple[str, str]]:
    """Every (site, sha256) that has a row."""
    return set(sizes(tx))


def sizes(tx: Connection) -> dict[tuple[str, str], int]:
    """How many bytes every (site, sha256) with a row has."""
    return {(row.site, row.sha256): row.size_bytes
            for row in tx.execute(select(blob.c.site, blob.c.sha256, blob.c.size_bytes))}
