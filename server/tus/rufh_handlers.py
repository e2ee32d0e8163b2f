"""RUFH on `/files`: one handler per verb: parse, call the use case, answer in its words (draft-12)."""

from dataclasses import replace

from aiohttp import content_disposition_filename, hdrs, parse_content_disposition, web

from server.admission import AdmitsUploads, NewUpload
from server.auth import principal_of
from server.errors import AppError, RequestError, SessionFailure
from server.problems import problem
from server.tus import rufh_fields, tus_fields
from server.tus.answers import (
    check_body_headers,
    failure_headers,
    has_body,
    limit_of,
    progress_of,
    state_of,
    told_in_failures,
    with_verdict,
)
from server.tus.appending import Patched
from server.tus.body import UploadBody
from server.tus.interim import UPLOAD_RESUMPTION, interim
from server.tus.links import Links
from server.tus.pace import Pace
from server.tus.receiving import Terms
from server.tus.representation import parse_coding
from server.tus.uploads import Uploads
from storage.records import UploadRecord

DOOR = "rufh"
PROBLEMS = {
    "offset_mismatch": "mismatching-upload-offset",
    "inconsistent_upload_length": "inconsistent-upload-length",
}
"""Our codes → the two problem types that the draft registers (§7)."""


class RufhHandlers:
    """One method per verb. Raises AppError and storage.errors, which `failure` words."""

    def __init__(self, uploads: Uploads, intake: AdmitsUploads, links: Links, pace: Pace, max_size_bytes: int) -> None:
        self._uploads = uploads
        self._intake = intake
        self._links = links
        self._pace = pace
        self._max_size_bytes = max_size_bytes

    async def post(self, request: web.Request) -> web.Response:
        """Upload creation (§4.2): the body is the first part of the file, or all of it."""
        complete = rufh_fields.parse_boolean(rufh_fields.field(request.headers, rufh_fields.UPLOAD_COMPLETE))
        if complete is None:
            raise RequestError("unsupported_version", "send Tus-Resumable: 1.0.0 (tus) or Upload-Complete (RUFH)")
        new, brings_bytes = self._new(request, complete), has_body(request)
        room = self._max_size_bytes if new.length_bytes is None else new.length_bytes
        check_body_headers(request, room, request.content_type)
        claims = rufh_fields.parse_digests(rufh_fields.field(request.headers, rufh_fields.CONTENT_DIGEST))
        who, body = principal_of(request), UploadBody(request, self._pace, room)
        can_be_told = rufh_fields.interop_version(request.headers) is not None
        is_plain = not claims and new.content_encoding is None and new.repr_digest is None
        if complete and brings_bytes and is_plain and not can_be_told:
            patched = await self._uploads.create_whole(new, who, body, Terms(request.remote, DOOR))
            if patched is not None:
                response = self._answer(patched, 201, True)
                response.headers[hdrs.LOCATION] = self._links.upload_url(request, patched.upload.upload_id)
                return response
        admission = await self._intake.admit(new, who)
        upload, location = admission.upload, self._links.upload_url(request, admission.upload.upload_id)
        if not admission.created:
            patched = Patched(*await self._uploads.settled(upload))
        else:
            await self._tell(request, {hdrs.LOCATION: location, **limit_of(upload, self._max_size_bytes)})
            patched = Patched(upload, upload.offset_bytes)
            if upload.offset_bytes == 0 and (brings_bytes or complete):
                with told_in_failures(location):
                    patched = await self._uploads.append_first(upload, body, self._terms(request, Terms(
                        request.remote, DOOR, claims, new.length_bytes, complete)))
        taken = admission.created and upload.offset_bytes == 0
        response = self._answer(patched, 201, complete and taken)
        response.headers[hdrs.LOCATION] = location
        return response

    def _new(self, request: web.Request, complete: bool) -> NewUpload:
        length = rufh_fields.parse_integer(rufh_fields.field(request.headers, tus_fields.UPLOAD_LENGTH))
        if complete and request.content_length is not None:
            if length not in (None, request.content_length):
                # what tells the length MUST agree (§4.1.3)
                raise RequestError("inconsistent_upload_length", "Upload-Length and Content-Length differ")
            length = request.content_length
        raw = request.headers.get(tus_fields.UPLOAD_METADATA, "")
        metadata = tus_fields.parse_metadata(raw)
        if hdrs.CONTENT_TYPE in request.headers:
            metadata.setdefault("filetype", request.content_type.encode(errors="replace"))
        if (name := _file_name(request)) is not None:
            metadata.setdefault("filename", name.encode(errors="replace"))
        digests = {claim.algorithm: claim.digest.hex()
                   for claim in rufh_fields.parse_digests(rufh_fields.field(request.headers, rufh_fields.REPR_DIGEST))}
        coding = parse_coding(rufh_fields.field(request.headers, hdrs.CONTENT_ENCODING) or "")
        # over a compressed representation, a Repr-Digest is not that of the file (RFC 9530 §3)
        whole = digests.get("sha256") if coding is None else None
        other = next((f"{name}:{value}" for name, value in digests.items() if value != whole), None)
        return NewUpload(
            length, metadata, tus_fields.format_metadata(metadata), request.remote, content_encoding=coding,
            checksum_sha256=whole, repr_digest=other, awaits_end=not complete or request.content_length is None)

    async def head(self, request: web.Request) -> web.Response:
        """Offset retrieval (§4.3); takes an unfinished upload over."""
        if {tus_fields.UPLOAD_OFFSET, rufh_fields.UPLOAD_COMPLETE} & set(request.headers):
            raise RequestError("invalid_header", "a request for the offset states none")
        upload, offset = await self._uploads.retrieve_offset(
            self._links.upload_id(request), principal_of(request), request.remote, finishes=False)
        return web.Response(
            status=200, headers=state_of(upload, offset, self._max_size_bytes, principal_of(request)))

    async def patch(self, request: web.Request) -> web.Response:
        """Upload append (§4.4)."""
        if request.content_type == tus_fields.OFFSET_CONTENT_TYPE:
            raise RequestError("unsupported_version")
        append, body = rufh_fields.parse_append(request.headers), UploadBody(request, self._pace)

        def check(upload: UploadRecord) -> None:
            length = append.length_bytes if upload.length_bytes is None else upload.length_bytes
            room = max(0, (self._max_size_bytes if length is None else length) - append.offset)
            # what passes the length is not only refused, but ends the upload: by who holds it
            most = room if length is None else self._max_size_bytes
            check_body_headers(request, most, rufh_fields.PARTIAL_CONTENT_TYPE)
            body.limit_to(room)

        claims = rufh_fields.parse_digests(rufh_fields.field(request.headers, rufh_fields.CONTENT_DIGEST))
        patched = await self._uploads.append(
            self._links.upload_id(request), principal_of(request), append.offset, body, self._terms(request, Terms(
                request.remote, DOOR, claims, append.length_bytes, append.complete)), check)
        return self._answer(patched, 204, append.complete)

    async def delete(self, request: web.Request) -> web.Response:
        """Upload cancellation (§4.5)."""
        if {tus_fields.UPLOAD_OFFSET, rufh_fields.UPLOAD_COMPLETE} & set(request.headers):
            raise RequestError("invalid_header", "a cancellation states no offset")
        await self._uploads.delete(self._links.upload_id(request), principal_of(request))
        return web.Response(status=204)

    def _terms(self, request: web.Request, terms: Terms) -> Terms:
        async def progress(durable: int) -> None:
            await self._tell(request, {tus_fields.UPLOAD_OFFSET: str(durable)})

        return replace(terms, on_durable=progress)

    async def _tell(self, request: web.Request, headers: dict[str, str]) -> None:
        """104 (Upload Resumption Supported, §5), only where the versions match: other clients take it for the end."""
        version = rufh_fields.interop_version(request.headers)
        if version is not None:
            await interim(request, UPLOAD_RESUMPTION, {rufh_fields.INTEROP_VERSION: version, **headers})

    def _answer(self, patched: Patched, status: int, complete: bool) -> web.Response:
        headers = {**progress_of(patched.upload, patched.offset), **limit_of(patched.upload, self._max_size_bytes)}
        if not complete or patched.upload.is_partial:
            return web.Response(status=status, headers=headers)
        headers[rufh_fields.UPLOAD_COMPLETE] = rufh_fields.format_boolean(True)
        if (sha256 := self._uploads.sha256(patched.upload)) is not None:
            # SHOULD, for who wants it (RUFH §10.1)
            headers[rufh_fields.REPR_DIGEST] = rufh_fields.format_digest(sha256)
        return with_verdict(patched.verdict, status if patched.verdict else 202, headers, refused_status=422)

    def failure(self, error: AppError) -> web.Response:
        """A failure in RUFH's words."""
        headers = failure_headers(error)
        members: dict[str, object] = {}
        headers.pop(tus_fields.UPLOAD_EXPIRES, None)  # tus's own; Upload-Limit has max-age
        headers[rufh_fields.UPLOAD_COMPLETE] = rufh_fields.format_boolean(isinstance(error, SessionFailure))
        if error.status == 413:
            headers |= limit_of(None, self._max_size_bytes)
        if error.code in PROBLEMS:
            members["type"] = rufh_fields.PROBLEM_TYPES + PROBLEMS[error.code]
        if error.code == "offset_mismatch":
            members["expected-offset"] = error.members["upload_offset"]
            members["provided-offset"] = error.members["provided_offset"]
        status = 422 if error.status == 460 else None  # 460 is tus's own
        return problem(error, headers, status=status, **members)


def _file_name(request: web.Request) -> str | None:
    """The name that Content-Disposition gives (RFC 6266 §4.3)."""
    _kind, parameters = parse_content_disposition(request.headers.get(hdrs.CONTENT_DISPOSITION))
    return content_disposition_filename(parameters)
