"""Copies files whole and durably: under another name first, verified, renamed. Knows no blob store, and no row.

A file that a copy names under its final name is a whole one, whenever the copying was cut short.
"""

import errno
import hashlib
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.blobs.medium import READ_BYTES, open_file, status_of_file, storage_errors, sync_file, write_all
from storage.errors import DigestMismatch, NotFound, Unreadable
from storage.records import Sha256

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Copied:
    """What lies at the target now: its digest (None for a hard link, whose bytes were not read) and size in bytes."""

    sha256: Sha256 | None
    size_bytes: int


def copy_file(source: Path, target: Path, expected: Sha256 | None = None) -> Copied:
    """Copy by reading and writing, 0600, fsynced; the name is durable once its folder was synced.

    DigestMismatch when `expected` is given and what was read differs; NotFound, NotAFile, NoSpace, StorageIO;
    Unreadable where it is the source that cannot be read.
    """
    partial = target.with_name(target.name + PARTIAL)
    digest, size = hashlib.sha256(), 0
    with storage_errors():
        try:
            writing = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                with _opened(source) as reading:
                    buffer = bytearray(READ_BYTES)
                    while count := _read_into(reading, buffer):
                        digest.update(memoryview(buffer)[:count])
                        write_all(writing, size, memoryview(buffer)[:count])
                        size += count
                if expected is not None and digest.hexdigest() != expected:
                    raise DigestMismatch(expected, digest.hexdigest())
                sync_file(writing)
            finally:
                os.close(writing)
            partial.replace(target)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    return Copied(Sha256(digest.hexdigest()), size)


def _opened(source: Path) -> io.FileIO:
    try:
        reading = io.FileIO(open_file(source))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{source} cannot be read: {error.strerror}") from error
    os.posix_fadvise(reading.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return reading


def _read_into(reading: io.FileIO, buffer: bytearray) -> int:
    try:
        return reading.readinto(buffer) or 0
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror}") from error


def link_file(source: Path, target: Path) -> Copied | None:
    """Give `source` a second name; None where the two are not on one medium, or it knows no second names."""
    with storage_errors():
        try:
            status_of_file(source)
            os.link(source, target)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                return None
            raise
        return Copied(None, size_of(target) or 0)


def size_of(path: Path) -> int | None:
    """The size in bytes of a file; None where there is none, or something else."""
    try:
        with storage_errors():
            return status_of_file(path).st_size
    except NotFound:
        return None
