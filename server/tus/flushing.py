"""Makes the ends of PATCHes durable a little later, many together (contract §2). Owns what waits for the medium.

Facts: bytes in the page cache survive `kill -9`, so an offset may be told before they are flushed; after a
reboot only what a row says was flushed counts. A flush and a commit after each of many small PATCHes cost more
than the PATCHes. What waits is only an account of it: when this process dies the bytes are still there, and
whoever takes the upload over goes on from the row (gaps.py).
"""

import asyncio
import time

import structlog

from server.tus.neighbours import Neighbours
from server.tus.receiving import Transfer
from server.tus.rows import UploadRows
from server.worker import Tasks
from storage.blobs.base import SEGMENT_BYTES, SEGMENT_S, staging
from storage.errors import Conflict, FlushFailed, NotFound, StorageError
from storage.records import UploadRecord
from storage.store import Store

log = structlog.get_logger()
MOST_WAITING = 4096


class _Waiting:
    """Bytes of one upload that were told of, and are not known to be on the medium: those after its row's offset."""

    def __init__(self, upload: UploadRecord, transfer: Transfer, end: int) -> None:
        self.upload = upload
        self.transfer = transfer
        self.end = end
        self.since_s = time.monotonic()


class Flushes:
    """What waits to be flushed, by upload."""

    def __init__(self, store: Store, rows: UploadRows, tasks: Tasks, neighbours: Neighbours) -> None:
        self._store = store
        self._rows = rows
        self._tasks = tasks
        self._neighbours = neighbours
        self._waiting: dict[str, _Waiting] = {}
        self._ending: dict[str, asyncio.Future[None]] = {}

    def resume(self, upload: UploadRecord, transfer: Transfer) -> None:
        """The next PATCH of an upload begins: its transfer goes on where the waiting one of the same sender stopped."""
        waiting = self._waiting.get(upload.upload_id)
        if waiting is not None and transfer.continues(waiting.transfer, waiting.end):
            del self._waiting[upload.upload_id]
            transfer.take_over(waiting.transfer)

    def wait(self, upload: UploadRecord, transfer: Transfer, end: int) -> None:
        """The account of a transfer that ended at `end` is given soon."""
        self._neighbours.listen(self.tell)
        waiting = self._waiting[upload.upload_id] = _Waiting(upload, transfer, end)
        asyncio.get_running_loop().call_later(max(0.0, SEGMENT_S - transfer.age_s), self._begin, waiting)

    async def tell(self, upload_id: str) -> None:
        """What waits of this upload is told of now; done once it is in its rows."""
        waiting = self._waiting.get(upload_id)
        if waiting is not None:
            await self._flush(waiting)
        elif (ending := self._ending.get(upload_id)) is not None:
            await asyncio.wait([ending])

    async def after(self, upload: UploadRecord, transfer: Transfer, end: int) -> UploadRecord:
        """A PATCH is over and more will come: its bytes are flushed now if that is due, else soon."""
        is_due = end - upload.offset_bytes >= SEGMENT_BYTES or transfer.age_s >= SEGMENT_S
        if is_due or upload.upload_id in self._waiting or len(self._waiting) >= MOST_WAITING:
            await self._store.blobs.flush(staging(upload.site, upload.upload_id))
            return await self._store.write(self._rows.progress(upload, end, transfer.entry(end)))
        self.wait(upload, transfer, end)
        return upload

    def _begin(self, waiting: _Waiting) -> None:
        if self._waiting.get(waiting.upload.upload_id) is waiting:
            self._tasks.spawn(self._flush(waiting), f"flush-{waiting.upload.upload_id}")

    async def flush_all(self) -> None:
        """Before the end of the process: nothing waits any more."""
        for waiting in list(self._waiting.values()):
            await self._flush(waiting)
        self._neighbours.close()

    async def _flush(self, waiting: _Waiting) -> None:
        upload = waiting.upload
        if self._waiting.pop(upload.upload_id, None) is not waiting:
            return  # the next PATCH has come
        ending = self._ending[upload.upload_id] = asyncio.get_running_loop().create_future()
        try:
            await self._end(waiting)
        finally:
            del self._ending[upload.upload_id]
            ending.set_result(None)

    async def _end(self, waiting: _Waiting) -> None:
        upload, end = waiting.upload, waiting.end
        entry = waiting.transfer.entry(end)
        try:
            await self._store.blobs.flush(staging(upload.site, upload.upload_id))
            await self._store.write(self._rows.progress(upload, end, entry))
        except (Conflict, NotFound):
            await self._rows.account(upload, end, entry)  # another process went on, or it has ended: its rows say so
        except FlushFailed:
            await self._rows.account(upload, end, entry)
            await self._rows.end_lost(upload)
        except StorageError as error:
            log.warning("upload.not_flushed", upload_id=upload.upload_id, reason=str(error))
