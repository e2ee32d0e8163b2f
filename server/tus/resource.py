"""`/files`: tells the two protocols apart, and holds what both share: OPTIONS, GET, and how failures leave."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from urllib.parse import quote

from aiohttp import hdrs, web
from sqlalchemy import Connection

from server.access import OPEN, Access, declares
from server.auth import Principal, Role, note_forbidden, principal_of
from server.errors import AppError, RequestError
from server.middleware import verb_of
from server.problems import as_app_error, method_not_allowed, problem
from server.reads import Reads, check_sound, subject_of
from server.tus import rufh_fields, tus_fields
from server.tus.answers import close_if_unread, state_of
from server.tus.body import SPOILED
from server.tus.checksum import ALGORITHMS
from server.tus.described import DESCRIBED
from server.tus.download import Download, unwanted
from server.tus.interim import expect_nothing
from server.tus.links import Links
from server.tus.rows import Seen, UploadRows
from server.tus.rufh_handlers import RufhHandlers
from server.tus.tus_handlers import TusHandlers
from server.tus.uploads import Uploads
from storage import instances
from storage.blobs.base import LocalPath, sealed
from storage.errors import StorageError
from storage.records import UploadState
from storage.store import Store

ACCEPT_PATCH = "Accept-Patch"  # RFC 5789 §3.1
SAFE_TYPES = frozenset({"application/dicom", "image/png", "image/jpeg", "application/pdf"})
VERBS = {"/files": ("OPTIONS", "POST"), "/files/{upload_id}": ("OPTIONS", "HEAD", "PATCH", "DELETE", "POST", "GET")}
ACCESS = {
    "OPTIONS": OPEN,
    **dict.fromkeys(("POST", "PATCH", "DELETE"), Access(frozenset({Role.UPLOADER}), heeds_scope=True)),
    "HEAD": Access(frozenset(Role), heeds_scope=True),
    "GET": Access(frozenset({Role.VIEWER, Role.UPLOADER}), heeds_scope=True)}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def name_version(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Tus-Resumable MUST be in every answer (core, Tus-Resumable), those before a handler is chosen too."""
    if tus_fields.TUS_RESUMABLE in request.headers and request.path.startswith("/files"):
        response.headers[tus_fields.TUS_RESUMABLE] = tus_fields.VERSION


