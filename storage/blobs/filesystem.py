"""Blobs in local files: temp, fsync, link to the final name, fsync of the directory.

Facts: batches of 512 KiB written in a thread are fastest, and a small file in one visit of a thread; a staged
file keeps its name beside the sealed one until the transaction that tells of it has committed, so a crash in
between loses nothing.
"""

import asyncio
import errno
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from storage.blobs.base import HEAD_BYTES, BlobKey, Piece, Sealed, Source, Span, sealed, staging
from storage.blobs.receiving import BLOCK_BYTES, Buffers, Receiving
from storage.errors import Conflict, DigestMismatch, FlushFailed, NoSpace, NotFound, OffsetMismatch, StorageIO
from storage.records import Sha256

BATCH_BYTES = 512 * 1024
READ_BYTES = 1024 * 1024
RECEIVERS = 128
"""Bodies that flow past the loop at once: each holds three threads meanwhile, none while it waits for its sender."""
BUFFERS = 64
DISCARD_S = 0.1
Buffer = bytes | memoryview
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
    """Run file work off the loop, its failures in the storage's words."""

    def guarded() -> T:
        with _storage_errors():
            return work()

    return await _shielded(guarded)


async def _shielded(work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
    """Run `work` in a thread. A cancelled caller never leaves a file half written."""
    task = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():  # whoever cancels may do so more than once
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise


def _sync_directory(path: Path | str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise FlushFailed("the disk did not confirm a name") from error
    finally:
        os.close(descriptor)


def _make_directory(path: Path) -> None:
    """Make `path` and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(path.parent)


async def _batches(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """`chunks` in pieces that are worth a write each; what came before a failure is given out before it."""
    batch: list[bytes] = []
    batched = 0
    failure: BaseException | None = None
    try:
        async for chunk in chunks:
            batch.append(chunk)
            batched += len(chunk)
            if batched >= BATCH_BYTES:
                yield batch[0] if len(batch) == 1 else b"".join(batch)
                batch, batched = [], 0
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised again below, after what arrived
        failure = error
    if batch:
        yield b"".join(batch)
    if failure is not None:
        raise failure


def _free_bytes(status: os.statvfs_result) -> int:
    return status.f_bavail * status.f_frsize


def _check_end(descriptor: int, offset: int) -> None:
    """Writing elsewhere than at the end would leave a hole, or write over bytes: whoever cut the file is to blame."""
    if os.fstat(descriptor).st_size != offset:
        raise OffsetMismatch("the file ends elsewhere")


def _write_all(descriptor: int, offset: int, content: Buffer) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _open_past_cache(path: Path) -> int | None:
    """The file for writing whole blocks past the page cache; None where the file system cannot do that."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def _flush(descriptor: int) -> None:
    # after a failed fsync the kernel may have dropped the pages: asking again would lie
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise FlushFailed("the disk did not confirm the bytes") from error


def _digest_of(path: Path | str, *, from_medium: bool) -> tuple[Sha256, int]:
    digest, size = hashlib.sha256(), 0
    with Path(path).open("rb", buffering=0) as file:
        if from_medium:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(READ_BYTES)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
    return Sha256(digest.hexdigest()), size


class _RunningDigests:
    """SHA-256 of staged bytes as they come, by key and size; the oldest are forgotten, and hashed again at the end."""

    MOST = 4096

    def __init__(self) -> None:
        self._known: OrderedDict[BlobKey, tuple[int, hashlib._Hash]] = OrderedDict()

    def take(self, key: BlobKey, size: int) -> "hashlib._Hash | None":
        """The digest over the first `size` bytes; it is the caller's until `keep`."""
        known_size, digest = self._known.pop(key, (-1, None))
        if known_size == size:
            return digest
        return hashlib.sha256() if size == 0 else None

    def forget(self, key: BlobKey) -> None:
        """The bytes are no longer those that were seen."""
        self._known.pop(key, None)

    def keep(self, key: BlobKey, size: int, digest: "hashlib._Hash | None") -> None:
        """`digest` has now seen the first `size` bytes."""
        if digest is not None:
            self._known[key] = (size, digest)
            if len(self._known) > self.MOST:
                self._known.popitem(last=False)


class FilesystemBlobs:
    """BlobStore on a directory; also Receives, Measures, Truncates, LocalPath, Lists, Ages, Withdraws.

    `reserve_bytes` of the medium are never touched, so that the database beside the blobs can go on.
    """

    def __init__(self, root: Path, reserve_bytes: int = 0) -> None:
        self._root = root
        self._reserve_bytes = reserve_bytes
        self._digests = _RunningDigests()
        self._staged_in: set[str] = set()
        self._fanned: set[str] = set()
        self._discarded: list[str] = []
        self._receivers = ThreadPoolExecutor(RECEIVERS, "receiver")
        self._helpers = ThreadPoolExecutor(2 * RECEIVERS, "receiver-helper")
        self._buffers = Buffers(BUFFERS)
        _make_directory(root)

    def path(self, key: BlobKey) -> Path:
        """The file of `key`; sealed ones are spread over 256 directories."""
        return Path(self._name(key))

    def _name(self, key: BlobKey) -> str:
        # plain text: a Path costs more than the system call that it is made for
        if key.area == "sealed":
            return f"{self._root}/sealed/site-{key.site}/{key.name[:2]}/{key.name}"
        return f"{self._root}/staging/site-{key.site}/{key.name}"

    async def size(self, key: BlobKey) -> int:
        """The file's size in bytes."""
        with _storage_errors():
            try:
                return os.stat(self._name(key)).st_size  # noqa: PTH116 - see _name
            except FileNotFoundError:
                if key.area == "staging":
                    return 0
                raise

    async def room_bytes(self) -> int:
        """What the file system has left for us beyond the reserve."""
        with _storage_errors():
            return max(0, _free_bytes(os.statvfs(self._root)) - self._reserve_bytes)

    def _open(self, key: BlobKey, offset: int) -> int:
        """The staged file, ready to be written at its end."""
        path = self._name(key)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if offset != 0:
                raise
            self._make_staging(key.site)
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        if os.fstat(descriptor).st_size != offset:
            os.close(descriptor)
            raise OffsetMismatch("the append does not start at the end")
        return descriptor

    def _make_staging(self, site: str) -> None:
        if site not in self._staged_in:
            _make_directory(self._root / "staging" / f"site-{site}")
            self._staged_in.add(site)

    def _write(self, descriptor: int, content: Buffer, offset: int) -> None:
        self._check_room(descriptor, len(content))
        _check_end(descriptor, offset)
        _write_all(descriptor, offset, content)

    def _check_room(self, descriptor: int, wanted_bytes: int) -> None:
        if self._reserve_bytes and _free_bytes(os.fstatvfs(descriptor)) < self._reserve_bytes + wanted_bytes:
            raise NoSpace("the disk is full but for its reserve")

    async def append(self, key: BlobKey, offset: int, chunks: AsyncIterable[bytes], *, flush: bool = True) -> int:
        """Write at the offset in batches, keep all that arrived, flush at the end."""
        with _storage_errors():
            descriptor = self._open(key, offset)
        digest, end = self._digests.take(key, offset), offset
        try:
            async for batch in _batches(chunks):

                def write(content: bytes = batch, position: int = end) -> None:
                    self._write(descriptor, content, position)
                    if digest is not None:
                        digest.update(content)

                await _in_thread(write)
                end += len(batch)
            if flush:
                await _in_thread(lambda: self._flush_all(descriptor, key))
            return end
        finally:
            if os.fstat(descriptor).st_size == end:
                self._digests.keep(key, end, digest)
            os.close(descriptor)

    def _flush_all(self, descriptor: int, key: BlobKey) -> None:
        _flush(descriptor)
        _sync_directory(self.path(key).parent)

    async def flush(self, key: BlobKey) -> None:
        """fdatasync, and the name of a file that is new."""

        def work() -> None:
            descriptor = os.open(self._name(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._flush_all(descriptor, key)
            finally:
                os.close(descriptor)

        await _in_thread(work)

    async def receive(self, key: BlobKey, offset: int, source: Source, on_durable: Callable[[int], None]) -> int:
        """Receive in threads; see receiving.py."""
        loop = asyncio.get_running_loop()

        def durable(size: int) -> None:
            loop.call_soon_threadsafe(on_durable, size)

        return await _shielded(lambda: self._receive(key, offset, source, durable), self._receivers)

    def _receive(self, key: BlobKey, offset: int, source: Source, on_durable: Callable[[int], None]) -> int:
        with _storage_errors():
            descriptor = self._open(key, offset)
        past_cache = _open_past_cache(self.path(key))
        digest = self._digests.take(key, offset)

        def write(content: memoryview, position: int) -> None:
            with _storage_errors():
                written = 0
                if past_cache is not None and position % BLOCK_BYTES == 0 == len(content) % BLOCK_BYTES:
                    self._check_room(descriptor, len(content))
                    _check_end(descriptor, position)
                    written = os.pwrite(past_cache, content, position)
                if written < len(content):
                    self._write(descriptor, content[written:], position + written)

        def flush() -> None:
            with _storage_errors():
                self._flush_all(descriptor, key)

        receiving = Receiving(
            offset, source, self._buffers, self._helpers, write=write, flush=flush,
            digest=digest.update if digest is not None else len, on_durable=on_durable)
        try:
            return receiving.run()
        finally:
            if os.fstat(descriptor).st_size == receiving.offset:
                self._digests.keep(key, receiving.offset, digest)
            os.close(descriptor)
            if past_cache is not None:
                os.close(past_cache)

    async def seal(self, key: BlobKey, expected: Sha256 | None, last: Piece | None = None) -> Sealed:
        """Take the digest that ran along, or hash what lies on the disk; link it to its address; fsync."""
        return await _in_thread(lambda: self._seal(key, expected, last))

    def _seal(self, key: BlobKey, expected: Sha256 | None, last: Piece | None) -> Sealed:
        source = self._name(key)
        descriptor = self._open(key, last.offset) if last is not None else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            running = None
            if last is not None:
                running = self._digests.take(key, last.offset)
                self._write(descriptor, last.content, last.offset)
                if running is not None:
                    running.update(last.content)
            size = os.fstat(descriptor).st_size
            running = running or self._digests.take(key, size)
            digest = Sha256(running.hexdigest()) if running is not None else _digest_of(source, from_medium=False)[0]
            if expected is not None and digest != expected:
                raise DigestMismatch(expected, digest)
            _flush(descriptor)
        finally:
            os.close(descriptor)
        final = sealed(key.site, digest)
        existed = self._link(source, final)
        head = last.content[:HEAD_BYTES] if last is not None and last.offset == 0 else None
        return Sealed(final, digest, size, existed, head)

    def _link(self, source: str, final: BlobKey) -> bool:
        """Give the staged file its final name, durably; whether the same bytes were there already."""
        target = self._name(final)
        self._make_fan(final.site)
        existed = False
        try:
            os.link(source, target)
        except FileExistsError:
            with suppress(OSError):  # what cannot be read is damaged
                existed = _digest_of(target, from_medium=True)[0] == final.name
            if not existed:
                # a second link, moved over the damaged bytes that lie there: never a moment without a file
                replacement = Path(target).with_name(f".{Path(source).name}.link")
                replacement.unlink(missing_ok=True)
                os.link(source, replacement)
                replacement.replace(target)
                replacement.unlink(missing_ok=True)  # rename() keeps both names when they are one file
        _sync_directory(target[: -len(final.name)])
        return existed

    def _make_fan(self, site: str) -> None:
        """The 256 directories of a site's sealed blobs, made at once: one fsync is enough for all of them."""
        if site in self._fanned:
            return
        parent = self._root / "sealed" / f"site-{site}"
        _make_directory(parent)
        for number in range(256):
            (parent / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        _sync_directory(parent)
        self._fanned.add(site)

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
            self._digests.forget(key)
            with self.path(key).open("r+b") as file:
                file.truncate(size_bytes)
                _flush(file.fileno())

        await _in_thread(work)

    async def delete(self, key: BlobKey) -> None:
        """Unlink the file."""
        await _in_thread(lambda: self.path(key).unlink(missing_ok=True))

    def discard(self, key: BlobKey) -> None:
        """Unlink the file a moment later, together with others."""
        self._discarded.append(self._name(key))
        if len(self._discarded) == 1:
            asyncio.get_running_loop().call_later(DISCARD_S, self._discard_all)

    def _discard_all(self) -> None:
        names, self._discarded = self._discarded, []

        def work() -> None:
            for name in names:
                with suppress(OSError):
                    os.unlink(name)  # noqa: PTH108 - see _name

        asyncio.get_running_loop().run_in_executor(None, work)

    async def age_s(self, key: BlobKey) -> float:
        """By the time of the inode's last change, which a new name is too."""

        def work() -> float:
            try:
                return time.time() - self.path(key).stat().st_ctime
            except FileNotFoundError:
                return 0.0

        return await _in_thread(work)

    def holds(self, key: BlobKey) -> bool:
        """Whether the file is there."""
        return os.path.exists(self._name(key))  # noqa: PTH110 - see _name

    def withdraw(self, key: BlobKey, older_than_s: float) -> BlobKey | None:
        """One rename: freeing the blocks of a long file takes too long for a transaction."""
        aside = staging(key.site, f"{key.name}.withdrawn")
        with _storage_errors():
            try:
                if time.time() - self.path(key).stat().st_ctime < older_than_s:
                    return None
                self._make_staging(key.site)
                self.path(key).rename(self.path(aside))
            except FileNotFoundError:
                return None
        return aside

    async def keys(self, area: str) -> AsyncIterator[BlobKey]:
        """Every file of an area, a directory at a time: there may be millions."""
        base = self._root / area
        pattern = "site-*/*" if area == "sealed" else "site-*"
        for folder in await _in_thread(lambda: sorted(base.glob(pattern))):
            site = folder.relative_to(base).parts[0].removeprefix("site-")
            for name in await _in_thread(lambda folder=folder: sorted(os.listdir(folder))):  # type: ignore[misc]  # noqa: PTH208
                if not name.startswith("."):
                    yield BlobKey(area, site, name)
