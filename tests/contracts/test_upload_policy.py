"""What the upload protocols may rely on (server.admission.UploadPolicy)."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from server.admission import NewUpload, UploadPolicy
from server.auth import Principal, Role
from server.errors import RequestError, SessionFailure
from server.orders.service import name_order
from server.pacs.ingest import Ingester
from server.pacs.render import Renderer
from server.sessions.completion import Completion
from server.sessions.intake import Intake, IntakeSettings
from server.sessions.receipts import open_signer
from server.worker import Tasks
from storage import sessions, uploads
from storage.blobs.base import staging
from storage.records import Status, UploadRecord, UploadState
from storage.store import Store

WHO = Principal("p", "default", Role.UPLOADER)
CONTENT = b"a letter" * 10


@pytest.fixture
async def policy(store: Store, tmp_path: Path) -> AsyncIterator[UploadPolicy]:
    async with Tasks() as tasks:
        ingester = Ingester(store, Renderer().same_content)
        completion = Completion(store, ingester, open_signer(tmp_path / "keys"), tasks, 5.0, on_stored=lambda: None)
        yield Intake(store, completion, name_order, IntakeSettings(1000, timedelta(days=1)))
        tasks.cancel()


def new(**metadata: str) -> NewUpload:
    return NewUpload(len(CONTENT), {key: value.encode() for key, value in metadata.items()}, "raw", None)


def declared() -> dict[str, str]:
    return {"radiology_order_id": "1", "checksum_sha256": hashlib.sha256(CONTENT).hexdigest()}


async def again(store: Store, upload: UploadRecord) -> UploadRecord:
    return await store.read(lambda tx: uploads.get(tx, upload.upload_id))


async def status(store: Store, upload: UploadRecord) -> Status:
    return (await store.read(lambda tx: sessions.get(tx, upload.site, upload.session_id))).status


async def test_admission_makes_session_row_and_empty_blob(store: Store, policy: UploadPolicy) -> None:
    admission = await policy.admit(new(), WHO)
    assert admission.created and await status(store, admission.upload) is Status.BINARY_UPLOADING
    assert await store.blobs.size(staging("default", admission.upload.upload_id)) == 0


async def test_the_same_order_and_checksum_is_handed_the_same_upload(policy: UploadPolicy) -> None:
    one, two = await policy.admit(new(**declared()), WHO), await policy.admit(new(**declared()), WHO)
    assert two.upload.upload_id == one.upload.upload_id and not two.created


async def test_what_is_too_large_or_not_allowed_leaves_nothing_behind(store: Store, policy: UploadPolicy) -> None:
    with pytest.raises(RequestError, match="at most 1000"):
        await policy.admit(NewUpload(1001, {}, "", None), WHO)
    with pytest.raises(RequestError, match="role"):
        await policy.admit(new(), Principal("v", "default", Role.VIEWER))
    assert await store.read(uploads.unfinished) == []


async def test_another_principal_does_not_find_it(policy: UploadPolicy) -> None:
    upload = (await policy.admit(new(), WHO)).upload
    await policy.authorize(upload, WHO, reading=False)
    with pytest.raises(RequestError):
        await policy.authorize(upload, Principal("q", "default", Role.UPLOADER), reading=True)


async def test_a_finish_is_told_once_and_the_same_again(store: Store, policy: UploadPolicy) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield CONTENT

    upload = (await policy.admit(new(**declared()), WHO)).upload
    key = staging("default", upload.upload_id)
    await store.blobs.append(key, 0, parts())
    blob = await store.blobs.seal(key, None)
    first = await policy.finished(upload, blob, None)
    second = await policy.finished(await again(store, upload), blob, None)
    assert first == second and first is not None and first.status is Status.SYNCED
    assert (await again(store, upload)).state is UploadState.FINISHED
    await policy.failed(upload, SessionFailure("STAGING_LOST"))  # said by one who read the row before the finish
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
    store: Store, policy: UploadPolicy, code: str, state: UploadState
) -> None:
    upload = (await policy.admit(new(**declared()), WHO)).upload
    await policy.failed(upload, SessionFailure(code))
    assert await status(store, upload) is Status.FAILED and (await again(store, upload)).state is state
    refusal = await policy.refusal(await again(store, upload))
    assert refusal is not None and (refusal.code, refusal.members["error_code"]) == ("gone", code)
    retried = await policy.admit(new(**declared()), WHO)  # a creation for it performs the retry
    assert (retried.upload.upload_id == upload.upload_id) is (state is UploadState.OPEN)


async def test_termination_aborts_an_unfinished_session(store: Store, policy: UploadPolicy) -> None:
    upload = (await policy.admit(new(), WHO)).upload
    assert await policy.refusal(upload) is None
    await policy.terminated(upload, WHO)
    assert await status(store, upload) is Status.FAILED and (await again(store, upload)).state is UploadState.GONE