class FilesResource:
    """The routes of `/files`."""

    described = DESCRIBED

    def __init__(
        self, store: Store, uploads: Uploads, rows: UploadRows, tus: TusHandlers, rufh: RufhHandlers, links: Links,
        reads: Reads, max_size_bytes: int, expires_after: timedelta,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._rows = rows
        self._tus = tus
        self._rufh = rufh
        self._links = links
        self._reads = reads
        self._max_size_bytes = max_size_bytes
        self._expires_after = expires_after

    def routes(self) -> list[web.RouteDef]:
        """One route per verb; all of them lead to `answer`, for a method may be overridden."""
        found = [web.route(verb, path, self.answer, expect_handler=expect_nothing)
                 for path, verbs in VERBS.items() for verb in verbs if verb != "GET"]
        found += [web.route(verb, "/files/", self.answer, expect_handler=expect_nothing) for verb in VERBS["/files"]]
        return [*found, web.get("/files/{upload_id}", self.answer, allow_head=False)]

    @declares(ACCESS)
    async def answer(self, request: web.Request) -> web.StreamResponse:
        """With Tus-Resumable a request is tus, without it RUFH (contract §5)."""
        is_tus = tus_fields.TUS_RESUMABLE in request.headers
        speaker = self._tus if is_tus else self._rufh
        try:
            response = await self._handler(request, speaker)(request)
        except (AppError, StorageError) as error:
            known = as_app_error(error)
            note_forbidden(request, known)
            response = speaker.failure(known)
        close_if_unread(request, response)
        if SPOILED in request:
            response.force_close()
        if not response.prepared:
            if verb_of(request) == "OPTIONS":
                response.headers[tus_fields.TUS_RESUMABLE] = tus_fields.VERSION
            # MUST keep proxies from caching what changes (core, HEAD; RUFH §4.3)
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _handler(self, request: web.Request, speaker: TusHandlers | RufhHandlers) -> Handler:
        verb = verb_of(request)
        of_one = "upload_id" in request.match_info
        allowed = VERBS["/files/{upload_id}" if of_one else "/files"]
        if verb not in allowed or (of_one and verb == "POST"):
            raise method_not_allowed(allowed)
        handlers: dict[str, Handler] = {
            "OPTIONS": self.options, "GET": self.get, "POST": speaker.post, "HEAD": speaker.head,
            "PATCH": speaker.patch, "DELETE": speaker.delete}
        return handlers[verb]

    async def options(self, _request: web.Request) -> web.Response:
        """What this server speaks; needs neither token nor Tus-Resumable (core, OPTIONS; RUFH §4.1.4)."""
        return web.Response(status=204, headers={
            tus_fields.TUS_VERSION: tus_fields.VERSION, tus_fields.TUS_EXTENSION: ",".join(tus_fields.EXTENSIONS),
            tus_fields.TUS_MAX_SIZE: str(self._max_size_bytes),
            tus_fields.TUS_CHECKSUM_ALGORITHM: ",".join(ALGORITHMS),
            ACCEPT_PATCH: f"{tus_fields.OFFSET_CONTENT_TYPE}, {rufh_fields.PARTIAL_CONTENT_TYPE}",
            # SHOULD NOT be wider than what an upload is then told (RUFH §4.1.4)
            rufh_fields.UPLOAD_LIMIT: rufh_fields.format_limit(
                self._max_size_bytes, int(self._expires_after.total_seconds()))})

    async def get(self, request: web.Request) -> web.StreamResponse:
        """The bytes of a finished upload, with Range; plain HTTP, which waits for no lock."""
        who = principal_of(request)
        seen = self._uploads.find(self._links.upload_id(request), who, reading=True)
        _check_may_read(who, seen)
        upload = seen.upload
        state = state_of(upload, await self._rows.offset(upload), self._max_size_bytes, who)
        digest = upload.blob_sha256
        if upload.state is not UploadState.FINISHED or digest is None:
            return problem(RequestError("not_synced", "the upload is not finished"), state)
        if not isinstance(self._store.blobs, LocalPath):
            raise RequestError("not_found")

        def unit(tx: Connection) -> str:
            check_sound(tx, upload.site, digest)
            return _subject_of(tx, seen)

        try:
            subject = await self._store.read(unit)
        except RequestError as error:
            return problem(error, state)
        # private, for it is an image; no-store, for it tells of an upload's state (RUFH §4.3.2, SHOULD)
        state[hdrs.CACHE_CONTROL] = "private, no-store"
        if (answer := unwanted(request, digest)) is not None:
            answer.headers.update(state)
            return answer
        await self._reads.note(who, subject, request.remote)
        declared = tus_fields.parse_metadata(upload.upload_metadata)
        kind = (declared.get("filetype") or declared.get("type") or b"").decode(errors="replace")
        name = (declared.get("filename") or declared.get("name") or b"upload").decode(errors="replace")
        path = self._store.blobs.path(sealed(upload.site, digest))
        return Download(path, digest, {
            **state, "Content-Type": kind if kind in SAFE_TYPES else "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",  # RFC 6266 §4.3
            "X-Content-Type-Options": "nosniff",
            rufh_fields.REPR_DIGEST: rufh_fields.format_digest(digest)})


def _subject_of(tx: Connection, seen: Seen) -> str:
    """What is read: the upload's image, by its study, once it is one."""
    session = seen.standing.session
    image_id = session.server_image_id if session is not None else None
    image = instances.find(tx, seen.upload.site, image_id) if image_id is not None else None
    return subject_of(image) if image is not None else f"upload/{seen.upload.upload_id}"


def _check_may_read(who: Principal, seen: Seen) -> None:
    """RequestError `forbidden`: knowing a hash, and so sharing an upload, gives no access to bytes (contract §6)."""
    who.require(Role.VIEWER, Role.UPLOADER)
    owners = {seen.upload.principal, seen.standing.session.principal if seen.standing.session else None}
    if not who.is_narrowed and who.name not in owners:
        who.require(Role.VIEWER)
