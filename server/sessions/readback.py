"""Reads a stored blob back from its medium before anybody may delete a copy (contract §8). One read per blob."""

import asyncio

from sqlalchemy import Connection

from server.errors import RequestError
from server.worker import Tasks
from storage import audit, blob_rows
from storage.blobs.base import sealed
from storage.errors import StorageError
from storage.records import AuditEntry
from storage.store import Store


class Readback:
    """Verifies blobs; those who ask for the same one at the same time share a read."""

    WAIT_S = 10.0

    def __init__(self, store: Store, tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._running: dict[tuple[str, str], asyncio.Future[bool]] = {}

    async def verify(self, site: str, sha256: str) -> None:
        """Return once the medium gave the right bytes. RequestError `readback_failed`, `readback_running`."""
        key = (site, sha256)
        if key not in self._running:
            self._running[key] = self._tasks.spawn(self._read(site, sha256), f"readback-{sha256[:8]}")
            self._running[key].add_done_callback(lambda _: self._running.pop(key, None))
        try:
            async with asyncio.timeout(self.WAIT_S):
                good = await asyncio.shield(self._running[key])
        except TimeoutError:
            raise RequestError("readback_running", retry_after_s=5) from None
        if not good:
            raise RequestError("readback_failed", retry_after_s=60)

    async def _read(self, site: str, sha256: str) -> bool:
        try:
            actual = await self._store.blobs.digest(sealed(site, sha256))
            alarm = None if actual == sha256 else "the bytes are not those that were stored"
        except StorageError as error:
            alarm = f"the bytes could not be read: {error}"

        def unit(tx: Connection) -> None:
            blob_rows.note_readback(tx, site, sha256, alarm)
            audit.append(tx, AuditEntry(
                site, "blob.readback", subject=sha256, outcome="damaged" if alarm else "ok"))

        await self._store.write(unit)
        return alarm is None
