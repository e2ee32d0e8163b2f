"""The pipeline of a long body: what was written was hashed, whatever ends it."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.blobs.pipeline import Buffers, Pipeline
from storage.errors import NoSpace


def test_every_byte_that_was_written_is_hashed_also_when_the_next_write_fails() -> None:
    parts = [bytes([number]) * 5000 for number in range(4)]
    written, failed, digest = bytearray(), threading.Event(), hashlib.sha256()
    coming = iter(parts)

    def read(buffer: memoryview) -> int:
        part = next(coming, b"")
        buffer[: len(part)] = part
        return len(part)

    def write(content: memoryview, offset: int) -> None:
        assert offset == len(written)
        if offset == 10_000:
            failed.set()
            raise NoSpace("the disk is full")
        written.extend(content)

    def hash_late(content: memoryview) -> None:
        failed.wait(5)
        digest.update(content)

    with ThreadPoolExecutor(2) as helpers:
        pipeline = Pipeline(0, read, Buffers(8), helpers, write=write, flush=lambda: None, digest=hash_late,
                              on_durable=lambda _size: None)
        with pytest.raises(NoSpace):
            pipeline.run()
    assert pipeline.offset == len(written) == 10_000
    assert digest.digest() == hashlib.sha256(written).digest()
