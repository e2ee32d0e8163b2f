"""Finds bytes of an upload that no row of the audit tells of, and has them told. Takes no lock.

Facts: the account of a PATCH that is not the last waits up to 5 s in the process that took it (flushing.py), and is
lost with that process; the bytes, and the offset that was told, are not. The row says how far the audit tells, so
whoever takes an upload over sees the gap. A process that lives is asked for its account first; only what nobody can
account for any more is told by what is left: from where to where.
"""

from functools import partial

from sqlalchemy import Connection

from server.tus.flushing import Flushes
from server.tus.neighbours import Neighbours
from server.tus.rows import Seen, UploadRows, told
from storage import uploads
from storage.records import AuditEntry, UploadRecord
from storage.store import Store

CRASHED = "crashed"
MOST_AT_ONCE = 500


class Gaps:
    """Whoever calls holds the upload's lock, so its bytes are what they are."""

    def __init__(self, store: Store, rows: UploadRows, flushes: Flushes, neighbours: Neighbours) -> None:
        self._store = store
        self._rows = rows
        self._flushes = flushes
        self._neighbours = neighbours

    async def close(self, seen: Seen, held: int) -> Seen:
        """The audit tells of all `held` bytes from now on. Gives the upload as it then is, which may be gone."""
        if not is_open(seen.upload, held):
            return seen
        await self._flushes.tell(seen.upload.upload_id)
        seen = self._rows.look(seen.upload)
        if not is_open(seen.upload, held):
            return seen
        await self._neighbours.ask(seen.upload.upload_id)
        seen = self._rows.look(seen.upload)
        if not is_open(seen.upload, held):
            return seen
        await self.tell_crashed([(seen.upload, held)])
        return self._rows.look(seen.upload)

    async def tell_crashed(self, found: list[tuple[UploadRecord, int]]) -> None:
        """Nobody is left who knows how the bytes of these uploads came, up to what is held of each."""
        for start in range(0, len(found), MOST_AT_ONCE):
            await self._store.write(partial(_tell_crashed, found=found[start : start + MOST_AT_ONCE]))


def is_open(upload: UploadRecord, held: int) -> bool:
    """Whether bytes came of which the audit does not tell; a final upload's came with its parts."""
    return held > upload.audited_bytes and not upload.is_final


def _tell_crashed(tx: Connection, found: list[tuple[UploadRecord, int]]) -> None:
    for upload, held in found:
        told(tx, upload.upload_id, held, _crashed(uploads.get(tx, upload.upload_id), held))


def _crashed(upload: UploadRecord, held: int) -> AuditEntry:
    return AuditEntry(
        upload.site, "upload.transfer", upload.principal, upload.session_id or upload.upload_id, None, CRASHED,
        {"upload_id": upload.upload_id, "offset_before": upload.audited_bytes, "offset_after": held})
