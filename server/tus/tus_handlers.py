"""tus 1.0.0 on `/files`: one handler per verb: parse, call the use case, answer in its words."""

from aiohttp import hdrs, web

from server.admission import AdmitsUploads, NewUpload
from server.auth import Principal, principal_of
from server.errors import AppError, RequestError
from server.problems import problem
from server.tus import tus_fields
from server.tus.answers import (
    check_body_headers,
    failure_headers,
    has_body,
    progress_of,
    state_of,
    told_in_failures,
    with_verdict,
)
from server.tus.appending import Patched
from server.tus.body import UploadBody
from server.tus.links import Links
from server.tus.pace import Pace
from server.tus.receiving import Terms
from server.tus.representation import parse_coding
from server.tus.rows import room_of
from server.tus.tus_fields import ChecksumClaim
from server.tus.uploads import Uploads
from storage.records import UploadRecord


class TusHandlers:
    """One method per verb. Raises AppError and storage.errors, which `failure` words."""

    def __init__(self, uploads: Uploads, intake: AdmitsUploads, links: Links, pace: Pace, max_size_bytes: int) -> None:
        self._uploads = uploads
        self._intake = intake
        self._links = links
        self._pace = pace
        self._max_size_bytes = max_size_bytes

    async def post(self, request: web.Request) -> web.Response:
        """Creation, with the first bytes in its body where it has any (creation-with-upload)."""
        _check_version(request)
        who = principal_of(request)
        concat = request.headers.get(tus_fields.UPLOAD_CONCAT)
        parts = self._parts(concat, who) if concat is not None else []
        length = _total(parts) if parts else tus_fields.parse_deferred(request.headers)
        room, brings_bytes = self._max_size_bytes if length is None else length, has_body(request)
        if parts and (brings_bytes or tus_fields.UPLOAD_LENGTH in request.headers):
            raise RequestError("invalid_header", "a final upload has neither a length nor a body of its own")
        if brings_bytes:
            check_body_headers(request, room, tus_fields.OFFSET_CONTENT_TYPE)
            _check_no_coding(request)
        claims = _claims(request)
        raw = request.headers.get(tus_fields.UPLOAD_METADATA, "")
        metadata = tus_fields.parse_metadata(raw)
        coding = parse_coding(metadata.get("content_encoding", b"").decode("ascii", "replace"))
        new = NewUpload(length, metadata, raw, request.remote, concat, tuple(part.upload_id for part in parts), coding)
        body = UploadBody(request, self._pace, room)
        if brings_bytes and concat is None and coding is None and not claims:
            patched = await self._uploads.create_whole(new, who, body, Terms(request.remote))
            if patched is not None:
                return self._created(request, patched)
        admission = await self._intake.admit(new, who)
        upload, patched = admission.upload, None
        if not admission.created:
            upload, offset = await self._uploads.settled(upload)
        elif parts:
            verdict = await self._uploads.complete(upload.upload_id, request.remote)
            patched = Patched(*await self._uploads.settled(upload), verdict)
        elif (brings_bytes or length == 0) and upload.offset_bytes == 0:
            body.limit_to(room_of(upload, 0, self._max_size_bytes))
            with told_in_failures(self._links.upload_url(request, upload.upload_id)):
                patched = await self._uploads.append_first(upload, body, Terms(request.remote, claims=claims))
        if patched is not None:
            upload, offset = patched.upload, patched.offset
        elif admission.created:
            offset = upload.offset_bytes
        response = with_verdict(patched.verdict if patched else None, 201, progress_of(upload, offset))
        response.headers[hdrs.LOCATION] = self._links.upload_url(request, upload.upload_id)
        return response

    def _created(self, request: web.Request, patched: Patched) -> web.Response:
        response = with_verdict(patched.verdict, 201, progress_of(patched.upload, patched.offset))
        response.headers[hdrs.LOCATION] = self._links.upload_url(request, patched.upload.upload_id)
        return response

    def _parts(self, concat: str, who: Principal) -> list[UploadRecord]:
        parts = [self._uploads.find(one, who, reading=False).upload for one in tus_fields.parse_concat(concat)]
        if not all(part.is_partial for part in parts):
            raise RequestError("invalid_header", "only partial uploads can be joined", header=tus_fields.UPLOAD_CONCAT)
        return parts

    async def head(self, request: web.Request) -> web.Response:
        """The offset to go on from; takes an unfinished upload over (contract §5)."""
        _check_version(request)
        upload, offset = await self._uploads.retrieve_offset(
            self._links.upload_id(request), principal_of(request), request.remote, finishes=True)
        return web.Response(
            status=200, headers=state_of(upload, offset, self._max_size_bytes, principal_of(request)))

    async def patch(self, request: web.Request) -> web.Response:
        """Bytes at an offset."""
        _check_version(request)
        offset = tus_fields.parse_number(tus_fields.UPLOAD_OFFSET, request.headers.get(tus_fields.UPLOAD_OFFSET))
        length = request.headers.get(tus_fields.UPLOAD_LENGTH)
        total = tus_fields.parse_number(tus_fields.UPLOAD_LENGTH, length) if length is not None else None
        terms = Terms(request.remote, claims=_claims(request), length_bytes=total)
        _check_no_coding(request)
        body = UploadBody(request, self._pace)

        def check(upload: UploadRecord) -> None:
            room = room_of(upload, offset, self._max_size_bytes)
            if upload.length_bytes is None and terms.length_bytes is not None:
                room = max(0, terms.length_bytes - offset)
            if upload.length_bytes is None or offset <= upload.length_bytes:  # beyond it: a wrong offset, told as such
                check_body_headers(request, room, tus_fields.OFFSET_CONTENT_TYPE)
            body.limit_to(room)

        patched = await self._uploads.append(
            self._links.upload_id(request), principal_of(request), offset, body, terms, check)
        # MUST be 204 with the new Upload-Offset (core, PATCH)
        return with_verdict(patched.verdict, 204, progress_of(patched.upload, patched.offset))

    async def delete(self, request: web.Request) -> web.Response:
        """Termination."""
        _check_version(request)
        await self._uploads.delete(self._links.upload_id(request), principal_of(request))
        return web.Response(status=204)

    def failure(self, error: AppError) -> web.Response:
        """A failure in tus's words."""
        return problem(error, failure_headers(error))


def _check_version(request: web.Request) -> None:
    if request.headers.get(tus_fields.TUS_RESUMABLE) != tus_fields.VERSION:
        raise RequestError("unsupported_version")  # MUST be 412, and nothing is processed (core, Tus-Resumable)


def _check_no_coding(request: web.Request) -> None:
    if hdrs.CONTENT_ENCODING in request.headers:
        raise RequestError("unsupported_media_type", "say content_encoding in Upload-Metadata instead")


def _total(parts: list[UploadRecord]) -> int | None:
    """The length of the whole MUST be the sum of its parts' (concatenation); None while one is not known."""
    lengths = [part.length_bytes for part in parts]
    return sum(length for length in lengths if length is not None) if None not in lengths else None


def _claims(request: web.Request) -> tuple[ChecksumClaim, ...]:
    text = request.headers.get(tus_fields.UPLOAD_CHECKSUM)
    return (tus_fields.parse_checksum(text),) if text is not None else ()
