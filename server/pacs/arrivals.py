"""What comes by C-STORE: the object's file becomes a blob, an arrival and an image before Success is said."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from sqlalchemy import Connection

from server.errors import DicomRejected, SessionFailure
from server.filing import Filed, Files, Inspection, Origin
from server.pacs.dicom import Header
from server.pacs.dimse.listener import Received, StoreOutcome
from server.pacs.dimse.statuses import DATA_SET_MISMATCH, SUCCESS, status_of
from storage import audit, instances
from storage.blobs.base import BlobKey, Sealed, staging
from storage.errors import StorageError
from storage.records import DEFAULT_SITE, AuditEntry, Door
from storage.store import Store

CHUNK_BYTES = 1024 * 1024


class Arrivals:
    """Answers the listener. Success only after the same durability point as every door (contract §2)."""

    def __init__(
        self, store: Store, files: Files, on_stored: Callable[[], None], received: Callable[[int], object] = int
    ) -> None:
        self._store = store
        self._files = files
        self._received = received
        self._on_stored = on_stored

    async def receive(self, received: Received) -> StoreOutcome:
        """Store one object, or say why not."""
        origin = Origin(site=DEFAULT_SITE, door=Door.DIMSE, actor=f"ae:{received.calling_ae_title}", claims_dicom=True,
                        peer=received.peer_address, began_s=received.began_s)
        key = staging(origin.site, str(uuid.uuid4()))
        try:
            await self._store.blobs.append(key, 0, _content(received.path), flush=False)
            blob = await self._store.blobs.seal(key, None)
            self._received(blob.size_bytes)
            try:
                inspection = await self._files.inspect(blob.sha256, blob.size_bytes, origin)
                _check_command(inspection, received)
            except SessionFailure as failure:
                await self._refuse(received, origin, blob, failure)
                mismatch = isinstance(failure, CommandMismatch)
                return StoreOutcome(DATA_SET_MISMATCH if mismatch else status_of(failure.code), failure.detail)

            def unit(tx: Connection) -> Filed:
                self._store.keep(tx, blob)
                filed = self._files.file(tx, inspection, origin)
                outcome = filed.failure.code if filed.failure else "STORED"
                instances.add_arrival(
                    tx, site=origin.site, door=Door.DIMSE, calling=received.calling_ae_title,
                    called=received.called_ae_title, peer=received.peer_address,
                    sop_instance_uid=received.sop_instance_uid, blob_sha256=blob.sha256,
                    dataset_sha256=inspection.dataset_sha256, image_id=filed.image.id if filed.image else None,
                    outcome=outcome)
                return filed

            filed = await self._store.write(unit)
        except StorageError as error:
            return StoreOutcome(status_of(error.code), "storing failed on our side: send again")
        finally:
            await self._store.blobs.delete(key)
        self._on_stored()
        if filed.failure is not None:
            return StoreOutcome(status_of(filed.failure.code), filed.failure.detail)
        return StoreOutcome(SUCCESS)

    async def _refuse(self, received: Received, origin: Origin, blob: Sealed, failure: SessionFailure) -> None:
        """Note a refused object; its bytes are not kept, unless something else holds the same ones."""

        def unit(tx: Connection) -> BlobKey | None:
            instances.add_arrival(
                tx, site=origin.site, door=Door.DIMSE, calling=received.calling_ae_title,
                called=received.called_ae_title, peer=received.peer_address,
                sop_instance_uid=received.sop_instance_uid, outcome=failure.code)
            audit.append(tx, AuditEntry(
                origin.site, "arrival.refused", origin.actor, received.sop_instance_uid, origin.peer, failure.code,
                {"bytes": blob.size_bytes, "door": origin.door, **origin.took}))
            return self._store.take_back(tx, blob.key, 0.0)

        freed = await self._store.write(unit)
        if freed is not None:
            await self._store.blobs.delete(freed)


class CommandMismatch(DicomRejected):
    """The data set is another object than the command announced (PS3.4 §B.2.3: A9xx)."""


def _check_command(inspection: Inspection, received: Received) -> None:
    header = inspection.header
    assert isinstance(header, Header), "it claims to be DICOM"
    if header.sop_instance_uid != received.sop_instance_uid or header.sop_class_uid != received.sop_class_uid:
        raise CommandMismatch("the data set is another object than the command says")


async def _content(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
