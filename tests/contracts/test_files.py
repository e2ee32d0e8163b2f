"""What the PACS promises to whoever brings bytes (server.filing.Files)."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from server.errors import SessionFailure
from server.filing import Filed, Files, Origin
from server.linking import flags_of
from server.pacs.ingest import Ingester
from server.pacs.render import Renderer
from storage import instances, jobs, orders
from storage.blobs.base import Sealed, staging
from storage.records import Door
from storage.store import Store
from tests import builders

ORIGIN = Origin(site="default", door=Door.TUS, actor="t", claims_dicom=True)


@pytest.fixture
async def files(store: Store) -> AsyncIterator[Files]:
    renderer = Renderer()
    yield Ingester(store, renderer.same_content, destinations=("far",))
    await renderer.close()


async def seal(store: Store, content: bytes) -> Sealed:
    async def parts() -> AsyncIterator[bytes]:
        yield content

    key = staging("default", hashlib.sha256(content).hexdigest()[:36])
    await store.blobs.delete(key)
    await store.blobs.append(key, 0, parts())
    return await store.blobs.seal(key, None)


async def bring(store: Store, files: Files, content: bytes, origin: Origin = ORIGIN) -> Filed:
    blob = await seal(store, content)
    inspection = await files.inspect(blob.sha256, blob.size_bytes, origin)

    def unit(tx: Connection) -> Filed:
        store.keep(tx, blob)
        return files.file(tx, inspection, origin)

    return await store.write(unit)


async def test_an_object_becomes_study_series_image_and_a_delivery(store: Store, files: Files, tmp_path: Path) -> None:
    filed = await bring(store, files, builders.ct(tmp_path / "a.dcm").read_bytes())
    assert filed.image is not None and not filed.deduplicated and filed.failure is None
    found = await store.read(lambda tx: instances.tree(tx, "default", filed.image.study_instance_uid or ""))
    assert found is not None and [image.id for image in found[1][0]["images"]] == [filed.image.id]
    waiting = await store.read(lambda tx: jobs.deliveries(tx, "default", filed.image.id))
    assert [one.destination for one in waiting] == ["far"]


async def test_the_same_object_again_is_the_same_image(store: Store, files: Files, tmp_path: Path) -> None:
    content = builders.ct(tmp_path / "a.dcm").read_bytes()
    first, again = await bring(store, files, content), await bring(store, files, content)
    assert first.image and again.image and again.image.id == first.image.id and again.deduplicated
    assert len(await store.read(lambda tx: jobs.deliveries(tx, "default"))) == 1


async def test_another_object_of_that_uid_is_never_stored_over_it(store: Store, files: Files, tmp_path: Path) -> None:
    one = builders.ct(tmp_path / "a.dcm", SOPInstanceUID="1.2.3", StudyInstanceUID="1.2", SeriesInstanceUID="1.1")
    other = builders.ct(
        tmp_path / "b.dcm", seed=9, SOPInstanceUID="1.2.3", StudyInstanceUID="1.2", SeriesInstanceUID="1.1"
    )
    first = await bring(store, files, one.read_bytes())
    filed = await bring(store, files, other.read_bytes())
    assert filed.image is None and filed.failure is not None and filed.failure.code == "SOP_INSTANCE_CONFLICT"
    kept = await store.read(lambda tx: instances.by_sop_instance(tx, "default", "1.2.3"))
    assert kept is not None and first.image is not None and kept.blob_sha256 == first.image.blob_sha256


async def test_what_claims_to_be_dicom_and_is_not_is_refused(store: Store, files: Files) -> None:
    with pytest.raises(SessionFailure) as refusal:
        await bring(store, files, b"a letter" * 100)
    assert refusal.value.code == "NOT_DICOM"


async def test_any_other_file_is_an_attachment(store: Store, files: Files) -> None:
    filed = await bring(store, files, b"a letter" * 100, replace(ORIGIN, claims_dicom=False))
    assert filed.image is not None and filed.image.kind == "attachment" and filed.image.series_id is None


async def test_an_accession_number_links_to_its_one_order_and_contradictions_are_flagged(
    store: Store, files: Files, tmp_path: Path
) -> None:
    await store.write(
        lambda tx: orders.put(
            tx, "default", "o1", visit_id="v1", accession_number="A1", verified=True, attributes={"patient_id": "P2"}
        )
    )
    filed = await bring(store, files, builders.ct(tmp_path / "a.dcm", AccessionNumber="A1").read_bytes())
    assert filed.image is not None
    linked = await store.read(lambda tx: orders.of_image(tx, filed.image.id))
    assert [order.radiology_order_id for order in linked] == ["o1"]
    assert flags_of(filed.image, linked) == ["patient_mismatch"]


async def test_sites_do_not_see_each_other(store: Store, files: Files, tmp_path: Path) -> None:
    content = builders.ct(tmp_path / "a.dcm").read_bytes()
    await bring(store, files, content)
    assert await store.read(lambda tx: instances.studies(tx, "other", 10)) == []
