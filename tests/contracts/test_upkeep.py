"""What is done about uploads without being asked: expiry of what has just moved, and bytes that nobody owns."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text
from structlog.testing import capture_logs

from server.admission import NewUpload
from server.seldom import Seldom
from server.tus.appending import Appender
from server.tus.finishing import Finisher
from server.tus.flushing import Flushes
from server.tus.gaps import Gaps
from server.tus.joining import Joiner
from server.tus.locks import MachineLocks
from server.tus.neighbours import Neighbours
from server.tus.receiving import Receiver
from server.tus.rows import UploadRows
from server.tus.upkeep import ABANDONED_S, Upkeep
from server.tus.uploads import Uploads
from server.worker import Tasks
from storage import audit, blob_rows, sessions, tables, uploads
from storage.blobs.base import BlobKey, Piece, Sealed, sealed, staging
from storage.blobs.filesystem import FilesystemBlobs
from storage.errors import Conflict
from storage.records import Status, UploadRecord, UploadState
from storage.store import Store
from tests.contracts import test_upload_policy as policies
from tests.contracts.test_upload_policy import Seam

seam = policies.seam
LATER = "2999-01-01T00:00:00.000Z"


@pytest.fixture
async def upkeep(store: Store, seam: Seam, tmp_path: Path) -> AsyncIterator[Upkeep]:
    async with Tasks() as tasks:
        locks = MachineLocks(tmp_path)
        rows = UploadRows(store, seam.policy, seam.limits, timedelta(days=1))
        finisher = Finisher(store, seam.policy, seam.completion, rows, 1000)
        neighbours = Neighbours(tmp_path, tasks)
        receiver, flushes = Receiver(store, rows), Flushes(store, rows, tasks, neighbours)
        gaps = Gaps(store, rows, flushes, neighbours)
        appender = Appender(store, seam.policy, seam.limits, rows, receiver, finisher, flushes, gaps, 1000)
        joiner = Joiner(store, seam.policy, seam.limits, rows)
        use_cases = Uploads(
            store, seam.intake, seam.policy, locks, rows, appender, finisher, joiner, gaps, Seldom(store)
        )
        yield Upkeep(store, seam.policy, locks, rows, use_cases, gaps)


async def begun(seam: Seam) -> UploadRecord:
    return (await seam.intake.admit(NewUpload(80, {}, "", None), policies.WHO)).upload


async def state(store: Store, upload: UploadRecord) -> UploadState:
    return (await policies.again(store, upload)).state


async def test_an_upload_whose_time_was_prolonged_since_its_row_was_read_does_not_expire(
    store: Store, seam: Seam, upkeep: Upkeep
) -> None:
    upload = await begun(seam)
    await store.write(lambda tx: uploads.advance(tx, upload, replace(upload, expires_at=LATER)))
    await upkeep.expire(upload)
    assert await state(store, upload) is UploadState.OPEN


async def test_bytes_that_the_row_does_not_tell_of_yet_keep_an_upload_alive(
    store: Store, seam: Seam, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(seam)
    await store.blobs.append(staging("default", upload.upload_id), 0, policies.letters(), flush=False)
    await upkeep.expire(upload)
    assert await state(store, upload) is UploadState.OPEN
    monkeypatch.setattr(FilesystemBlobs, "age_s", old)
    await upkeep.expire(upload)
    assert await state(store, upload) is UploadState.GONE


async def old(_blobs: FilesystemBlobs, _key: object) -> float:
    return ABANDONED_S + 1


async def test_bytes_of_a_process_that_died_are_told_in_the_audit_once_nobody_writes_any_more(
    store: Store, seam: Seam, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(seam)

    async def half() -> AsyncIterator[bytes]:
        yield bytes(40)

    await store.blobs.append(staging("default", upload.upload_id), 0, half(), flush=False)

    async def told() -> list[str]:
        rows = await store.read(lambda tx: audit.of_subject(tx, upload.session_id or ""))
        return [row["outcome"] for row in rows if row["action"] == "upload.transfer"]

    await upkeep.finish_left()
    assert await told() == []  # who took them may still tell

    async def old(_blobs: FilesystemBlobs, _key: BlobKey) -> float:
        return 61.0

    monkeypatch.setattr(FilesystemBlobs, "age_s", old)
    for _ in range(2):
        await upkeep.finish_left()
        assert await told() == ["crashed"]


async def test_staged_bytes_that_no_row_names_are_freed_after_a_day(
    store: Store, seam: Seam, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begun(seam)
    mine, aside = (staging("default", upload.upload_id + end) for end in ("", ".chunk"))
    for key in (mine, aside):
        await store.blobs.append(key, 0, policies.letters())
    await upkeep.clean_abandoned()
    assert await store.blobs.size(aside) == 80
    monkeypatch.setattr(FilesystemBlobs, "age_s", old)
    await upkeep.clean_abandoned()
    assert await store.blobs.size(aside) == 0 and await store.blobs.size(mine) == 80


async def sealed_for_nobody(store: Store, name: str) -> Sealed:
    """As after a cancelled request: sealed, and no row tells of it."""
    blob = await store.blobs.seal(staging("default", name), None, Piece(0, policies.CONTENT))
    await store.blobs.delete(staging("default", name))
    return blob


async def holds(store: Store, blob: Sealed) -> bool:
    return any([key == blob.key async for key in store.blobs.keys("sealed")])  # type: ignore[attr-defined]  # Lists


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever nobody owns is old enough."""
    monkeypatch.setattr("server.tus.upkeep.ABANDONED_S", -1.0)


