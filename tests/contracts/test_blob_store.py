"""What every BlobStore must keep (storage.blobs.base); each backend is a parameter."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from storage.blobs import linking
from storage.blobs.base import (
    HEAD_BYTES,
    BlobStore,
    Lists,
    LocalPath,
    Piece,
    Receives,
    Source,
    Span,
    Truncates,
    Withdraws,
    sealed,
    staging,
)
from storage.blobs.filesystem import FilesystemBlobs
from storage.errors import DigestMismatch, FlushFailed, NoSpace, NotFound, OffsetMismatch
from storage.records import Sha256

KEY = staging("default", "one")


@pytest.fixture(params=["filesystem"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    assert request.param == "filesystem"
    return FilesystemBlobs(tmp_path)


async def chunks(*parts: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if then is not None:
        raise then


async def content(blobs: BlobStore, key: object, span: Span | None = None) -> bytes:
    return b"".join([part async for part in blobs.read(key, span)])  # type: ignore[arg-type]  # a BlobKey


def digest(parts: Iterable[bytes]) -> Sha256:
    return Sha256(hashlib.sha256(b"".join(parts)).hexdigest())


async def test_bytes_are_appended_and_read_back(blobs: BlobStore) -> None:
    assert await blobs.append(KEY, 0, chunks(b"abc", b"def")) == 6
    assert await blobs.append(KEY, 6, chunks(b"ghi")) == 9 == await blobs.size(KEY)
    assert await content(blobs, KEY) == b"abcdefghi"
    assert await content(blobs, KEY, Span(2, 5)) == b"cde"


async def test_what_arrived_before_an_error_is_kept(blobs: BlobStore) -> None:
    with pytest.raises(ConnectionResetError):
        await blobs.append(KEY, 0, chunks(b"abc", b"def", then=ConnectionResetError()))
    assert await blobs.size(KEY) == 6


async def test_an_append_elsewhere_than_at_the_end_is_refused(blobs: BlobStore) -> None:
    await blobs.append(KEY, 0, chunks(b"abc"))
    for offset in (0, 2, 4):
        with pytest.raises(OffsetMismatch):
            await blobs.append(KEY, offset, chunks(b"x"))
    assert await blobs.size(KEY) == 3


async def test_of_what_never_came_no_byte_is_there(blobs: BlobStore) -> None:
    assert await blobs.size(KEY) == 0
    with pytest.raises(NotFound):
        await blobs.append(KEY, 1, chunks(b"x"))
    with pytest.raises(NotFound):
        await blobs.size(sealed("default", digest([b"x"])))
    await blobs.delete(KEY)


async def test_sealing_gives_the_digest_and_keeps_the_staged_name(blobs: BlobStore) -> None:
    await blobs.append(KEY, 0, chunks(b"abc"))
    first = await blobs.seal(KEY, digest([b"abc"]))
    assert (first.sha256, first.size_bytes, first.existed) == (digest([b"abc"]), 3, False)
    assert (await blobs.seal(KEY, None)).existed
    assert await blobs.size(KEY) == 3
    await blobs.delete(KEY)
    assert await content(blobs, first.key) == b"abc" and await blobs.digest(first.key) == first.sha256


async def test_other_bytes_than_expected_are_not_sealed(blobs: BlobStore) -> None:
    await blobs.append(KEY, 0, chunks(b"abc"))
    with pytest.raises(DigestMismatch):
        await blobs.seal(KEY, digest([b"abd"]))
    with pytest.raises(NotFound):
        await blobs.size(sealed("default", digest([b"abc"])))


async def test_a_damaged_blob_is_replaced_by_good_bytes(blobs: BlobStore) -> None:
    assert isinstance(blobs, LocalPath)
    await blobs.append(KEY, 0, chunks(b"abc"))
    good = await blobs.seal(KEY, None)
    await blobs.delete(KEY)
    blobs.path(good.key).write_bytes(b"abX")
    again = staging("default", "two")
    await blobs.append(again, 0, chunks(b"abc"))
    assert not (await blobs.seal(again, None)).existed
    assert await content(blobs, good.key) == b"abc"


async def test_a_blob_that_cannot_be_read_is_replaced_by_good_bytes(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.append(KEY, 0, chunks(b"abc"))
    await blobs.seal(KEY, None)
    again = staging("default", "two")
    await blobs.append(again, 0, chunks(b"abc"))

    def broken(_path: object, *, from_medium: bool) -> None:
        assert from_medium
        raise OSError(errno.EIO, "a bad sector")

    with monkeypatch.context() as patched:
        patched.setattr(linking, "digest_of", broken)
        blob = await blobs.seal(again, None)
    assert not blob.existed and await content(blobs, blob.key) == b"abc"


async def test_sites_share_nothing(blobs: BlobStore) -> None:
    for site in ("default", "other"):
        key = staging(site, "one")
        await blobs.append(key, 0, chunks(b"abc"))
        assert not (await blobs.seal(key, None)).existed


async def test_staged_bytes_are_cut_back(blobs: BlobStore) -> None:
    assert isinstance(blobs, Truncates)
    await blobs.append(KEY, 0, chunks(b"abcdef"))
    await blobs.truncate(KEY, 2)
    assert await blobs.append(KEY, 2, chunks(b"x")) == 3 and await content(blobs, KEY) == b"abx"


async def test_keys_are_listed(blobs: BlobStore) -> None:
    assert isinstance(blobs, Lists)
    await blobs.append(KEY, 0, chunks(b"abc"))
    blob = await blobs.seal(KEY, None)
    assert [key async for key in blobs.keys("staging")] == [KEY]
    assert [key async for key in blobs.keys("sealed")] == [blob.key]


def source_of(*parts: bytes, then: Exception | None = None) -> Source:
    waiting = list(parts)

    def read(buffer: memoryview) -> int:
        if not waiting:
            if then is not None:
                raise then
            return 0
        part = waiting.pop(0)
        buffer[: len(part)] = part
        return len(part)

    return read


async def test_a_long_body_is_received_and_told_as_it_becomes_durable(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(blobs, Receives)
    monkeypatch.setattr("storage.blobs.pipeline.SEGMENT_BYTES", 1000)
    durable: list[int] = []
    parts = [bytes([number]) * 600 for number in range(5)]
    assert await blobs.receive(KEY, 0, source_of(*parts), durable.append) == 3000
    await asyncio.sleep(0)  # the last call is on its way through the loop
    assert durable == sorted(durable) and durable[0] == 1200
    assert await blobs.append(KEY, 3000, chunks(b"end")) == 3003
    assert (await blobs.seal(KEY, None)).sha256 == digest([*parts, b"end"])


async def test_what_was_received_before_an_error_is_kept(blobs: BlobStore) -> None:
    assert isinstance(blobs, Receives)
    await blobs.append(KEY, 0, chunks(b"abc"))
    with pytest.raises(ConnectionResetError):
        await blobs.receive(KEY, 3, source_of(b"def", then=ConnectionResetError()), lambda _size: None)
    assert await blobs.size(KEY) == 6
    with pytest.raises(OffsetMismatch):
        await blobs.receive(KEY, 5, source_of(b"x"), lambda _size: None)
    assert (await blobs.seal(KEY, None)).sha256 == digest([b"abcdef"])


async def test_a_digest_that_ran_along_is_not_used_for_other_bytes(blobs: BlobStore) -> None:
    assert isinstance(blobs, Truncates) and isinstance(blobs, LocalPath)
    await blobs.append(KEY, 0, chunks(b"abcdef"))
    await blobs.truncate(KEY, 3)
    await blobs.append(KEY, 3, chunks(b"xyz"))
    assert (await blobs.seal(KEY, None)).sha256 == digest([b"abcxyz"])


async def test_the_reserve_is_never_touched_and_the_prefix_stays(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    blobs = FilesystemBlobs(tmp_path / "blobs", reserve_bytes=free.f_bavail * free.f_frsize * 2)
    assert await blobs.room_bytes() == 0
    with pytest.raises(NoSpace):
        await blobs.append(KEY, 0, chunks(b"abc"))
    with pytest.raises(NoSpace):
        await blobs.receive(KEY, 0, source_of(b"abc"), lambda _size: None)
    assert await blobs.size(KEY) == 0


async def test_a_failed_fsync_is_told_and_not_tried_again(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fail(descriptor: int) -> None:
        tried.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(FlushFailed):
        await blobs.append(KEY, 0, chunks(b"abc"))
    assert len(tried) == 1
    assert isinstance(blobs, Receives)
    monkeypatch.setattr("storage.blobs.pipeline.SEGMENT_BYTES", 1)
    with pytest.raises(FlushFailed):
        await blobs.receive(KEY, 3, source_of(b"abc", b"def"), lambda _size: None)
    assert len(tried) == 2
    for work in (blobs.flush(KEY), blobs.seal(KEY, None)):
        with pytest.raises(FlushFailed):
            await work


async def test_a_name_that_the_disk_does_not_confirm_is_told_too(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.append(KEY, 0, chunks(b"abc"))

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    for work in (blobs.flush(KEY), blobs.seal(KEY, None)):
        with pytest.raises(FlushFailed):
            await work


async def test_the_last_piece_is_sealed_with_what_came_before(blobs: BlobStore) -> None:
    await blobs.append(KEY, 0, chunks(b"abc"), flush=False)
    with pytest.raises(OffsetMismatch):
        await blobs.seal(KEY, None, Piece(2, b"def"))
    blob = await blobs.seal(KEY, digest([b"abcdef"]), Piece(3, b"def"))
    assert (blob.sha256, blob.size_bytes, blob.existed, blob.head) == (digest([b"abcdef"]), 6, False, None)
    assert await content(blobs, blob.key) == b"abcdef" == await content(blobs, KEY)


async def test_a_whole_file_is_sealed_at_once_and_its_head_is_told(blobs: BlobStore) -> None:
    blob = await blobs.seal(KEY, None, Piece(0, b"abc" * 1000))
    assert blob.head is not None and blob.head == (b"abc" * 1000)[: len(blob.head)] and len(blob.head) >= HEAD_BYTES
    other = staging("default", "other")
    assert (await blobs.seal(other, None, Piece(0, b"abc" * 1000))).existed
    with pytest.raises(DigestMismatch):
        await blobs.seal(staging("default", "bad"), digest([b"x"]), Piece(0, b"y"))


async def test_bytes_are_never_written_elsewhere_than_at_the_end(blobs: BlobStore) -> None:
    assert isinstance(blobs, Receives) and isinstance(blobs, Truncates)
    truncates = blobs
    cut = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield bytes(1024 * 1024)
        await truncates.truncate(KEY, 10)
        cut.set()
        yield bytes(1024 * 1024)

    with pytest.raises(OffsetMismatch):
        await blobs.append(KEY, 0, parts())
    assert cut.is_set() and await blobs.size(KEY) == 10


async def test_sealed_bytes_are_taken_back_only_when_they_are_old_enough(blobs: BlobStore) -> None:
    assert isinstance(blobs, Withdraws)
    blob = await blobs.seal(KEY, None, Piece(0, b"abc"))
    await blobs.delete(KEY)
    assert blobs.withdraw(blob.key, 60.0) is None and blobs.holds(blob.key)
    freed = blobs.withdraw(blob.key, 0.0)
    assert freed is not None and freed.area == "staging" and not blobs.holds(blob.key)
    assert await content(blobs, freed) == b"abc"
    assert blobs.withdraw(blob.key, 0.0) is None


async def test_a_store_lists_what_it_holds_by_area(blobs: BlobStore) -> None:
    assert isinstance(blobs, Lists)
    assert [key async for key in blobs.keys("sealed")] == []
    blob = await blobs.seal(KEY, None, Piece(0, b"abc"))
    assert [key async for key in blobs.keys("sealed")] == [blob.key]
    assert [key async for key in blobs.keys("staging")] == [KEY]
