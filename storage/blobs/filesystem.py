"""Blobs in local files: temp, fsync, link to the final name, fsync of the directory.

Facts: a small file is fastest in one visit of a thread; a staged file keeps its name beside the sealed one until
the transaction that tells of it has committed, so a crash in between loses nothing.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from storage.blobs import listing
from storage.blobs.base import HEAD_BYTES, BlobKey, OnRead, Piece, Sealed, Source, Span, sealed, staging
from storage.blobs.batches import batches
from storage.blobs.digests import RunningDigests, digest_of
from storage.blobs.layout import Layout
from storage.blobs.linking import link
from storage.blobs.medium import (
    READ_BYTES,
    Buffer,
    check_end,
    free_bytes,
    open_file,
    open_past_cache,
    status_of_file,
    storage_errors,
    sync_directory,
    sync_file,
    write_all,
)
from storage.blobs.pipeline import BLOCK_BYTES, Buffers, Pipeline
from storage.blobs.threads import in_thread, shielded
from storage.errors import DigestMismatch, NoSpace, NotAFile, OffsetMismatch
from storage.moments import moment
from storage.records import Sha256

RECEIVERS = 128
"""Bodies that flow past the loop at once: each holds three threads meanwhile, none while it waits for its sender."""
BUFFERS = 64
DISCARD_S = 0.1


class FilesystemBlobs:
    """BlobStore on a directory; also Receives, Measures, Truncates, LocalPath, Lists, Ages, Withdraws.

    `reserve_bytes` of the medium are never touched, so that the database beside the blobs can go on.
    """

    def __init__(self, root: Path, reserve_bytes: int = 0) -> None:
        self._layout = Layout(root)
        self._reserve_bytes = reserve_bytes
        self._digests = RunningDigests()
        self._discarded: list[str] = []
        self._receivers = ThreadPoolExecutor(RECEIVERS, "receiver")
        self._helpers = ThreadPoolExecutor(2 * RECEIVERS, "receiver-helper")
        self._buffers = Buffers(BUFFERS)

    def path(self, key: BlobKey) -> Path:
        """The file of `key`; sealed ones are spread over 256 directories."""
        return Path(self._layout.name(key))

    async def size(self, key: BlobKey) -> int:
        """The file's size in bytes."""
        with storage_errors():
            try:
                return status_of_file(self._layout.name(key)).st_size
            except FileNotFoundError:
                if key.area == "staging":
                    return 0
                raise

    async def room_bytes(self) -> int:
        """What the file system has left for us beyond the reserve."""
        with storage_errors():
            return max(0, free_bytes(os.statvfs(self._layout.root)) - self._reserve_bytes)

    def _open(self, key: BlobKey, offset: int) -> int:
        """The staged file, ready to be written at its end."""
        path = self._layout.name(key)
        try:
            descriptor = open_file(path, os.O_WRONLY)
        except FileNotFoundError:
            if offset != 0:
                raise
            self._layout.make_staging(key.site)
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        if os.fstat(descriptor).st_size != offset:
            os.close(descriptor)
            raise OffsetMismatch("the append does not start at the end")
        return descriptor

    def _write(self, descriptor: int, content: Buffer, offset: int) -> None:
        self._check_room(descriptor, len(content))
        check_end(descriptor, offset)
        write_all(descriptor, offset, content)

    def _check_room(self, descriptor: int, wanted_bytes: int) -> None:
        if self._reserve_bytes and free_bytes(os.fstatvfs(descriptor)) < self._reserve_bytes + wanted_bytes:
            raise NoSpace("the disk is full but for its reserve")

    async def append(self, key: BlobKey, offset: int, chunks: AsyncIterable[bytes], *, flush: bool = True) -> int:
        """Write at the offset in batches, keep all that arrived, flush at the end."""
        with storage_errors():
            descriptor = self._open(key, offset)
        digest, end = self._digests.take(key, offset), offset
        try:
            async for batch in batches(chunks):

                def write(content: bytes = batch, position: int = end) -> None:
                    self._write(descriptor, content, position)
                    if digest is not None:
                        digest.update(content)

                await in_thread(write)
                end += len(batch)
            if flush:
                await in_thread(lambda: self._flush_all(descriptor, key))
            return end
        finally:
            if os.fstat(descriptor).st_size == end:
                self._digests.keep(key, end, digest)
            os.close(descriptor)

    def _flush_all(self, descriptor: int, key: BlobKey) -> None:
        sync_file(descriptor)
        sync_directory(self.path(key).parent)

    async def flush(self, key: BlobKey) -> None:
        """fdatasync, and the name of a file that is new."""

        def work() -> None:
            descriptor = open_file(self._layout.name(key))
            try:
                self._flush_all(descriptor, key)
            finally:
                os.close(descriptor)

        await in_thread(work)

    async def receive(self, key: BlobKey, offset: int, source: Source, on_durable: Callable[[int], None]) -> int:
        """Receive in threads; see pipeline.py."""
        loop = asyncio.get_running_loop()

        def durable(size: int) -> None:
            loop.call_soon_threadsafe(on_durable, size)

        return await shielded(lambda: self._receive(key, offset, source, durable), self._receivers)

    def _receive(self, key: BlobKey, offset: int, source: Source, on_durable: Callable[[int], None]) -> int:
        with storage_errors():
            descriptor = self._open(key, offset)
        past_cache = open_past_cache(self.path(key))
        digest = self._digests.take(key, offset)

        def write(content: memoryview, position: int) -> None:
            with storage_errors():
                written = 0
                if past_cache is not None and position % BLOCK_BYTES == 0 == len(content) % BLOCK_BYTES:
                    self._check_room(descriptor, len(content))
                    check_end(descriptor, position)
                    written = os.pwrite(past_cache, content, position)
                if written < len(content):
                    self._write(descriptor, content[written:], position + written)

        def flush() -> None:
            with storage_errors():
                self._flush_all(descriptor, key)

        pipeline = Pipeline(
            offset, source, self._buffers, self._helpers, write=write, flush=flush,
            digest=digest.update if digest is not None else len, on_durable=on_durable)
        try:
            return pipeline.run()
        finally:
            if os.fstat(descriptor).st_size == pipeline.offset:
                self._digests.keep(key, pipeline.offset, digest)
            os.close(descriptor)
            if past_cache is not None:
                os.close(past_cache)

    async def seal(self, key: BlobKey, expected: Sha256 | None, last: Piece | None = None) -> Sealed:
        """Take the digest that ran along, or hash what lies on the disk; link it to its address; fsync."""
        return await in_thread(lambda: self._seal(key, expected, last))

    def _seal(self, key: BlobKey, expected: Sha256 | None, last: Piece | None) -> Sealed:
        source = self._layout.name(key)
        descriptor = self._open(key, last.offset) if last is not None else open_file(source)
        try:
            running = None
            if last is not None:
                running = self._digests.take(key, last.offset)
                self._write(descriptor, last.content, last.offset)
                if running is not None:
                    running.update(last.content)
            size = os.fstat(descriptor).st_size
            running = running or self._digests.take(key, size)
            digest = Sha256(running.hexdigest()) if running is not None else digest_of(source, from_medium=False)[0]
            if expected is not None and digest != expected:
                raise DigestMismatch(expected, digest)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        final, looked_at = sealed(key.site, digest), moment()
        self._layout.make_fan(final.site)
        existed = link(source, self._layout.name(final), digest)
        head = last.content[:HEAD_BYTES] if last is not None and last.offset == 0 else None
        return Sealed(final, digest, size, existed, head, looked_at)

    async def read(self, key: BlobKey, span: Span | None = None) -> AsyncIterator[bytes]:
        """Read 1 MiB at a time in a thread."""
        descriptor = await in_thread(lambda: open_file(self._layout.name(key)))
        try:
            position = span.start if span else 0
            while True:
                count = READ_BYTES if span is None else min(READ_BYTES, span.stop - position)
                chunk = await in_thread(lambda: os.pread(descriptor, count, position))  # noqa: B023 - awaited here
                if not chunk:
                    return
                position += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def digest(self, key: BlobKey, on_read: OnRead | None = None) -> Sha256:
        """SHA-256 after the page cache was asked to let the file go."""
        return (await in_thread(lambda: digest_of(self.path(key), from_medium=True, on_read=on_read)))[0]

    async def truncate(self, key: BlobKey, size_bytes: int) -> None:
        """Cut the file and fsync it."""

        def work() -> None:
            self._digests.forget(key)
            descriptor = open_file(self._layout.name(key), os.O_RDWR)
            try:
                os.ftruncate(descriptor, size_bytes)
                sync_file(descriptor)
            finally:
                os.close(descriptor)

        await in_thread(work)

    async def delete(self, key: BlobKey) -> None:
        """Unlink the file; a directory stays: NotAFile."""

        def work() -> None:
            try:
                self.path(key).unlink(missing_ok=True)
            except IsADirectoryError:
                raise NotAFile("a directory is never taken away") from None

        await in_thread(work)

    def discard(self, key: BlobKey) -> None:
        """Unlink the file a moment later, together with others."""
        self._discarded.append(self._layout.name(key))
        if len(self._discarded) == 1:
            asyncio.get_running_loop().call_later(DISCARD_S, self._discard_all)

    def _discard_all(self) -> None:
        names, self._discarded = self._discarded, []

        def work() -> None:
            for name in names:
                with suppress(OSError):
                    os.unlink(name)  # noqa: PTH108 - see Layout.name

        asyncio.get_running_loop().run_in_executor(None, work)

    async def age_s(self, key: BlobKey) -> float:
        """By the time of the inode's last change, which a new name is too."""

        def work() -> float:
            try:
                return time.time() - self.path(key).lstat().st_ctime
            except FileNotFoundError:
                return 0.0

        return await in_thread(work)

    async def renew(self, key: BlobKey) -> None:
        """By a change of the inode, which leaves the bytes alone."""

        def work() -> None:
            with suppress(FileNotFoundError):
                os.utime(self.path(key))

        await in_thread(work)

    def holds(self, key: BlobKey) -> bool:
        """Whether the file is there."""
        try:
            return status_of_file(self._layout.name(key)) is not None
        except (OSError, NotAFile):
            return False

    def withdraw(self, key: BlobKey, older_than_s: float, not_before_s: float = 0.0) -> BlobKey | None:
        """One rename: freeing the blocks of a long file takes too long for a transaction."""
        aside = staging(key.site, f"{key.name}.withdrawn")
        with storage_errors():
            try:
                changed_s = status_of_file(self._layout.name(key)).st_ctime
                if time.time() - changed_s < older_than_s or changed_s < not_before_s:
                    return None
                self._layout.make_staging(key.site)
                self.path(key).rename(self.path(aside))
            except (FileNotFoundError, NotAFile):
                return None
        return aside

    def keys(self, area: str) -> AsyncIterator[BlobKey]:
        """See listing.py."""
        return listing.keys(self._layout.root, area)

    def sizes(self, area: str) -> AsyncIterator[tuple[BlobKey, int]]:
        """See listing.py."""
        return listing.sizes(self._layout.root, area)
