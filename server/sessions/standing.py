"""How an upload stands: who may use it, what its session says of it, and what becomes of both when it fails."""

from sqlalchemy import Connection

from server.admission import Standing
from server.auth import Principal, Role
from server.errors import SESSION_FAILURES, TOLD_BY_CLIENTS, RequestError, SessionFailure
from server.sessions import creation, machine
from server.sessions.limits import Limits
from server.sessions.moves import fail
from storage import audit, sessions, uploads
from storage.blobs.base import staging
from storage.records import AuditEntry, SessionRecord, Status, UploadRecord, UploadState
from storage.store import Store


class UploadStanding:
    """The UploadPolicy of the sessions."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def authorize(self, tx: Connection, upload: UploadRecord, who: Principal, *, reading: bool) -> Standing:
        """Who may see the session may use its upload; a part belongs to its maker; writing needs the role."""
        record = None
        if upload.session_id is not None:
            record = creation.see(tx, upload.session_id, who)
        elif upload.principal != who.name:
            raise RequestError("not_found", "there is no such upload")
        if not reading:
            who.require(Role.UPLOADER)
        return _standing(upload, record)

    def standing(self, tx: Connection, upload: UploadRecord) -> Standing:
        """`gone` with the session's error while the upload is gone or its session FAILED (contract §5)."""
        record = sessions.get(tx, upload.site, upload.session_id) if upload.session_id is not None else None
        return _standing(upload, record)

    def taken_up(self, tx: Connection, upload: UploadRecord, peer: str | None) -> Standing:
        """A retry keeps the upload's URL (contract §7), so its next bytes may come without another word."""
        standing = self.standing(tx, upload)
        if standing.refusal is not None or standing.session is None or not standing.waits:
            return standing
        return Standing(None, creation.take_up(tx, standing.session, upload.principal, peer))

    def sized(self, tx: Connection, upload: UploadRecord, length_bytes: int) -> None:
        """The upload's length, and the file's unless the wire carries another representation of it."""
        self._limits.check_size(length_bytes)
        uploads.declare_length(tx, upload.upload_id, length_bytes)
        if upload.session_id is None or upload.content_encoding is not None:
            return
        record = sessions.get(tx, upload.site, upload.session_id)
        if record.file_size is None:
            sessions.change(tx, record.session_id, record.status, file_size=length_bytes)
        elif record.file_size != length_bytes:
            raise RequestError("inconsistent_upload_length", f"the session's file has {record.file_size} bytes")

    async def failed(self, upload: UploadRecord, failure: SessionFailure) -> None:
        """Session FAILED and, where §2 says so, the upload gone: one transaction; then its bytes are freed.

        An upload that has finished or gone meanwhile is left as it is: its bytes are no longer at stake.
        """

        def unit(tx: Connection) -> bool:
            present = uploads.get(tx, upload.upload_id)
            if present.state is not UploadState.OPEN:
                return False
            if failure.code == "UPLOAD_EXPIRED" and present.expires_at > upload.expires_at:
                return False  # bytes have come since: it expires later
            record = sessions.get(tx, upload.site, upload.session_id) if upload.session_id else None
            if record is not None and record.status in machine.ACTIVE:
                fail(tx, record, failure, "server")
            elif not machine.keeps_upload(failure.code):
                uploads.end(tx, upload.upload_id, failure.code)
            return True

        failed = await self._store.write(unit)
        if failed and not machine.keeps_upload(failure.code) and failure.code != "STAGING_LOST":
            await self._store.blobs.delete(staging(upload.site, upload.upload_id))

    async def terminated(self, upload: UploadRecord, who: Principal) -> None:
        """DELETE (contract §5): unfinished, the session is CLIENT_ABORTED; finished, everything goes on."""

        def unit(tx: Connection) -> None:
            record = sessions.get(tx, upload.site, upload.session_id) if upload.session_id else None
            is_open = uploads.get(tx, upload.upload_id).state is UploadState.OPEN
            if is_open and record is not None and record.status in machine.ACTIVE:
                fail(tx, record, SessionFailure("CLIENT_ABORTED", "the sender deleted the upload"), who.name)
            audit.append(tx, AuditEntry(upload.site, "upload.terminated", who.name, upload.session_id,
                                        detail={"upload_id": upload.upload_id}))
            uploads.end(tx, upload.upload_id, "CLIENT_ABORTED")

        await self._store.write(unit)
        await self._store.blobs.delete(staging(upload.site, upload.upload_id))


def _standing(upload: UploadRecord, record: SessionRecord | None) -> Standing:
    if record is None:
        gone = upload.state is UploadState.GONE
        return Standing(RequestError("gone", "the upload was ended") if gone else None)
    refusal = None
    if upload.state is UploadState.GONE or record.status is Status.FAILED:
        words = record.error_message
        if record.error_code in TOLD_BY_CLIENTS:
            words = SESSION_FAILURES[record.error_code].title
        refusal = RequestError("gone", words or "the upload was ended", session_id=record.session_id,
                               error_code=record.error_code)
    return Standing(refusal, record)
