"""What is done about uploads without being asked: at start, after a crash, and when their time is over."""

import time
from contextlib import suppress

import structlog

from server.admission import UploadPolicy
from server.errors import AppError, SessionFailure
from server.tus.body import WHOLE_BYTES
from server.tus.gaps import Gaps, is_open
from server.tus.locks import UploadLocks
from server.tus.rows import UploadRows
from server.tus.uploads import Uploads
from storage import blob_rows, uploads
from storage.blobs.base import Ages, BlobKey, Lists, sealed, staging
from storage.errors import NotAFile, StorageError
from storage.records import UploadRecord, UploadState
from storage.store import Store

log = structlog.get_logger()
CLEAN_S = 3600.0
FRESH_S = 60.0
"""Bytes younger than this may not be in the row yet."""
BATCH = 500
"""Sealed keys that are looked up at once."""
GIVE_ROW_AGAIN = "run packhorse fsck --repair: it reads the file and gives it its row again"
ABANDONED_S = 24 * 3600.0
"""What nobody has written to for so long, and no row names, belongs to nobody."""


class Upkeep:
    """Cleans, finishes and expires."""

    def __init__(
        self, store: Store, policy: UploadPolicy, locks: UploadLocks, rows: UploadRows, use_cases: Uploads, gaps: Gaps
    ) -> None:
        self._store = store
        self._policy = policy
        self._locks = locks
        self._rows = rows
        self._uploads = use_cases
        self._gaps = gaps
        self._clean_at_s = time.monotonic() + CLEAN_S

    async def clean_staging(self) -> None:
        """At start, when nobody writes: free what is staged for nobody, and tell of bytes that nobody told of.

        The bytes of an upload that is STAGING_LOST stay: a retry begins with their good prefix.
        """
        if not isinstance(self._store.blobs, Lists):
            return
        untold: list[tuple[UploadRecord, int]] = []
        async for key in self._store.blobs.keys("staging"):
            owner = await self._store.read(lambda tx, key=key: uploads.find(tx, key.name))  # type: ignore[misc]
            try:
                if owner is None:
                    await self._forget_seal(key)
                if owner is None or (owner.state is not UploadState.OPEN and owner.gone_reason != "STAGING_LOST"):
                    await self._store.blobs.delete(key)
                elif owner.state is UploadState.OPEN and is_open(owner, held := await self._store.held_bytes(owner)):
                    untold.append((owner, held))
            except NotAFile as error:  # somebody put it there: it is theirs to take away
                log.warning("staging.odd", name=key.name, reason=str(error))
        await self._gaps.tell_crashed(untold)

    async def _forget_seal(self, key: BlobKey) -> None:
        """A crash came between the sealing of a file that was created whole and the rows that tell of it."""
        if await self._store.blobs.size(key) > WHOLE_BYTES:
            return  # only short ones are sealed before their rows: the start does not wait for the hashing of others
        digest = await self._store.blobs.digest(key)
        freed = await self._store.write(lambda tx: self._store.take_back(tx, sealed(key.site, digest), 0.0))
        if freed is not None:
            await self._store.blobs.delete(freed)

    async def clean_abandoned(self) -> None:
        """While others write: free bytes that no row names, as a crash or a cancelled request leaves them."""
        blobs = self._store.blobs
        if not isinstance(blobs, Lists) or not isinstance(blobs, Ages):
            return
        async for key in blobs.keys("staging"):
            owner = await self._store.read(lambda tx, key=key: uploads.find(tx, key.name))  # type: ignore[misc]
            if owner is None and await blobs.age_s(key) > ABANDONED_S:
                with suppress(NotAFile):  # the next start tells of it
                    await self._store.blobs.delete(key)
        batch: list[BlobKey] = []
        async for key in blobs.keys("sealed"):
            batch.append(key)
            if len(batch) == BATCH:
                await self._free_unnamed(batch, blobs)
                batch = []
        await self._free_unnamed(batch, blobs)

    async def _free_unnamed(self, keys: list[BlobKey], blobs: Ages) -> None:
        """Free those sealed bytes of `keys` that no row names; see storage.store for why that is safe.

        Where only the blob's own row was lost they stay, which the log tells.
        """
        sites, digests = {key.site for key in keys}, {key.name for key in keys}
        named = await self._store.read(lambda tx: blob_rows.with_row(tx, sites, digests))
        for key in keys:
            if (key.site, key.name) in named or await blobs.age_s(key) <= ABANDONED_S:
                continue
            freed = await self._store.write(lambda tx, key=key: self._store.take_back(tx, key, ABANDONED_S))  # type: ignore[misc]
            if freed is not None:
                log.info("blob.freed", sha256=key.name)
                await self._store.blobs.delete(freed)
            elif await self._store.read(lambda tx, key=key: blob_rows.is_owned(tx, key.site, key.name)):  # type: ignore[misc]
                log.warning("blob.row_lost", sha256=key.name, advice=GIVE_ROW_AGAIN)

    async def finish_left(self) -> None:
        """Finish uploads whose last byte came before a crash of the process that took it; free what nobody owns."""
        if time.monotonic() >= self._clean_at_s:
            self._clean_at_s = time.monotonic() + CLEAN_S
            await self.clean_abandoned()
        for upload in await self._store.read(uploads.unfinished):
            if self._locks.is_held(upload.upload_id):
                continue
            try:
                offset = 0 if upload.is_final else await self._rows.offset(upload)
                whole = upload.is_final or offset == upload.length_bytes
                if is_open(upload, offset) and not await self._is_fresh(upload):
                    await self._close_gap(upload)  # the process that took them died
                if whole and not upload.is_partial and not upload.awaits_end:
                    await self._uploads.complete(upload.upload_id, None)
            except (AppError, StorageError) as error:
                log.warning("upload.recovery", upload_id=upload.upload_id, code=error.code)
            except Exception:  # a rim: the others get their turn, and this one again with the next sweep
                log.exception("upload.recovery", upload_id=upload.upload_id)

    async def _close_gap(self, upload: UploadRecord) -> None:
        held = await self._locks.take_free(upload.upload_id, None)
        if held is not None:
            async with held:
                present = self._rows.look(upload)
                if present.upload.state is UploadState.OPEN:
                    await self._gaps.close(present, await self._store.held_bytes(present.upload))

    async def expire(self, upload: UploadRecord) -> None:
        """End one upload whose time is over, unless it is being written to."""
        held = await self._locks.take_free(upload.upload_id, None)
        if held is None:
            return
        async with held:
            count = await self._store.held_bytes(upload)
            if count <= upload.offset_bytes or not await self._is_fresh(upload):
                await self._gaps.close(self._rows.look(upload), count)
                await self._policy.failed(upload, SessionFailure("UPLOAD_EXPIRED"))

    async def _is_fresh(self, upload: UploadRecord) -> bool:
        """Whether bytes came so lately that its row need not tell of them yet (contract §2)."""
        blobs = self._store.blobs
        return isinstance(blobs, Ages) and await blobs.age_s(staging(upload.site, upload.upload_id)) < FRESH_S
