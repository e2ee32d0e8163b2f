"""An fsync that fails after a PATCH was taken: the upload is gone for good, and nothing is flushed a second time."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from server.app import create_app
from server.config import load
from server.lifecycle import open_services
from tests.support import eventually

TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]  # of any application
    config = tmp_path / "packhorse.toml"
    config.write_text('[auth]\nmode = "none"\n[dicom]\nenabled = false\n[uploads]\nreserve_bytes = 0\n')
    async with open_services(load(config)) as (services, _tasks), TestClient(TestServer(create_app(services))) as made:
        yield made


async def create(client: TestClient, **headers: str) -> str:  # type: ignore[type-arg]
    answer = await client.post("/files", headers={**TUS, "Upload-Length": "2000", **headers})
    assert answer.status == 201
    return "/files/" + answer.headers["Location"].rsplit("/", 1)[1]


async def patch(client: TestClient, path: str, content: bytes) -> int:  # type: ignore[type-arg]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    return (await client.patch(path, data=content, headers=headers)).status


async def head(client: TestClient, path: str) -> int:  # type: ignore[type-arg]
    return (await client.head(path, headers=TUS)).status


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that were tried; each of them fails."""
    tried: list[int] = []

    def fail(descriptor: int) -> None:
        tried.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    return tried


async def test_a_failed_flush_that_was_due_at_the_end_of_a_patch_ends_the_upload(
    client: TestClient, flushes: list[int], monkeypatch: pytest.MonkeyPatch  # type: ignore[type-arg]
) -> None:
    monkeypatch.setattr("server.tus.flushing.SEGMENT_S", 0.0)
    path = await create(client)
    assert await patch(client, path, bytes(1000)) == 410
    assert await head(client, path) == 410 and len(flushes) == 1


async def test_a_failed_flush_that_comes_later_ends_the_upload(
    client: TestClient, flushes: list[int], monkeypatch: pytest.MonkeyPatch  # type: ignore[type-arg]
) -> None:
    monkeypatch.setattr("server.tus.flushing.SEGMENT_S", 0.3)
    path = await create(client)
    assert await patch(client, path, bytes(1000)) == 204

    async def is_gone() -> bool:
        return await head(client, path) == 410

    await eventually(is_gone)
    assert len(flushes) == 1


async def test_a_failed_flush_of_a_whole_part_ends_it(
    client: TestClient, flushes: list[int]  # type: ignore[type-arg]
) -> None:
    path = await create(client, **{"Upload-Concat": "partial"})
    assert await patch(client, path, bytes(2000)) == 410
    assert await head(client, path) == 410 and len(flushes) == 1
