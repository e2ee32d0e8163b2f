"""The checksum algorithms on offer, and a digest that runs along a stream. Pure."""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator

ALGORITHMS = {"sha1": 20, "sha256": 32, "md5": 16}
"""Name on the wire → length of the digest in bytes. sha1 MUST be there (checksum extension)."""


class RunningDigest:
    """Passes chunks on and digests them on the way."""

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)

    async def over(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """`chunks` unchanged."""
        async for chunk in chunks:
            self._hash.update(chunk)
            yield chunk

    def digest(self) -> bytes:
        """The digest of all that was passed on so far."""
        return self._hash.digest()
