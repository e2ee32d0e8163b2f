"""What is asked of the medium, a step each: whole writes, and flushes that are believed once. Knows no blob."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.durations import FLUSHES
from storage.errors import Conflict, FlushFailed, NoSpace, NotAFile, NotFound, OffsetMismatch, StorageIO

Buffer = bytes | memoryview
READ_BYTES = 1024 * 1024
NO_FILE = "what lies in its place is no file"


@contextmanager
def storage_errors() -> Iterator[None]:
    """What the file system says, in the storage's words."""
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


def open_file(path: Path | str, mode: int = os.O_RDONLY) -> int:
    """Open a file, and nothing else: a FIFO would be waited for, a link may lead anywhere. OSError, NotAFile."""
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
            raise NotAFile(NO_FILE) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFile(NO_FILE)
    return descriptor


def status_of_file(path: Path | str) -> os.stat_result:
    """Its size and times, where it is a file, not followed. OSError, NotAFile."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotAFile(NO_FILE)
    return status


def check_end(descriptor: int, offset: int) -> None:
    """Writing elsewhere than at the end would leave a hole, or write over bytes: whoever cut the file is to blame."""
    if os.fstat(descriptor).st_size != offset:
        raise OffsetMismatch("the file ends elsewhere")


def write_all(descriptor: int, offset: int, content: Buffer) -> None:
    """One call may write less than it was given."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def open_past_cache(path: Path) -> int | None:
    """The file for writing whole blocks past the page cache; None where the file system cannot do that."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def sync_file(descriptor: int) -> None:
    """Put the bytes on the medium. FlushFailed."""
    # after a failed fsync the kernel may have dropped the pages: asking again would lie
    try:
        with FLUSHES.measured():
            os.fdatasync(descriptor)
    except OSError as error:
        raise FlushFailed("the disk did not confirm the bytes") from error


def sync_directory(path: Path | str) -> None:
    """Put the names in a directory on the medium. FlushFailed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with FLUSHES.measured():
            os.fsync(descriptor)
    except OSError as error:
        raise FlushFailed("the disk did not confirm a name") from error
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make `path` and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def free_bytes(status: os.statvfs_result) -> int:
    """What others than root may still write."""
    return status.f_bavail * status.f_frsize
