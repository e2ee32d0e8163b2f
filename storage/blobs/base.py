"""The BlobStore seam: staged bytes that grow, sealed bytes that never change."""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from storage.moments import Moment
from storage.records import Sha256

OnRead = Callable[[int], None]
"""Told how many bytes were just read."""


@dataclass(frozen=True, slots=True)
class BlobKey:
    """Where bytes are: `staging/{site}/{name}` while they grow, `sealed/{site}/{sha256}` for good."""

    area: str
    site: str
    name: str


def staging(site: str, upload_id: str) -> BlobKey:
    """The key of bytes that still grow."""
    return BlobKey("staging", site, upload_id)


def sealed(site: str, sha256: str) -> BlobKey:
    """The key of bytes that never change, addressed by their SHA-256."""
    return BlobKey("sealed", site, sha256)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` up to, not including, `stop`."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes in memory that belong at `offset`."""

    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """What sealing gave: the key, digest and size; `existed` when the same bytes were there already.

    `looked_at`: when its address was looked at, or taken: damage found before is answered, later one is not.
    `head`: the first bytes of the content, where they were at hand, at least HEAD_BYTES unless it is shorter.
    """

    key: BlobKey
    sha256: Sha256
    size_bytes: int
    existed: bool
    head: bytes | None = None
    looked_at: Moment | None = None


HEAD_BYTES = 256
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_S = 5.0
"""Bytes that come are put on the medium after so many, or so long (contract §2)."""


class BlobStore(Protocol):
    """Keeps bytes. The caller guarantees one writer per key; keys are made by `staging` and `sealed`.

    Everything raises storage.errors only: NotFound (NotAFile where something else lies there), NoSpace, StorageIO.
    """

    async def size(self, key: BlobKey) -> int:
        """How many bytes survived, in bytes; 0 for staged bytes of which none was ever written."""
        ...

    async def append(self, key: BlobKey, offset: int, chunks: AsyncIterable[bytes], *, flush: bool = True) -> int:
        """Write `chunks` from `offset` on and return the new size, all of it on the medium.

        Without `flush` it survives the end of the process, not yet that of the machine: see `flush` and `seal`.
        OffsetMismatch when `offset` is not the size. What `chunks` raises goes on to the caller after
        every byte given before it was written (not necessarily flushed): `size` tells how many.
        FlushFailed: nothing since the last return is known to be durable; never append again.
        NoSpace also when writing on would leave less room than the store keeps in reserve.
        """
        ...

    async def flush(self, key: BlobKey) -> None:
        """Put staged bytes on the medium. FlushFailed as `append`."""
        ...

    async def seal(self, key: BlobKey, expected: Sha256 | None, last: Piece | None = None) -> Sealed:
        """Give staged bytes their final, durable address; the staged name stays until `delete`.

        `last`, the end of the bytes, is appended first: OffsetMismatch and NoSpace as `append`.
        DigestMismatch when `expected` is given and differs. An address that is already taken is read
        again, and replaced if its bytes are damaged.
        """
        ...

    def read(self, key: BlobKey, span: Span | None = None) -> AsyncIterator[bytes]:
        """The bytes, or those of `span`, in chunks of at most 1 MiB."""
        ...

    async def digest(self, key: BlobKey, on_read: OnRead | None = None) -> Sha256:
        """SHA-256 of the bytes as the medium gives them, past the page cache where that can be done.

        `on_read` hears of each piece in the thread that reads it, and may wait; what it raises ends the reading.
        """
        ...

    async def delete(self, key: BlobKey) -> None:
        """Forget the bytes; a key that is not there is no error."""
        ...

    def discard(self, key: BlobKey) -> None:
        """Like `delete`, soon, for bytes that nobody needs any more; a failure leaves them to the next start."""
        ...


Source = Callable[[memoryview], int]
"""Fills a buffer, waiting in its own thread: gives the count; 0, or what it raises, ends the receiving."""


@runtime_checkable
class Receives(BlobStore, Protocol):
    """A store that takes bytes from a blocking source in threads of its own, for long bodies."""

    async def receive(self, key: BlobKey, offset: int, source: Source, on_durable: Callable[[int], None]) -> int:
        """Like `append` without `flush`; what is long is flushed on the way.

        `on_durable` is called in the loop with each size that has reached the medium.
        """
        ...


@runtime_checkable
class Measures(Protocol):
    """A store that knows how much room is left."""

    async def room_bytes(self) -> int:
        """Bytes that can still be taken, the reserve left out."""
        ...


@runtime_checkable
class Truncates(Protocol):
    """A store that can cut staged bytes back."""

    async def truncate(self, key: BlobKey, size_bytes: int) -> None:
        """Cut the staged bytes to `size_bytes`, durably."""
        ...


@runtime_checkable
class LocalPath(Protocol):
    """A store whose bytes lie in a local file."""

    def path(self, key: BlobKey) -> Path:
        """The file that holds the bytes; it must only be read."""
        ...


@runtime_checkable
class Lists(Protocol):
    """A store that can tell what it holds."""

    def keys(self, area: str) -> AsyncIterator[BlobKey]:
        """Every key of an area, in no order."""
        ...

    def sizes(self, area: str) -> AsyncIterator[tuple[BlobKey, int]]:
        """Like `keys`, each with its size in bytes, which is negative where no blob but something else lies there."""
        ...


@runtime_checkable
class Ages(Protocol):
    """A store that knows how long its bytes have been as they are, and can let that time begin anew."""

    async def age_s(self, key: BlobKey) -> float:
        """Seconds since `key` was written or sealed last; 0 when it is not there."""
        ...

    async def renew(self, key: BlobKey) -> None:
        """Let the age of `key` begin now; a key that is not there is no error."""
        ...


@runtime_checkable
class Withdraws(Protocol):
    """A store that can take sealed bytes back. Both answer at once, in any thread, for they are asked in a transaction.

    See storage.store for why nothing else may take sealed bytes away while others write.
    """

    def holds(self, key: BlobKey) -> bool:
        """Whether the bytes are at their address."""
        ...

    def withdraw(self, key: BlobKey, older_than_s: float, not_before_s: float = 0.0) -> BlobKey | None:
        """Move sealed bytes of at least that age among the staged ones; gives their new key, None if it did not.

        Those that were there before `not_before_s`, in seconds of the epoch, stay.
        """
        ...
