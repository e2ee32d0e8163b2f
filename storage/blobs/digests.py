"""The SHA-256 of a file: as its bytes come, or by reading it again. Changes no file."""

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

from storage.blobs.base import BlobKey, OnRead
from storage.blobs.medium import READ_BYTES, open_file
from storage.records import Sha256


class RunningDigests:
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


def digest_of(path: Path | str, *, from_medium: bool, on_read: OnRead | None = None) -> tuple[Sha256, int]:
    """The digest and size of a file; `from_medium` asks the page cache to let it go first. OSError, NotAFile."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_file(path), "rb", buffering=0) as file:
        if from_medium:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(READ_BYTES)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
            if on_read is not None:
                on_read(count)
    return Sha256(digest.hexdigest()), size
