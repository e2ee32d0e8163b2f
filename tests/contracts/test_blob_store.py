"""What every BlobStore must keep (storage.blobs.base); each backend is a parameter."""

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from storage.blobs.base import BlobStore, Lists, LocalPath, Span, Truncates, sealed, staging
from storage.blobs.filesystem import FilesystemBlobs
from storage.errors import DigestMismatch, NotFound, OffsetMismatch
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
