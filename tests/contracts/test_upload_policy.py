"""What the upload protocols may rely on (server.admission)."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from server.admission import (
    AdmitsUploads,
    CompletesUploads,
    LimitsUploads,
    NewUpload,
    Standing,
    UploadPolicy,
    Verdict,
)
from server.auth import Principal, Role
from server.errors import RequestError, SessionFailure
from server.orders.announcing import name_order
from server.pacs.ingest import Ingester
from server.pacs.render import Renderer
from server.sessions import creation
from server.sessions.completion import Completion
from server.sessions.intake import Intake
from server.sessions.limits import Limits
from server.sessions.receipts import open_signer
from server.sessions.standing import UploadStanding
from server.worker import Tasks
from storage import jobs, sessions, uploads
from storage.blobs.base import Sealed, sealed, staging
from storage.errors import Conflict
from storage.records import SessionRecord, Sha256, Status, UploadRecord, UploadState
from storage.store import Store

BUSY = Principal("busy", "default", Role.UPLOADER)
WHO = Principal("p", "default", Role.UPLOADER)
CONTENT = b"a letter" * 10


@dataclass(frozen=True, slots=True)
class Seam:
    """The parts of the seam, as the sessions answer them."""

    intake: AdmitsUploads
    policy: UploadPolicy
    limits: LimitsUploads
    completion: CompletesUploads


@pytest.fixture
async def seam(store: Store, tmp_path: Path) -> AsyncIterator[Seam]:
    async with Tasks() as tasks:
        ingester = Ingester(store, Renderer().same_content)
        completion = Completion(store, ingester, open_signer(tmp_path / "keys"), tasks, 5.0, on_stored=lambda: None)
        limits = Limits(store, max_size_bytes=1000, max_open=3, max_staged_bytes=1000)
        intake = Intake(store, completion, limits, name_order, timedelta(days=1))
        yield Seam(intake, UploadStanding(store, limits), limits, completion)
        tasks.cancel()


def new(**metadata: str) -> NewUpload:
    return NewUpload(len(CONTENT), {key: value.encode() for key, value in metadata.items()}, "raw", None)


def declared() -> dict[str, str]:
    return {"radiology_order_id": "1", "checksum_sha256": hashlib.sha256(CONTENT).hexdigest()}


async def again(store: Store, upload: UploadRecord) -> UploadRecord:
    return await store.read(lambda tx: uploads.get(tx, upload.upload_id))


def first(_tx: Connection) -> None:
    """Nothing before the finish."""


async def standing(store: Store, seam: Seam, upload: UploadRecord) -> Standing:
    present = await again(store, upload)
    return await store.read(lambda tx: seam.policy.standing(tx, present))


async def status(store: Store, upload: UploadRecord) -> Status:
    assert upload.session_id is not None
    session_id = upload.session_id
    return (await store.read(lambda tx: sessions.get(tx, upload.site, session_id))).status


async def letters() -> AsyncIterator[bytes]:
    yield CONTENT


async def finish(
    store: Store, seam: Seam, upload: UploadRecord
) -> tuple[Sealed, SessionRecord, Verdict | None]:
    """Bytes, sealed and told of."""
    key = staging("default", upload.upload_id)
    await store.blobs.append(key, 0, letters())
    blob = await store.blobs.seal(key, None)
    session = (await standing(store, seam, upload)).session
    assert session is not None
    return blob, session, await seam.completion.finished(upload, session, blob, None, first)


async def test_admission_makes_session_row_and_empty_blob(store: Store, seam: Seam) -> None:
    admission = await seam.intake.admit(new(), WHO)
    assert admission.created and await status(store, admission.upload) is Status.BINARY_UPLOADING
    assert await store.blobs.size(staging("default", admission.upload.upload_id)) == 0


async def test_the_same_order_and_checksum_is_handed_the_same_upload(seam: Seam) -> None:
    one, two = await seam.intake.admit(new(**declared()), WHO), await seam.intake.admit(new(**declared()), WHO)
    assert two.upload.upload_id == one.upload.upload_id and not two.created


async def test_what_is_too_large_or_not_allowed_leaves_nothing_behind(store: Store, seam: Seam) -> None:
    with pytest.raises(RequestError, match="at most 1000"):
        await seam.intake.admit(NewUpload(1001, {}, "", None), WHO)
    with pytest.raises(RequestError, match="role"):
        await seam.intake.admit(new(), Principal("v", "default", Role.VIEWER))
    assert await store.read(uploads.unfinished) == []


async def test_the_bytes_that_a_principal_announces_are_counted_before_they_come(
    store: Store, seam: Seam
) -> None:
    sizes = [900, None, 100]  # of 1,000 that are allowed
    made = [(await seam.intake.admit(replace(new(), length_bytes=size), BUSY)).upload for size in sizes]
    with pytest.raises(RequestError, match="unfinished"):
        await seam.intake.admit(replace(new(), length_bytes=1), BUSY)
    await seam.policy.terminated(made[0], BUSY)
    deferred = made[1]
    await store.write(
        lambda tx: uploads.advance(tx, deferred, replace(deferred, offset_bytes=850))
    )
    with pytest.raises(RequestError, match="unfinished"):
        await seam.intake.admit(replace(new(), length_bytes=51), BUSY)
    await seam.intake.admit(replace(new(), length_bytes=50), BUSY)


class NoRoom:
    """The disk is full."""

    async def room_bytes(self) -> int:
        return 0


@pytest.mark.parametrize("state", [UploadState.OPEN, UploadState.FINISHED])
async def test_limits_are_for_what_is_made_not_for_what_is_there(
    store: Store, seam: Seam, state: UploadState, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = (await seam.intake.admit(new(**declared()), WHO)).upload
    if state is UploadState.FINISHED:
        await finish(store, seam, upload)
    while len(await store.read(uploads.unfinished)) < 3:
        await seam.intake.admit(new(), WHO)
    monkeypatch.setattr(store.blobs, "room_bytes", NoRoom().room_bytes)
    again_admitted = await seam.intake.admit(new(**declared()), WHO)
    assert again_admitted.upload.upload_id == upload.upload_id and not again_admitted.created
    assert await seam.intake.admit_whole(new(**declared()), WHO, CONTENT, lambda _tx, _upload: None) is None
    for concat in (None, "partial"):
        with pytest.raises(RequestError, match="would not fit"):
            await seam.intake.admit(replace(new(), upload_concat=concat), WHO)
    with pytest.raises(RequestError, match="would not fit"):
        await seam.intake.admit_whole(new(), WHO, CONTENT, lambda _tx, _upload: None)


@pytest.mark.parametrize("concat", [None, "partial"])
async def test_another_principal_does_not_find_it(store: Store, seam: Seam, concat: str | None) -> None:
    upload = (await seam.intake.admit(replace(new(), upload_concat=concat), WHO)).upload
    await store.read(lambda tx: seam.policy.authorize(tx, upload, WHO, reading=False))
    with pytest.raises(RequestError):
        stranger = Principal("q", "default", Role.UPLOADER)
        await store.read(lambda tx: seam.policy.authorize(tx, upload, stranger, reading=True))


async def test_a_deferred_length_is_told_once_and_is_the_sessions_too(store: Store, seam: Seam) -> None:
    upload = (await seam.intake.admit(replace(new(), length_bytes=None), WHO)).upload
    assert upload.length_bytes is None and (await standing(store, seam, upload)).file_size is None
    await store.write(lambda tx: seam.policy.sized(tx, upload, 7))
    assert (await standing(store, seam, upload)).file_size == (await again(store, upload)).length_bytes == 7
    with pytest.raises(Conflict):
        await store.write(lambda tx: seam.policy.sized(tx, upload, 8))


async def test_a_part_has_no_session(store: Store, seam: Seam) -> None:
    part = (await seam.intake.admit(replace(new(), upload_concat="partial"), WHO)).upload
    assert part.session_id is None and (await standing(store, seam, part)).refusal is None
    await seam.policy.terminated(part, WHO)
    assert (await standing(store, seam, part)).refusal is not None


async def test_a_principal_has_so_many_unfinished_uploads_and_no_more(seam: Seam) -> None:
    for _ in range(3):
        await seam.intake.admit(new(), WHO)
    with pytest.raises(RequestError, match="unfinished") as refusal:
        await seam.intake.admit(new(), WHO)
    assert (refusal.value.code, refusal.value.status) == ("too_many_uploads", 503)
    await seam.intake.admit(new(), Principal("other", "default", Role.UPLOADER))


async def test_a_finish_is_told_once_and_the_same_again(store: Store, seam: Seam) -> None:
    upload = (await seam.intake.admit(new(**declared()), WHO)).upload
    blob, session, told = await finish(store, seam, upload)
    second = await seam.completion.finished(await again(store, upload), session, blob, None, first)
    assert told == second and told is not None and told.status is Status.SYNCED
    assert (await again(store, upload)).state is UploadState.FINISHED
    await seam.policy.failed(upload, SessionFailure("STAGING_LOST"))  # said by one who read the row before the finish
    assert (await again(store, upload)).state is UploadState.FINISHED
    assert await status(store, upload) is Status.SYNCED


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("CHECKSUM_MISMATCH", UploadState.GONE),
        ("UPLOAD_EXPIRED", UploadState.GONE),
        ("STAGING_LOST", UploadState.GONE),
        ("STORAGE_FULL", UploadState.OPEN),
    ],
)
async def test_a_failure_ends_the_upload_where_its_bytes_are_worthless(
    store: Store, seam: Seam, code: str, state: UploadState
) -> None:
    upload = (await seam.intake.admit(new(**declared()), WHO)).upload
    await seam.policy.failed(upload, SessionFailure(code))
    assert await status(store, upload) is Status.FAILED and (await again(store, upload)).state is state
    refusal = (await standing(store, seam, upload)).refusal
    assert refusal is not None and (refusal.code, refusal.members["error_code"]) == ("gone", code)
    retried = await seam.intake.admit(new(**declared()), WHO)  # a creation for it performs the retry
    assert (retried.upload.upload_id == upload.upload_id) is (state is UploadState.OPEN)


async def test_bytes_after_a_retry_take_the_session_up_again(store: Store, seam: Seam) -> None:
    upload = (await seam.intake.admit(new(**declared()), WHO)).upload
    await seam.policy.failed(upload, SessionFailure("STORAGE_FULL"))
    refused = await store.write(lambda tx: seam.policy.taken_up(tx, upload, None))
    assert refused.refusal is not None and await status(store, upload) is Status.FAILED
    assert upload.session_id is not None
    session_id = upload.session_id
    await store.write(lambda tx: creation.retry(tx, creation.see(tx, session_id, WHO), WHO, None))
    assert (await standing(store, seam, upload)).waits
    for _ in range(2):
        taken = await store.write(lambda tx: seam.policy.taken_up(tx, upload, None))
        assert taken.refusal is None and not taken.waits
        assert await status(store, upload) is Status.BINARY_UPLOADING


async def test_asking_again_does_not_begin_a_running_ingest_anew(store: Store, seam: Seam) -> None:
    upload = (await seam.intake.admit(new(**declared()), WHO)).upload
    session = (await standing(store, seam, upload)).session
    assert session is not None
    await store.write(lambda tx: uploads.finish(tx, upload.upload_id, "0" * 64))
    held = await store.write(lambda tx: jobs.enqueue(tx, "default", "ingest", upload.upload_id, 60))
    sealed_as = Sealed(sealed("default", "0" * 64), Sha256("0" * 64), 0, existed=True)
    assert await seam.completion.finished(await again(store, upload), session, sealed_as, None, first) is None
    await store.write(lambda tx: jobs.extend(tx, held, 60))  # Conflict if its lease had been taken


async def test_termination_of_a_finished_upload_leaves_its_running_ingest_alone(
    store: Store, seam: Seam
) -> None:
    upload = (await seam.intake.admit(new(**declared()), WHO)).upload
    await store.write(lambda tx: uploads.finish(tx, upload.upload_id, "0" * 64))  # what is large is ingested later
    await seam.policy.terminated(upload, WHO)
    assert await status(store, upload) is Status.BINARY_UPLOADING
    assert (await again(store, upload)).state is UploadState.GONE


async def test_termination_aborts_an_unfinished_session(store: Store, seam: Seam) -> None:
    upload = (await seam.intake.admit(new(), WHO)).upload
    assert (await standing(store, seam, upload)).refusal is None
    await seam.policy.terminated(upload, WHO)
    assert await status(store, upload) is Status.FAILED and (await again(store, upload)).state is UploadState.GONE


@pytest.mark.parametrize(
    "other", [{"content_encoding": None}, {"length_bytes": 99}, {"content_encoding": "zstd"}], ids=str
)
async def test_a_creation_of_other_bytes_ends_the_upload_and_gets_a_fresh_one(
    store: Store, seam: Seam, other: dict[str, Any]
) -> None:
    packed = replace(new(**declared()), content_encoding="gzip", length_bytes=70)
    old = (await seam.intake.admit(packed, WHO)).upload
    await store.blobs.append(staging("default", old.upload_id), 0, letters())
    assert (await seam.intake.admit(packed, WHO)).upload.upload_id == old.upload_id
    fresh = await seam.intake.admit(replace(packed, **other), WHO)
    assert fresh.created and fresh.upload.upload_id != old.upload_id and fresh.upload.offset_bytes == 0
    assert (await again(store, old)).state is UploadState.GONE
    assert await store.blobs.size(staging("default", old.upload_id)) == 0
    assert fresh.upload.session_id == old.session_id
    assert await status(store, fresh.upload) is Status.BINARY_UPLOADING


async def test_a_final_upload_is_not_answered_with_one_that_takes_bytes(store: Store, seam: Seam) -> None:
    plain = (await seam.intake.admit(new(**declared()), WHO)).upload
    part = (await seam.intake.admit(replace(new(), upload_concat="partial"), WHO)).upload
    final = replace(new(**declared()), upload_concat=f"final;{part.upload_id}", part_ids=(part.upload_id,))
    admission = await seam.intake.admit(final, WHO)
    assert admission.created and admission.upload.is_final
    assert (await again(store, plain)).state is UploadState.GONE
    assert not (await seam.intake.admit(final, WHO)).created


@pytest.mark.parametrize(("coding", "kept"), [("gzip", 80), ("zstd", 0), (None, 0)])
async def test_a_good_prefix_is_kept_for_the_same_coding_only(
    store: Store, seam: Seam, coding: str | None, kept: int
) -> None:
    packed = replace(new(**declared()), content_encoding="gzip")
    old = (await seam.intake.admit(packed, WHO)).upload
    await store.blobs.append(staging("default", old.upload_id), 0, letters())
    await store.write(lambda tx: uploads.advance(tx, old, replace(old, offset_bytes=80)))
    await seam.policy.failed(old, SessionFailure("STAGING_LOST"))
    fresh = (await seam.intake.admit(replace(packed, content_encoding=coding), WHO)).upload
    assert fresh.upload_id != old.upload_id and fresh.offset_bytes == kept


async def test_what_a_principal_claims_is_told_by_an_index_alone(store: Store) -> None:
    query = (
        "EXPLAIN QUERY PLAN SELECT count(*), sum(CASE WHEN length_bytes > offset_bytes THEN length_bytes "
        "ELSE offset_bytes END) FROM upload WHERE principal = 'p' AND state = 'open'"
    )
    plan = await store.read(lambda tx: [row[3] for row in tx.exec_driver_sql(query)])
    assert len(plan) == 1 and "COVERING INDEX ix_upload_principal" in plan[0]
