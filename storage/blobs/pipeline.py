"""Takes a long body from a blocking source into a file: reading, writing and hashing side by side, in threads.

Facts: SHA-256 takes a core at about 1.8 GB/s; writing through the page cache takes another at 0.5 to 1.1, past it
(O_DIRECT) at 2 and next to no CPU; all of them leave the interpreter alone meanwhile. `fdatasync` every 64 MiB
beside them costs almost nothing. Writing past the cache needs memory, offsets and lengths in whole blocks.
"""

import mmap
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor

from storage.blobs.base import SEGMENT_BYTES, SEGMENT_S, Source

BUFFER_BYTES = 1024 * 1024
BUFFERS_EACH = 4
BLOCK_BYTES = 4096


class Buffers:
    """Memory that begins on a page, shared by all bodies: made when it is first needed, at most `most` pieces."""

    def __init__(self, most: int) -> None:
        self._free: queue.LifoQueue[mmap.mmap] = queue.LifoQueue()
        self._left = most
        self._lock = threading.Lock()

    def take(self) -> mmap.mmap:
        """A buffer; waits for one where all are in use: whoever reads gives his back soon."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            with self._lock:
                makes, self._left = self._left > 0, max(0, self._left - 1)
            return mmap.mmap(-1, BUFFER_BYTES) if makes else self._free.get()

    def give(self, buffer: mmap.mmap) -> None:
        """Back for others."""
        self._free.put(buffer)


class Pipeline:
    """One body on its way into one file. `offset` counts what was written; `run` works in a thread of its own.

    `write(buffer, offset)` and `flush()` act on the file and raise storage.errors; `digest` sees every byte written.
    """

    def __init__(
        self, offset: int, source: Source, buffers: Buffers, helpers: Executor, *,
        write: Callable[[memoryview, int], None], flush: Callable[[], None], digest: Callable[[memoryview], object],
        on_durable: Callable[[int], None],
    ) -> None:
        self.offset = offset
        self._source = source
        self._buffers = buffers
        self._helpers = helpers
        self._write = write
        self._flush = flush
        self._digest = digest
        self._on_durable = on_durable
        self._mine = threading.Semaphore(BUFFERS_EACH)
        self._read: queue.SimpleQueue[tuple[mmap.mmap, int] | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[tuple[mmap.mmap, int] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None

    def run(self) -> int:
        """Receive until the source gives no more; what it gave is written and hashed, whatever it raises."""
        writing, hashing = self._helpers.submit(self._write_all), self._helpers.submit(self._hash_all)
        try:
            self._read_all()
        finally:
            self._read.put(None)
            writing.result()
            self._written.put(None)
            hashing.result()
        if self._failure is not None:
            raise self._failure
        return self.offset

    def _read_all(self) -> None:
        position = self.offset
        while self._failure is None:
            self._mine.acquire()
            buffer, count = self._buffers.take(), 0
            try:
                # a full buffer ends on a block, so that the next one begins on one
                count = self._source(memoryview(buffer)[: BUFFER_BYTES - position % BLOCK_BYTES])
            finally:
                if count == 0:
                    self._release(buffer)
            if count == 0:
                return
            position += count
            self._read.put((buffer, count))

    def _write_all(self) -> None:
        flushed, began = self.offset, time.monotonic()
        while (item := self._read.get()) is not None:
            buffer, count = item
            written = 0
            if self._failure is None:
                try:
                    self._write(memoryview(buffer)[:count], self.offset)
                    self.offset += count
                    written = count
                    if self.offset - flushed >= SEGMENT_BYTES or time.monotonic() - began >= SEGMENT_S:
                        self._flush()
                        self._on_durable(self.offset)
                        flushed, began = self.offset, time.monotonic()
                except Exception as error:  # noqa: BLE001 - raised again in `run`, for whoever waits
                    self._failure = error
            self._written.put((buffer, written))

    def _hash_all(self) -> None:
        while (item := self._written.get()) is not None:
            buffer, written = item
            if written:
                # also after a failure: the digest goes on with the file, so it has seen what is in the file
                self._digest(memoryview(buffer)[:written])
            self._release(buffer)

    def _release(self, buffer: mmap.mmap) -> None:
        self._buffers.give(buffer)
        self._mine.release()
