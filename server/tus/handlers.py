"""`/files`: one handler per verb: parse, call the use case, answer in the words of tus 1.0.0."""

import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from aiohttp import hdrs, web

from server.admission import NewUpload, UploadPolicy, Verdict
from server.auth import principal_of
from server.errors import AppError, RequestError
from server.middleware import as_app_error, problem
from server.tus import protocol
from server.tus.body import UploadBody
from server.tus.checksum import ALGORITHMS
from server.tus.uploads import Uploads
from storage import uploads as upload_rows
from storage.blobs.base import LocalPath, sealed
from storage.errors import StorageError
from storage.records import UploadRecord, UploadState
from storage.store import Store

UPLOAD_ID = re.compile(r"[0-9a-f-]{36}")
SAFE_TYPES = frozenset({"application/dicom", "image/png", "image/jpeg", "application/pdf"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TusHandlers:
    """One method per verb."""

    def __init__(
        self, store: Store, uploads: Uploads, policy: UploadPolicy, base_url: Callable[[web.Request], str],
        max_size_bytes: int,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._policy = policy
        self._base_url = base_url
        self._max_size_bytes = max_size_bytes

    def routes(self) -> list[web.RouteDef]:
        """The routes of `/files`."""
        verbs: list[tuple[str, str, Handler]] = [
            ("OPTIONS", "/files", self.options), ("OPTIONS", "/files/", self.options),
            ("OPTIONS", "/files/{upload_id}", self.options),
            ("POST", "/files", self.post), ("POST", "/files/", self.post),
            ("HEAD", "/files/{upload_id}", self.head), ("PATCH", "/files/{upload_id}", self.patch),
            ("DELETE", "/files/{upload_id}", self.delete),
        ]
        return [*(web.route(method, path, _spoken(handler)) for method, path, handler in verbs),
                web.get("/files/{upload_id}", _spoken(self.get), allow_head=False)]

    async def options(self, _request: web.Request) -> web.Response:
        """What this server speaks; needs neither token nor Tus-Resumable (core, OPTIONS)."""
        return web.Response(status=204, headers={
            "Tus-Version": protocol.VERSION, "Tus-Extension": ",".join(protocol.EXTENSIONS),
            "Tus-Max-Size": str(self._max_size_bytes), "Tus-Checksum-Algorithm": ",".join(ALGORITHMS)})

    async def post(self, request: web.Request) -> web.Response:
        """Creation, with the first bytes in its body where it has any (creation-with-upload)."""
        _check_version(request)
        length, body_bytes = _declared_length(request), request.content_length
        has_body = request.body_exists and body_bytes != 0
        if has_body:
            _check_body(request, length)
        claim = _claim(request)
        raw = request.headers.get(protocol.UPLOAD_METADATA, "")
        new = NewUpload(length, protocol.parse_metadata(raw), raw, request.remote)
        admission = await self._policy.admit(new, principal_of(request))
        upload = admission.upload
        location = f"{self._base_url(request)}/files/{upload.upload_id}"
        offset, verdict = upload.offset_bytes, None
        if not admission.created:
            offset = await self._uploads.settled_offset(upload)
        elif has_body or length == 0:
            body = UploadBody(request.content, length)
            patched = await self._uploads.patch(upload, 0, body, claim, request.remote)
            upload, offset, verdict = patched.upload, patched.offset, patched.verdict
        response = _verdict_response(verdict, 201, _state_headers(upload, offset, progress_only=True))
        response.headers[hdrs.LOCATION] = location
        if has_body and not admission.created:
            response.force_close()  # the body is not read: its upload was there before
        return response

    async def head(self, request: web.Request) -> web.Response:
        """The offset to go on from; takes an unfinished upload over (contract §5)."""
        _check_version(request)
        upload = await self._find(request, reading=True)
        offset = await self._uploads.settled_offset(upload)
        headers = _state_headers(await self._row(upload), offset)
        if upload.upload_metadata:
            headers[protocol.UPLOAD_METADATA] = upload.upload_metadata
        return web.Response(status=200, headers=headers)

    async def patch(self, request: web.Request) -> web.Response:
        """Bytes at an offset."""
        _check_version(request)
        offset = protocol.parse_number(protocol.UPLOAD_OFFSET, request.headers.get(protocol.UPLOAD_OFFSET))
        claim = _claim(request)
        upload = await self._find(request, reading=False)
        room = max(0, upload.length_bytes - offset)
        _check_body(request, room, beyond=offset > upload.length_bytes)
        body = UploadBody(request.content, room)
        patched = await self._uploads.patch(upload, offset, body, claim, request.remote)
        return _verdict_response(patched.verdict, 204, _state_headers(patched.upload, patched.offset, True))

    async def delete(self, request: web.Request) -> web.Response:
        """Termination."""
        _check_version(request)
        await self._uploads.delete(await self._find(request, reading=False), principal_of(request))
        return web.Response(status=204)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """The bytes of a finished upload, with Range; needs no Tus-Resumable, being plain HTTP."""
        upload = await self._find(request, reading=True)
        refusal = await self._policy.refusal(upload)
        if refusal is not None:
            raise refusal
        if upload.state is not UploadState.FINISHED or upload.blob_sha256 is None:
            raise RequestError("not_synced", "the upload is not finished")
        if not isinstance(self._store.blobs, LocalPath):
            raise RequestError("not_found")
        declared = protocol.parse_metadata(upload.upload_metadata)
        kind = (declared.get("filetype") or declared.get("type") or b"").decode(errors="replace")
        name = (declared.get("filename") or declared.get("name") or b"upload").decode(errors="replace")
        return web.FileResponse(self._store.blobs.path(sealed(upload.site, upload.blob_sha256)), headers={
            "Content-Type": kind if kind in SAFE_TYPES else "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",  # RFC 6266 §4.3
            "X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"})

    async def _find(self, request: web.Request, *, reading: bool) -> UploadRecord:
        upload_id = request.match_info["upload_id"]
        if not UPLOAD_ID.fullmatch(upload_id):
            raise RequestError("not_found", "there is no such upload")
        return await self._uploads.find(upload_id, principal_of(request), reading=reading)

    async def _row(self, upload: UploadRecord) -> UploadRecord:
        return await self._store.read(lambda tx: upload_rows.get(tx, upload.upload_id))


def _spoken(handler: Handler) -> Handler:
    """Every answer carries Tus-Resumable (core, Tus-Resumable), failures too; those with bytes unread close."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(request)
        except (AppError, StorageError) as error:
            response = _failure(request, as_app_error(error))
        if not response.prepared:
            response.headers[protocol.TUS_RESUMABLE] = protocol.VERSION
            # MUST keep proxies from caching what changes (core, HEAD)
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return answer


def _failure(request: web.Request, error: AppError) -> web.Response:
    headers = {}
    if error.status == 412:
        headers["Tus-Version"] = protocol.VERSION  # MUST (core, Tus-Version)
    if "upload_offset" in error.members:
        headers[protocol.UPLOAD_OFFSET] = str(error.members["upload_offset"])
    response = problem(error, headers)
    if request.body_exists and not request.content.is_eof():
        response.force_close()  # answer early rather than read a body that will be thrown away
    return response


def _state_headers(upload: UploadRecord, offset: int, progress_only: bool = False) -> dict[str, str]:
    headers = {protocol.UPLOAD_OFFSET: str(offset)}
    if not progress_only:
        headers[protocol.UPLOAD_LENGTH] = str(upload.length_bytes)
    if upload.state is UploadState.OPEN:
        headers[protocol.UPLOAD_EXPIRES] = protocol.format_expires(upload.expires_at)
    return headers


def _verdict_response(verdict: Verdict | None, status: int, headers: dict[str, str]) -> web.Response:
    """The verdict when it is known (contract §5): Packhorse-Status, or a problem when the content was refused."""
    if verdict is None:
        return web.Response(status=status, headers=headers)
    headers = {**headers, protocol.PACKHORSE_STATUS: verdict.status}
    if verdict.failure is not None:
        return problem(verdict.failure, headers)
    return web.Response(status=status, headers=headers)


def _check_version(request: web.Request) -> None:
    if request.headers.get(protocol.TUS_RESUMABLE) != protocol.VERSION:
        raise RequestError("unsupported_version")


def _declared_length(request: web.Request) -> int:
    if protocol.UPLOAD_DEFER_LENGTH in request.headers or protocol.UPLOAD_CONCAT in request.headers:
        raise RequestError("invalid_header", "this extension is not offered: see OPTIONS")
    return protocol.parse_number(protocol.UPLOAD_LENGTH, request.headers.get(protocol.UPLOAD_LENGTH))


def _check_body(request: web.Request, room: int, *, beyond: bool = False) -> None:
    """Everything that the headers tell against a body, before its first byte is read.

    `beyond`: the offset passes the length, which the use case tells as a wrong offset.
    """
    if request.content_type != protocol.OFFSET_CONTENT_TYPE:
        raise RequestError("unsupported_media_type", f"Content-Type must be {protocol.OFFSET_CONTENT_TYPE}")
    if hdrs.CONTENT_ENCODING in request.headers:
        raise RequestError("unsupported_media_type", "Content-Encoding is not taken here")
    if hdrs.TRAILER in request.headers:
        raise RequestError("invalid_header", "trailers are not read: send Upload-Checksum as a header")
    if request.content_length is not None and request.content_length > room and not beyond:
        raise RequestError("upload_size_exceeded", f"the upload has room for {room} bytes from there")


def _claim(request: web.Request) -> protocol.ChecksumClaim | None:
    text = request.headers.get(protocol.UPLOAD_CHECKSUM)
    return protocol.parse_checksum(text) if text is not None else None
