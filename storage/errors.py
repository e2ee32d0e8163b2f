"""What the storage may raise, and whether a retry can help. Backends raise nothing else.

StorageError
├── Conflict        a compare-and-set found another state
├── Refused         a trigger or constraint of the database refused the change
├── NotFound        no such row or blob
│   └── NotAFile    something lies in the place of a blob that is no file
├── NoSpace         the medium is full
├── StorageIO       the medium failed
│   ├── Unreadable  what was to be copied cannot be read
│   └── FlushFailed an fsync failed: what it covered is not known to be durable, never retry it
├── OffsetMismatch  an append does not start where the stored bytes end
├── DigestMismatch  the sealed bytes are not the expected ones
└── UnusableDatabase  the file is damaged, no database, or one of a newer version
"""


class StorageError(Exception):
    """An expected failure of the storage."""

    code = "storage_unavailable"
    retryable = True


class Conflict(StorageError):
    """A compare-and-set found another state than the one expected."""

    retryable = False


class Refused(StorageError):
    """The database refused the change: a trigger or a constraint."""

    retryable = False


class NotFound(StorageError):
    """No such row or blob."""

    code = "not_found"
    retryable = False


class NotAFile(NotFound):
    """What lies in the place of a blob is no file: a directory, a FIFO, a link to elsewhere."""


class NoSpace(StorageError):
    """The medium is full; what was stored before stays."""

    code = "insufficient_storage"


class StorageIO(StorageError):
    """The medium failed."""


class Unreadable(StorageIO):
    """What was to be copied cannot be read: the medium that it lies on failed, not the one that it was to go to."""


class FlushFailed(StorageIO):
    """An fsync failed: the bytes it covered are not known to be durable, and it is not retried."""

    retryable = False


class OffsetMismatch(StorageError):
    """An append does not start where the stored bytes end."""


class DigestMismatch(StorageError):
    """The bytes to seal do not have the expected SHA-256."""

    retryable = False

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected {expected}, got {actual}")


class UnusableDatabase(StorageError):
    """The database's file is damaged, none at all, or of a version that this one does not know; it names the file."""

    retryable = False