async def test_sealed_bytes_that_no_row_names_stay_for_a_day(store: Store, upkeep: Upkeep) -> None:
    blob = await sealed_for_nobody(store, "cancelled")
    await upkeep.clean_abandoned()
    assert await holds(store, blob)


@pytest.mark.usefixtures("at_once")
async def test_sealed_bytes_that_no_row_names_are_freed_then(
    store: Store, seam: Seam, upkeep: Upkeep
) -> None:
    blob = await sealed_for_nobody(store, "cancelled")
    await upkeep.clean_abandoned()
    assert not await holds(store, blob)
    assert [key async for key in store.blobs.keys("staging")] == []  # type: ignore[attr-defined]  # Lists
    blob, _, verdict = await policies.finish(store, seam, await begun(seam))
    await upkeep.clean_abandoned()
    assert verdict is not None and await holds(store, blob)


@pytest.mark.usefixtures("at_once")
async def test_sealed_bytes_whose_own_row_was_lost_stay_while_anything_names_them_and_the_log_tells(
    store: Store, seam: Seam, upkeep: Upkeep
) -> None:
    blob, _, verdict = await policies.finish(store, seam, await begun(seam))
    assert verdict is not None
    await store.write(lambda tx: tx.execute(text("DROP TRIGGER blob_owned_no_delete")))
    await store.write(lambda tx: tx.execute(delete(tables.blob)))
    with capture_logs() as logs:
        await upkeep.clean_abandoned()
    assert await holds(store, blob)
    assert [(one["event"], one["sha256"]) for one in logs] == [("blob.row_lost", blob.sha256)]


async def test_odd_things_among_the_staged_ones_hinder_no_start(store: Store, upkeep: Upkeep, tmp_path: Path) -> None:
    await store.blobs.append(staging("default", "x"), 0, policies.letters())
    folder = tmp_path / "blobs/staging/site-default"
    (folder / "directory").mkdir()
    os.mkfifo(folder / "fifo")
    await asyncio.wait_for(upkeep.clean_staging(), 5)
    assert sorted(path.name for path in folder.iterdir()) == ["directory", "fifo"]


@pytest.mark.usefixtures("at_once")
async def test_a_finish_whose_sealed_bytes_were_swept_away_makes_no_row_and_is_done_again(
    store: Store, seam: Seam, upkeep: Upkeep
) -> None:
    await sealed_for_nobody(store, "cancelled")
    upload = await begun(seam)
    key = staging("default", upload.upload_id)
    await store.blobs.append(key, 0, policies.letters())
    blob = await store.blobs.seal(key, None)
    assert blob.existed
    await upkeep.clean_abandoned()
    with pytest.raises(Conflict):
        await store.write(lambda tx: store.keep(tx, blob))
    assert await store.read(blob_rows.keys) == set()
    again = await store.blobs.seal(key, None)
    await store.write(lambda tx: store.keep(tx, again))
    await upkeep.clean_abandoned()
    assert not again.existed and await holds(store, again)


async def test_an_upload_is_stored_though_its_bytes_are_swept_away_while_it_finishes(
    store: Store, seam: Seam, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, swept = await begun(seam), []
    await store.blobs.append(staging("default", upload.upload_id), 0, policies.letters())
    seal = FilesystemBlobs.seal

    async def seal_and_lose(blobs: FilesystemBlobs, key: BlobKey, *arguments: Any) -> Sealed:  # as seal takes them
        blob = await seal(blobs, key, *arguments)
        if not swept:
            swept.append(await store.write(lambda tx: store.take_back(tx, blob.key, 0.0)))
        return blob

    monkeypatch.setattr(FilesystemBlobs, "seal", seal_and_lose)
    await upkeep.finish_left()
    assert swept != [None] and await state(store, upload) is UploadState.OPEN
    await upkeep.finish_left()
    assert await state(store, upload) is UploadState.FINISHED


async def test_whoever_comes_first_a_row_never_stands_without_its_file(store: Store) -> None:
    for number in range(60):
        await asyncio.gather(
            *(bring(store, f"{number}-{one}", bytes([number])) for one in range(3)),
            *(take(store, bytes([number])) for _ in range(3)),
            return_exceptions=True,
        )
        for site, digest in await store.read(blob_rows.keys):
            assert await store.blobs.digest(sealed(site, digest)) == digest


async def bring(store: Store, name: str, content: bytes) -> None:
    blob = await store.blobs.seal(staging("default", name), None, Piece(0, content))
    await store.write(lambda tx: store.keep(tx, blob))


async def take(store: Store, content: bytes) -> None:
    key = sealed("default", hashlib.sha256(content).hexdigest())
    for _ in range(3):
        await store.write(lambda tx: store.take_back(tx, key, 0.0))


async def test_what_no_receipt_could_be_signed_for_is_finished_once_that_works_again(
    store: Store, seam: Seam, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [await begun(seam) for _ in range(2)]
    for upload in left:
        await store.blobs.append(staging("default", upload.upload_id), 0, policies.letters())
    with monkeypatch.context() as broken:
        broken.setattr("server.sessions.receipts.Signer.sign", lambda *_: json.loads(""))
        await upkeep.finish_left()
    assert [await state(store, upload) for upload in left] == [UploadState.OPEN] * 2
    await upkeep.finish_left()
    assert [await state(store, upload) for upload in left] == [UploadState.FINISHED] * 2
    for upload in left:
        session = await store.read(lambda tx, upload=upload: sessions.get(tx, "default", upload.session_id))
        assert session.status is Status.SYNCED
