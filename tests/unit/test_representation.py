"""Decoding what senders compressed: bounded in memory, time and size."""

import time
from collections.abc import AsyncIterator

import pytest
import zstandard

from server.errors import SessionFailure
from server.tus.representation import FREE_FRAMES, decoded

EMPTY = zstandard.compress(b"")


async def decode(wire: bytes) -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(wire), 2**20):
            yield wire[start : start + 2**20]

    return b"".join([piece async for piece in decoded("zstd", chunks(), 2**30)])


def windowed(window_log: int) -> bytes:
    """A frame of unknown size that asks for a window of 2**window_log bytes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(b"abc") + packer.flush()


async def test_a_window_is_at_most_eight_mebibytes() -> None:
    assert await decode(windowed(23)) == b"abc"
    with pytest.raises(SessionFailure, match="window") as refusal:
        await decode(windowed(24))
    assert refusal.value.code == "POLICY_REJECTED"


async def test_frames_that_bring_nothing_are_soon_refused() -> None:
    began_s = time.process_time()
    with pytest.raises(SessionFailure, match="too many frames"):
        await decode(EMPTY * 300_000)
    assert time.process_time() - began_s < 1


async def test_many_frames_that_bring_something_are_taken() -> None:
    frame, number = zstandard.compress(bytes(range(256)) * 8), 2 * FREE_FRAMES
    assert await decode(EMPTY * 1000 + frame * number) == bytes(range(256)) * 8 * number
