"""Puts an image's damaged file right when its data set comes again in another file, as after a C-STORE hop.

Facts: such files differ in their file meta information only, a few hundred bytes in front (PS3.10 §7.1). Damage is
nearly always behind them, so the old front and the new data set make the old file again, byte for byte; its SHA-256
tells.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from storage import blob_rows
from storage.blobs.base import LocalPath, sealed, staging
from storage.blobs.medium import open_file
from storage.errors import StorageError
from storage.records import ImageRecord, Sha256
from storage.store import Store

log = structlog.get_logger()
READ_BYTES = 1024 * 1024
MOST_META_BYTES = 1024 * 1024


async def heal(store: Store, image: ImageRecord, good: Path, dataset_offset: int) -> None:
    """Where an alarm is open on the image's file, make it anew of its own front and the data set of `good`.

    What cannot be put right stays as it is, and its alarm open.
    """
    if not isinstance(store.blobs, LocalPath):
        return
    damaged = store.blobs.path(sealed(image.site, image.blob_sha256))
    known = await store.read(lambda tx: blob_rows.find(tx, image.site, image.blob_sha256))
    if known is None or known.alarm is None or damaged == good:  # the very file came again, and was put in its place
        return
    key = staging(image.site, str(uuid.uuid4()))
    try:
        dataset_bytes = (await asyncio.to_thread(good.stat)).st_size - dataset_offset
        meta_bytes = image.size_bytes - dataset_bytes
        if not 0 < meta_bytes <= MOST_META_BYTES:
            return
        await store.blobs.append(key, 0, _joined(damaged, meta_bytes, good, dataset_offset), flush=False)
        content = await store.blobs.seal(key, Sha256(image.blob_sha256))
        await store.write(lambda tx: store.keep(tx, content))
    except (StorageError, OSError) as error:  # the new file is stored all the same
        log.warning("image.not_healed", image_id=image.id, reason=str(error))
    finally:
        await store.blobs.delete(key)


async def _joined(front: Path, front_bytes: int, rest: Path, rest_offset: int) -> AsyncIterator[bytes]:
    with os.fdopen(open_file(front), "rb", buffering=0) as file:
        yield await asyncio.to_thread(file.read, front_bytes)
    with rest.open("rb", buffering=0) as file:
        file.seek(rest_offset)
        while chunk := await asyncio.to_thread(file.read, READ_BYTES):
            yield chunk
