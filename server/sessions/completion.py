"""Turns a finished upload into a stored image: facts before action, exactly once, and again after a crash."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import Connection

from server.admission import Unit, Verdict
from server.errors import SessionFailure
from server.filing import Files, Inspection, Origin
from server.sessions import machine, receipts
from server.sessions.moves import Columns, fail, note, walk
from server.worker import Done, Tasks, Worker, leased
from storage import jobs, sessions, uploads
from storage.blobs.base import Sealed
from storage.errors import Conflict
from storage.records import Door, JobRecord, SessionRecord, Sha256, Status, UploadRecord, UploadState, timestamp
from storage.store import Store

SMALL_BYTES = 4 * 1024 * 1024
"""Up to this size finish and ingest are one transaction (contract §2): the header is read before it."""


class Completion:
    """The end of an upload: sealed bytes, rows, verdict, receipt."""

    def __init__(
        self, store: Store, files: Files, signer: receipts.Signer, tasks: Tasks, sync_wait_s: float,
        on_stored: Callable[[], None],
    ) -> None:
        self._store = store
        self._files = files
        self._signer = signer
        self._tasks = tasks
        self._sync_wait_s = sync_wait_s
        self.on_stored = on_stored
        self._ingesting: dict[str, asyncio.Future[Verdict]] = {}

    async def finished(
        self, upload: UploadRecord, record: SessionRecord, sealed: Sealed, peer: str | None, first: Unit
    ) -> Verdict | None:
        """Every byte is held: note it and file the content; None when that takes longer than `sync_wait_s`."""
        if upload.state is not UploadState.OPEN:
            ingesting = self._ingesting.get(upload.upload_id) or await self._ingest_again(upload)
            return await self._wait_for(ingesting) if ingesting is not None else None
        if sealed.size_bytes <= SMALL_BYTES:
            return await self._finish_and_file(upload, record, sealed, peer, first)
        return await self._wait_for(await self._finish_and_queue(upload, sealed, peer, first))

    async def _finish_and_file(
        self, upload: UploadRecord, record: SessionRecord, sealed: Sealed, peer: str | None, first: Unit
    ) -> Verdict:
        """All in one transaction, for what is small."""
        inspected = await self.inspect(sealed, _origin(record))

        def unit(tx: Connection) -> Verdict:
            first(tx)
            record = sessions.get(tx, upload.site, session_of(upload))
            return self._file(tx, *self._finish(tx, upload, record, sealed, peer), inspected)

        verdict = await self._store.write(unit)
        self.on_stored()
        return verdict

    async def _finish_and_queue(
        self, upload: UploadRecord, sealed: Sealed, peer: str | None, first: Unit
    ) -> "asyncio.Future[Verdict]":
        """The finish and a job in one transaction; the ingest is begun here and now."""

        def unit(tx: Connection) -> JobRecord:
            first(tx)
            record = sessions.get(tx, upload.site, session_of(upload))
            present, columns = self._finish(tx, upload, record, sealed, peer)
            sessions.change(tx, present.session_id, present.status, **columns)
            return jobs.enqueue(tx, upload.site, "ingest", upload.upload_id, Worker.LEASE_S)

        return self._begin(await self._store.write(unit))

    async def _ingest_again(self, upload: UploadRecord) -> "asyncio.Future[Verdict] | None":
        """The ingest of a finished upload, begun anew; None while another process is at it."""

        def unit(tx: Connection) -> JobRecord | None:
            if jobs.is_held(tx, "ingest", upload.upload_id):
                return None  # taking its lease would only make it begin anew
            return jobs.enqueue(tx, upload.site, "ingest", upload.upload_id, Worker.LEASE_S)

        job = await self._store.write(unit)
        return self._begin(job) if job is not None else None

    def _begin(self, job: JobRecord) -> "asyncio.Future[Verdict]":
        ingesting = self._tasks.spawn(leased(self._store, job, self._ingest(job)), f"ingest-{job.subject}")
        self._ingesting[job.subject] = ingesting
        ingesting.add_done_callback(lambda _: self._ingesting.pop(job.subject, None))
        return ingesting

    async def _wait_for(self, ingesting: "asyncio.Future[Verdict]") -> Verdict | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._sync_wait_s):
                return await asyncio.shield(ingesting)
        return None

    async def run_job(self, job: JobRecord) -> Done:
        """Ingest what a crash left."""
        await self._ingest(job)
        return Done()

    async def _ingest(self, job: JobRecord) -> Verdict:
        upload = await self._store.read(lambda tx: uploads.get(tx, job.subject))
        session_id = session_of(upload)
        record = await self._store.read(lambda tx: sessions.get(tx, upload.site, session_id))
        assert upload.blob_sha256 is not None and record.file_size is not None, "the job is queued by the finish"
        verdict = _known_verdict(record)
        if verdict is not None:
            await self._store.write(lambda tx: jobs.done(tx, job))
            return verdict
        inspected = await self._inspect(Sha256(upload.blob_sha256), record.file_size, _origin(record))

        def unit(tx: Connection) -> Verdict:
            jobs.done(tx, job)
            present = sessions.get(tx, upload.site, session_id)
            return _known_verdict(present) or self._file(tx, present, {}, inspected)

        verdict = await self._store.write(unit)
        self.on_stored()
        return verdict

    async def inspect(self, sealed: Sealed, origin: Origin) -> Inspection | SessionFailure:
        """What the PACS reads of sealed bytes, or why it does not take them."""
        return await self._inspect(sealed.sha256, sealed.size_bytes, origin, sealed.head)

    async def _inspect(
        self, sha256: Sha256, size_bytes: int, origin: Origin, head: bytes | None = None
    ) -> Inspection | SessionFailure:
        try:
            return await self._files.inspect(sha256, size_bytes, origin, head)
        except SessionFailure as failure:
            return failure

    def file_new(
        self, tx: Connection, upload: UploadRecord, record: SessionRecord, sealed: Sealed, inspected: Inspection,
        peer: str | None,
    ) -> SessionRecord:
        """A unit of work: what becomes of a session and an upload that have no rows yet. The caller writes both, once.

        Conflict when the content is refused: such a session is made first, and then fails.
        """
        held, _ = self._hold(tx, upload, record, sealed, peer)
        stored = self._store_session(tx, held, inspected)
        if isinstance(stored, SessionFailure):
            raise Conflict("the content is refused")
        return replace(held, updated_at=stored["synced_at"], **stored)

    def _finish(
        self, tx: Connection, upload: UploadRecord, record: SessionRecord, sealed: Sealed, peer: str | None
    ) -> tuple[SessionRecord, Columns]:
        """Facts before action: all bytes are here and durable, whatever becomes of them.

        Gives the session as it is with that, and the columns that are still to be written.
        """
        if record.status is not Status.BINARY_UPLOADING:
            raise Conflict("the session moved on")
        uploads.finish(tx, upload.upload_id, sealed.sha256)
        return self._hold(tx, upload, record, sealed, peer)

    def _hold(
        self, tx: Connection, upload: UploadRecord, record: SessionRecord, sealed: Sealed, peer: str | None
    ) -> tuple[SessionRecord, Columns]:
        self._store.keep(tx, sealed)
        position = note(tx, record, "upload.finished", upload.principal, peer,
                        upload_id=upload.upload_id, size=sealed.size_bytes, sha256=sealed.sha256)
        columns: Columns = {"binary_uploaded_at": timestamp(), "blob_sha256": sealed.sha256, "seq": position.seq}
        if record.checksum_sha256 is None:
            columns["checksum_sha256"] = sealed.sha256
        if record.file_size is None:
            columns["file_size"] = sealed.size_bytes
        return replace(record, **columns), columns

    def _file(
        self, tx: Connection, record: SessionRecord, columns: Columns, inspected: Inspection | SessionFailure
    ) -> Verdict:
        """Rows of the PACS, SYNCED, receipt, audit, and `columns` of the session; or FAILED with the reason."""
        stored = inspected if isinstance(inspected, SessionFailure) else self._store_session(tx, record, inspected)
        if isinstance(stored, SessionFailure):
            fail(tx, record, stored, "server", **columns)
            return Verdict(Status.FAILED, stored)
        sessions.change(tx, record.session_id, record.status, **columns | stored)
        return Verdict(Status.SYNCED)

    def _store_session(
        self, tx: Connection, record: SessionRecord, inspected: Inspection
    ) -> Columns | SessionFailure:
        """Rows of the PACS, receipt and audit. Gives the columns that make the session SYNCED, or why it cannot be."""
        filed = self._files.file(tx, inspected, _origin(record))
        if filed.failure is not None or filed.image is None:
            return filed.failure or SessionFailure("INTERNAL")
        position = note(tx, record, "session.stored", "server", image_id=filed.image.id, sha256=inspected.sha256,
                        deduplicated=filed.deduplicated)
        claims = receipts.session_claims(record, filed.image, inspected, position)
        stored = {"server_image_id": filed.image.id, "synced_at": timestamp(), "receipt": self._signer.sign(claims),
                  "duplicate_of": _twin(tx, record)}
        return walk(tx, record, [(Status.SYNCED, stored)], "server", None)


def session_of(upload: UploadRecord) -> str:
    """The session of an upload that is no part of a concatenation."""
    assert upload.session_id is not None, "only partial uploads have none, and they are never finished"
    return upload.session_id


def origin_of(
    site: str, sender: str, file_name: str, content_type: str | None, *, radiology_order_id: str | None = None,
    session_id: str | None = None,
) -> Origin:
    """Where a file came from, as the PACS is told: the last two once its session is made."""
    return Origin(
        site=site, door=Door.TUS, actor=sender, claims_dicom=_claims_dicom(file_name, content_type),
        radiology_order_id=radiology_order_id, session_id=session_id, file_name=file_name, content_type=content_type)


def _origin(record: SessionRecord) -> Origin:
    origin = origin_of(
        record.site, record.principal, record.file_name, record.content_type,
        radiology_order_id=record.radiology_order_id, session_id=record.session_id)
    return replace(origin, priority=record.priority)


def _claims_dicom(file_name: str, content_type: str | None) -> bool:
    """Whether the sender calls it DICOM; then anything else is refused (contract §10)."""
    return (content_type or "").split(";")[0].strip().lower() == "application/dicom" or file_name.lower().endswith(
        (".dcm", ".dicom"))


def _known_verdict(record: SessionRecord) -> Verdict | None:
    if record.status in machine.STORED:
        return Verdict(Status.SYNCED)
    if record.status is Status.FAILED and record.error_code:
        return Verdict(Status.FAILED, SessionFailure(record.error_code, record.error_message or ""))
    return None


def _twin(tx: Connection, record: SessionRecord) -> str | None:
    """Another stored session of the same order with the checksum that only the server computed (contract §6)."""
    if record.checksum_source != "server" or record.radiology_order_id is None or record.blob_sha256 is None:
        return None
    for other in sessions.of_blob(tx, record.site, record.blob_sha256):
        same_order = other.radiology_order_id == record.radiology_order_id
        if same_order and other.session_id != record.session_id and other.status in machine.STORED:
            return other.session_id
    return None
