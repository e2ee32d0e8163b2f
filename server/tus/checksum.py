"""The checksum algorithms on offer, and a digest that runs along a stream. Pure."""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator


def _offered() -> dict[str, int]:
    offered = {}
    for name in sorted(hashlib.algorithms_available):
        try:
            size = hashlib.new(name, usedforsecurity=False).digest_size
        except ValueError:
            continue  # listed by OpenSSL, but switched off in it
        if size:  # SHAKE has no length of its own
            offered[name] = size
    return offered


ALGORITHMS = _offered()
"""Name on the wire → length of the digest in bytes. sha1 MUST be there (checksum, Tus-Checksum-Algorithm)."""


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
