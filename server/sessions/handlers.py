"""The session routes under both roots (contract §4): parse, call the use case, answer."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from aiohttp import web
from sqlalchemy import Connection

from server.access import ANYBODY, allows
from server.admission import Verdict
from server.auth import Role, note_forbidden, principal_of
from server.bodies import json_body, parse
from server.caching import cached_json
from server.errors import SESSION_FAILURES, RequestError
from server.idempotency import key_of
from server.identifiers import parse_text_id
from server.identity.signatures import Signed
from server.middleware import route_of
from server.problems import problem_body
from server.queries import limit_of, number
from server.sessions import machine, schema
from server.sessions.described import DESCRIBED
from server.sessions.service import Caller, SessionService, View
from storage.records import ImageRecord, SessionRecord, Status, UploadRecord, timestamp
from storage.store import Store

ROOTS = ("/api/v1/visits/{visit_id}/radiology/upload-sessions", "/api/v1/upload-sessions")
CHUNK_BYTES = (64 * 1024, 64 * 1024 * 1024)
"""The least and the most that `upload_binary/` advises as chunk_size."""
RETRYABLE = tuple(code for code, meaning in SESSION_FAILURES.items() if meaning.retryable)
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""A date-time of RFC 3339 §5.6: without its offset from UTC it would be no moment."""

Complete = Callable[[str, str | None], Awaitable[Verdict | None]]
DescribeImage = Callable[[Connection, ImageRecord, str, Callable[[str], str]], dict[str, Any]]
BaseUrl = Callable[[web.Request], str]


def caller_of(request: web.Request) -> Caller:
    """Who calls, under which visit."""
    visit = request.match_info.get("visit_id")
    return Caller(principal_of(request), parse_text_id(visit, "visit_id") if visit else None, request.remote,
                  key_of(request), route_of(request))


class SessionHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(
        self, store: Store, service: SessionService, complete: Complete, describe_image: DescribeImage,
        base_url: BaseUrl, signed: Signed,
    ) -> None:
        self._store = store
        self._service = service
        self._complete = complete
        self._describe_image = describe_image
        self._base_url = base_url
        self._signed = signed

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash: never a redirect."""
        calls: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("POST", "create_session", self.create), ("POST", "batch", self.batch),
            ("GET", "pending", self.pending), ("GET", "failed", self.failed), ("GET", "", self.listing),
            ("POST", "{session_id}/upload_metadata", self.upload_metadata),
            ("POST", "{session_id}/upload_binary", self.upload_binary),
            ("POST", "{session_id}/acknowledge", self.acknowledge), ("POST", "{session_id}/retry", self.retry),
            ("POST", "{session_id}/cancel", self.cancel),
            ("POST", "{session_id}/report_failure", self.report_failure),
            ("GET", "{session_id}/history", self.history), ("GET", "{session_id}/receipt", self.receipt),
            ("GET", "{session_id}", self.show),
        ]
        return [
            web.route(method, path, handler)
            for root in ROOTS for method, name, handler in calls
            for path in ({f"{root}/{name}", f"{root}/{name}/"} if name else {root, f"{root}/"})]

    @allows(Role.UPLOADER, heeds_scope=True)
    async def create(self, request: web.Request) -> web.Response:
        """Make a session, or get the one that is there."""
        caller = caller_of(request)
        body = parse(schema.CreateSession, await json_body(request))
        status, created = await self._service.create(body, caller)
        answer = await self._json(request, created.session, duplicate=created.duplicate)
        if created.hint:
            answer["hint"] = created.hint
        response = _answer(answer, status)
        response.headers["Location"] = answer["links"]["self"]
        return response

    @allows(Role.UPLOADER, heeds_scope=True)
    async def batch(self, request: web.Request) -> web.Response:
        """Up to 100 creations, each answered for itself, and confirmed when it brings its metadata."""
        caller = caller_of(request)
        results = []
        for item in parse(schema.Batch, await json_body(request)).sessions:
            try:
                body = parse(schema.CreateSession, item)
                status, created = await self._service.create(body, caller)
                record = created.session
                if body.metadata is not None and record.status is Status.QUEUED:
                    record, _ = await self._service.upload_metadata(record.session_id, body.metadata, caller)
                results.append({"status": status, "session": await self._json(
                    request, record, duplicate=created.duplicate)})
            except RequestError as error:
                note_forbidden(request, error)
                results.append({"status": error.status, "problem": problem_body(error)})
        return _answer({"results": results})

    @allows(Role.UPLOADER, heeds_scope=True)
    async def upload_metadata(self, request: web.Request) -> web.Response:
        """Give the metadata, or confirm what the creation gave."""
        body = parse(schema.UploadMetadata, await json_body(request))
        record, replayed = await self._service.upload_metadata(
            request.match_info["session_id"], body.metadata, caller_of(request))
        return _answer({**await self._json(request, record), "replayed": replayed})

    @allows(Role.UPLOADER, heeds_scope=True)
    async def upload_binary(self, request: web.Request) -> web.Response:
        """Hand out the upload: its URL and true offset; carries no bytes."""
        caller = caller_of(request)
        body = parse(schema.UploadBinary, await json_body(request))
        session, upload = await self._service.upload_binary(request.match_info["session_id"], body, caller)
        view = await self._service.view_of(session, caller.who)
        if view.bytes_received == upload.length_bytes:
            await self._complete(upload.upload_id, caller.peer)
            view = await self._service.view(session.session_id, caller)
        return _answer(self._upload_json(request, view, upload, body.chunk_size))

    def _upload_json(
        self, request: web.Request, view: View, upload: UploadRecord, chunk_size: int
    ) -> dict[str, Any]:
        least, most = CHUNK_BYTES
        return {
            "session_id": view.record.session_id, "status": view.record.status,
            "upload_url": f"{self._base_url(request)}/files/{upload.upload_id}",
            "upload_offset": view.bytes_received, "upload_length": upload.length_bytes,
            "chunk_size": min(max(chunk_size, least), most), "protocols": ["tus", "rufh"],
            "upload_expires": upload.expires_at}

    @allows(Role.UPLOADER, heeds_scope=True)
    async def acknowledge(self, request: web.Request) -> web.Response:
        """Read the stored bytes back: only its 200 permits deletion."""
        caller = caller_of(request)
        body = parse(schema.Acknowledge, await json_body(request))
        record, replayed = await self._service.acknowledge(request.match_info["session_id"], body, caller)
        device = str(body.device_id) if body.device_id is not None else None
        answer = await self._json(request, record, device=device)
        return _answer({**answer, "replayed": replayed, "receipt": record.receipt})

    @allows(Role.UPLOADER, heeds_scope=True)
    async def retry(self, request: web.Request) -> web.Response:
        """From FAILED back to QUEUED, at the cost of one retry."""
        parse(schema.Retry, await json_body(request))
        return _answer(await self._service.retry(request.match_info["session_id"], caller_of(request)))

    @allows(Role.UPLOADER, heeds_scope=True)
    async def cancel(self, request: web.Request) -> web.Response:
        """Give the session up, with a reason: wrong file, wrong order."""
        body = parse(schema.Cancel, await json_body(request))
        record = await self._service.cancel(request.match_info["session_id"], body, caller_of(request))
        return _answer(await self._json(request, record))

    @allows(Role.UPLOADER, heeds_scope=True)
    async def report_failure(self, request: web.Request) -> web.Response:
        """What broke on the client's side."""
        body = parse(schema.ReportFailure, await json_body(request))
        record = await self._service.report_failure(request.match_info["session_id"], body, caller_of(request))
        return _answer(await self._json(request, record))

    @allows(*ANYBODY, heeds_scope=True)
    async def show(self, request: web.Request) -> web.Response:
        """A session; `device_id` asks whether that device may delete its copy."""
        device = request.query.get("device_id")
        view = await self._service.view(request.match_info["session_id"], caller_of(request), device)
        return _answer(await self._view_json(request, view))

    @allows(*ANYBODY, heeds_scope=True)
    async def history(self, request: web.Request) -> web.Response:
        """Its rows of the audit."""
        rows = await self._service.history(request.match_info["session_id"], caller_of(request))
        return _answer({"results": rows})

    @allows(*ANYBODY, heeds_scope=True)
    async def receipt(self, request: web.Request) -> web.Response:
        """Its receipt: the server's signed word."""
        receipt = await self._service.receipt(request.match_info["session_id"], caller_of(request))
        return _answer({"receipt": receipt, "jwks": f"{self._base_url(request)}/.well-known/jwks.json"})

    @allows(*ANYBODY, heeds_scope=True)
    async def pending(self, request: web.Request) -> web.Response:
        """What is not finished, or stored and waiting for the ACK."""
        return await self._list(request, statuses=(*machine.ACTIVE, Status.SYNCED))

    @allows(*ANYBODY, heeds_scope=True)
    async def failed(self, request: web.Request) -> web.Response:
        """What FAILED and can still be retried; `include_exhausted=true` for all."""
        if request.query.get("include_exhausted") == "true":
            return await self._list(request, statuses=(Status.FAILED,))
        return await self._list(request, statuses=(Status.FAILED,), error_codes=RETRYABLE, retries_left=True)

    @allows(*ANYBODY, heeds_scope=True)
    async def listing(self, request: web.Request) -> web.Response:
        """Sessions, the newest change first."""
        query = request.query
        filters: dict[str, Any] = {}
        if "status" in query:
            try:
                filters["statuses"] = tuple(Status(word) for word in query["status"].split(","))
            except ValueError as error:
                raise RequestError("invalid_field", "status is not one of the seven", field="status") from error
        if "error_code" in query:
            if query["error_code"] not in SESSION_FAILURES:
                raise RequestError("invalid_field", "error_code is no code of a session", field="error_code")
            filters["error_codes"] = (query["error_code"],)
        return await self._list(request, **filters)

    async def _list(self, request: web.Request, **filters: Any) -> web.Response:  # see storage.sessions.listing
        caller, query = caller_of(request), request.query
        limit = limit_of(request)
        after, since = query.get("cursor"), query.get("updated_after")
        ids = {name: parse_text_id(query[name], name).text if name in query else None
               for name in ("radiology_order_id", "device_id")}
        records = await self._service.listing(
            caller, limit + 1, **ids,
            updated_after=_moment(since, "updated_after") if since is not None else None,
            before_seq=number(after, "cursor") if after else None, **filters)
        page = records[:limit]
        results = [await self._json(request, record) for record in page]
        cursor = str(page[-1].seq) if len(records) > limit else None
        return cached_json(request, {"results": results, "next_cursor": cursor})

    async def _json(
        self, request: web.Request, record: SessionRecord, *, duplicate: bool = False, device: str | None = None
    ) -> dict[str, Any]:
        view = await self._service.view_of(record, principal_of(request), device)
        return await self._view_json(request, view, duplicate)

    async def _view_json(self, request: web.Request, view: View, duplicate: bool = False) -> dict[str, Any]:
        base_url = self._base_url(request)
        images, who = [], principal_of(request)

        def sign(path: str) -> str:
            return self._signed(path, who)

        if view.images:
            images = await self._store.read(
                lambda tx: [self._describe_image(tx, image, base_url, sign) for image in view.images])
        return schema.session_json(
            view.record, base_url=base_url, bytes_received=view.bytes_received, images=images, safe=view.safe,
            owner=view.owner, sign=sign, duplicate=duplicate or view.record.duplicate_of is not None)


def _moment(text: str, field: str) -> str:
    """A time of any offset in the form that rows have."""
    try:
        if MOMENT.fullmatch(text.upper()):
            return timestamp(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError):
        pass  # the 31st of February; or a year that none of ours can be
    raise RequestError("invalid_field", f"{field} must be a time with its offset, such as 2026-11-22T10:02:40Z",
                       field=field)


def _answer(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers={"Cache-Control": "no-store"})
