"""Blobs in local files: temp, fsync, link to the final name, fsync of the directory.

Facts: batches of 512 KiB written in a thread are fastest; a staged file keeps its name beside the sealed
one until the transaction that tells of it has committed, so a crash in between loses nothing.
"""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from storage.blobs.base import BlobKey, Sealed, Span, sealed
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound, OffsetMismatch, StorageIO
from storage.records import Sha256

BATCH_BYTES = 512 * 1024
READ_BYTES = 1024 * 1024
T = TypeVar("T")


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("no such blob") from error
    except FileExistsError as error:
        raise Conflict("the blob is there already") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("the disk is full") from error
        raise StorageIO(f"the file system failed: {errno.errorcode.get(error.errno or 0, 'unknown')}") from error


async def _in_thread(work: Callable[[], T]) -> T:
    """Run file work off the loop. Shielded: a cancelled caller never leaves a file half written."""

    def guarded() -> T:
        with _storage_errors():
            return work()

    task = asyncio.ensure_future(asyncio.to_thread(guarded))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directory(path: Path) -> None:
    """Make `path` and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(path.parent)


def _write_all(descriptor: int, offset: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _flush(descriptor: int) -> None:
    # after a failed fsync the kernel may have dropped the pages: asking again would lie
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise FlushFailed("the disk did not confirm the bytes") from error


def _digest_of(path: Path, *, from_medium: bool) -> tuple[Sha256, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        if from_medium:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(READ_BYTES)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
    return Sha256(digest.hexdigest()), size


class FilesystemBlobs:
    """BlobStore on a directory; also Truncates, LocalPath, Lists."""

    def __init__(self, root: Path) -> None:
        self._root = root
        _make_directory(root)

    def path(self, key: BlobKey) -> Path:
        """The file of `key`; sealed ones are spread over 256 directories."""
        if key.area == "sealed":
            return self._root / "sealed" / f"site-{key.site}" / key.name[:2] / key.name
        return self._root / "staging" / f"site-{key.site}" / key.name

    async def create(self, key: BlobKey) -> None:
        """Make an empty file and fsync its directory."""
        path = self.path(key)

        def work() -> None:
            _make_directory(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _sync_directory(path.parent)

        await _in_thread(work)

    async def size(self, key: BlobKey) -> int:
        """The file's size in bytes."""
        return await _in_thread(lambda: self.path(key).stat().st_size)

    async def append(self, key: BlobKey, offset: int, chunks: AsyncIterable[bytes]) -> int:
        """Write at the offset in batches, keep all that arrived, flush at the end."""
        descriptor = await _in_thread(lambda: os.open(self.path(key), os.O_WRONLY | os.O_CLOEXEC))
        try:
            if os.fstat(descriptor).st_size != offset:
                raise OffsetMismatch("the append does not start at the end")
            end = await self._write_batches(descriptor, offset, chunks)
            await _in_thread(lambda: _flush(descriptor))
            return end
        finally:
            os.close(descriptor)

    async def _write_batches(self, descriptor: int, offset: int, chunks: AsyncIterable[bytes]) -> int:
        batch: list[bytes] = []
        batched = 0

        async def write() -> None:
            nonlocal batch, batched, offset
            content = batch[0] if len(batch) == 1 else b"".join(batch)
            batch, batched, start = [], 0, offset
            offset += len(content)
            await _in_thread(lambda: _write_all(descriptor, start, content))

        try:
            async for chunk in chunks:
                batch.append(chunk)
                batched += len(chunk)
                if batched >= BATCH_BYTES:
                    await write()
        finally:
            if batch:  # a dropped connection is normal: what arrived is kept
                await asyncio.shield(write())
        return offset

    async def seal(self, key: BlobKey, expected: Sha256 | None) -> Sealed:
        """Hash what lies on the disk, then link it to its address and fsync the directory."""
        return await _in_thread(lambda: self._seal(key, expected))

    def _seal(self, key: BlobKey, expected: Sha256 | None) -> Sealed:
        source = self.path(key)
        digest, size = _digest_of(source, from_medium=False)
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        final = sealed(key.site, digest)
        target = self.path(final)
        _make_directory(target.parent)
        with source.open("rb") as file:
            _flush(file.fileno())
        existed = target.exists() and _digest_of(target, from_medium=True)[0] == digest
        if not existed:
            # a second link, moved over whatever damaged bytes lie there: never a moment without a file
            replacement = target.with_name(f".{key.name}.link")
            replacement.unlink(missing_ok=True)
            os.link(source, replacement)
            replacement.replace(target)
            replacement.unlink(missing_ok=True)  # rename() keeps both names when they are one file
        _sync_directory(target.parent)
        return Sealed(final, digest, size, existed)

    async def read(self, key: BlobKey, span: Span | None = None) -> AsyncIterator[bytes]:
        """Read 1 MiB at a time in a thread."""
        file = await _in_thread(lambda: self.path(key).open("rb", buffering=0))
        try:
            position = span.start if span else 0
            while True:
                count = READ_BYTES if span is None else min(READ_BYTES, span.stop - position)
                chunk = await _in_thread(lambda: os.pread(file.fileno(), count, position))  # noqa: B023 - awaited here
                if not chunk:
                    return
                position += len(chunk)
                yield chunk
        finally:
            file.close()

    async def digest(self, key: BlobKey) -> Sha256:
        """SHA-256 after the page cache was asked to let the file go."""
        return (await _in_thread(lambda: _digest_of(self.path(key), from_medium=True)))[0]

    async def truncate(self, key: BlobKey, size_bytes: int) -> None:
        """Cut the file and fsync it."""

        def work() -> None:
            with self.path(key).open("r+b") as file:
                file.truncate(size_bytes)
                _flush(file.fileno())

        await _in_thread(work)

    async def delete(self, key: BlobKey) -> None:
        """Unlink the file."""
        await _in_thread(lambda: self.path(key).unlink(missing_ok=True))

    async def keys(self, area: str) -> AsyncIterator[BlobKey]:
        """Every file of an area."""
        pattern = "site-*/*/*" if area == "sealed" else "site-*/*"
        base = self._root / area
        for path in await _in_thread(lambda: sorted(base.glob(pattern))):
            site = path.relative_to(base).parts[0].removeprefix("site-")
            if not path.name.startswith("."):
                yield BlobKey(area, site, path.name)
