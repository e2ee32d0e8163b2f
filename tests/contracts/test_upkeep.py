"""What is done about uploads without being asked: expiry of what has just moved, and bytes that nobody owns."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from server.admission import NewUpload, UploadPolicy
from server.tus.locks import MachineLocks
from server.tus.upkeep import ABANDONED_S, Upkeep
from server.tus.uploads import Uploads
from server.worker import Tasks
from storage import uploads
from storage.blobs.base import staging
from storage.blobs.filesystem import FilesystemBlobs
from storage.records import UploadRecord, UploadState
from storage.store import Store
from tests.contracts import test_upload_policy as policies

policy = policies.policy
LATER = "2999-01-01T00:00:00.000Z"


@pytest.fixture
async def upkeep(store: Store, policy: UploadPolicy, tmp_path: Path) -> AsyncIterator[Upkeep]:
    async with Tasks() as tasks:
        locks = MachineLocks(tmp_path)
        yield Upkeep(store, policy, locks, Uploads(store, policy, locks, tasks, timedelta(days=1), 1000))


async def begun(policy: UploadPolicy) -> UploadRecord:
    return (await policy.admit(NewUpload(80, {}, "", None), policies.WHO)).upload


async def state(store: Store, upload: UploadRecord) -> UploadState:
    return (await policies.again(store, upload)).state


async def test_an_upload_whose_time_was_prolonged_since_its_row_was_read_does_not_expire(
    store: Store, policy: UploadPolicy, upkeep: Upkeep
) -> None:
    upload = await begun(policy)
    await store.write(lambda tx: uploads.advance(tx, upload.upload_id, 0, 0, upload.boot_id, LATER))
    await upkeep.expire(upload)
    assert await state(store, upload) is UploadState.OPEN


async def test_bytes_that_the_row_does_not_tell_of_yet_keep_an_upload_alive(
    store: Store, policy: UploadPolicy, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(policy)
    await store.blobs.append(staging("default", upload.upload_id), 0, policies.letters(), flush=False)
    await upkeep.expire(upload)
    assert await state(store, upload) is UploadState.OPEN
    monkeypatch.setattr(FilesystemBlobs, "age_s", old)
    await upkeep.expire(upload)
    assert await state(store, upload) is UploadState.GONE


async def old(_blobs: FilesystemBlobs, _key: object) -> float:
    return ABANDONED_S + 1


async def test_staged_bytes_that_no_row_names_are_freed_after_a_day(
    store: Store, policy: UploadPolicy, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(policy)
    mine, aside = (staging("default", upload.upload_id + end) for end in ("", ".chunk"))
    for key in (mine, aside):
        await store.blobs.append(key, 0, policies.letters())
    await upkeep.clean_abandoned()
    assert await store.blobs.size(aside) == 80
    monkeypatch.setattr(FilesystemBlobs, "age_s", old)
    await upkeep.clean_abandoned()
    assert await store.blobs.size(aside) == 0 and await store.blobs.size(mine) == 80
