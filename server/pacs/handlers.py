"""Images, studies and deliveries over HTTP: parse, ask, answer. Pixels are made by the renderer."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from sqlalchemy import Connection

from server.access import allows
from server.auth import Principal, Role, principal_of
from server.caching import CACHED, cached, cached_json
from server.errors import RequestError
from server.identity.signatures import Signed
from server.pacs.described import DESCRIBED
from server.pacs.ingest import blob_path
from server.pacs.presentation import Sign, image_json, study_json, study_links
from server.pacs.render import MediaType, Renderer, Window
from server.queries import number
from server.reads import Reads, check_sound, subject_of
from server.visibility import may_see_image
from storage import instances, jobs
from storage.records import ImageRecord
from storage.store import Store

THUMBNAIL_PX = 256
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ReceiptOf = Callable[[ImageRecord, Principal, str | None], Awaitable[str]]
"""The receipt of an image that the principal may see, asked for from that address."""


class ImageHandlers:
    """One method per call."""

    described = DESCRIBED

    def __init__(
        self, store: Store, renderer: Renderer, reads: Reads, receipt_of: ReceiptOf,
        base_url: Callable[[web.Request], str], signed: Signed,
    ) -> None:
        self._store = store
        self._renderer = renderer
        self._base_url = base_url
        self._signed = signed
        self._reads = reads
        self._receipt_of = receipt_of

    def routes(self) -> list[web.RouteDef]:
        """Every route, with and without the trailing slash."""
        calls: list[tuple[str, Handler]] = [
            ("/api/v1/images/{image_id}", self.image), ("/api/v1/images/{image_id}/file", self.file),
            ("/api/v1/images/{image_id}/rendered", self.rendered),
            ("/api/v1/images/{image_id}/thumbnail", self.thumbnail),
            ("/api/v1/images/{image_id}/receipt", self.receipt),
            ("/api/v1/studies", self.studies), ("/api/v1/studies/{study_instance_uid}", self.study),
            ("/api/v1/forward/deliveries", self.deliveries),
        ]
        return [web.get(path, handler) for name, handler in calls for path in (name, f"{name}/")]

    @allows(Role.VIEWER, Role.UPLOADER, Role.AUDITOR, heeds_scope=True)
    async def image(self, request: web.Request) -> web.Response:
        """The image's facts."""
        image = await self._image(request)
        base_url, sign = self._base_url(request), self._signing(principal_of(request))
        return cached_json(request, await self._store.read(lambda tx: image_json(tx, image, base_url, sign)))

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def file(self, request: web.Request) -> web.StreamResponse:
        """The bytes as they were sent; never shown inline by a browser."""
        image = await self._image(request, pixels=True)
        kind = "application/dicom" if image.kind == "dicom" else "application/octet-stream"
        return web.FileResponse(blob_path(self._store.blobs, image.site, image.blob_sha256), headers={
            **CACHED, "Content-Type": kind, "X-Content-Type-Options": "nosniff",
            "Content-Disposition": f'attachment; filename="image-{image.id}"'})

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True, by_url=True)
    async def rendered(self, request: web.Request) -> web.Response:
        """One frame as PNG or JPEG: `?frame=1&window=center,width`, the kind by `Accept` or `?accept=`."""
        image = await self._image(request, pixels=True)
        frame = number(request.query.get("frame", "1"), "frame", 1)
        return await self._picture(request, image, frame, _window(request.query.get("window")), None)

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True, by_url=True)
    async def thumbnail(self, request: web.Request) -> web.Response:
        """The first frame, at most 256 pixels on its longer side."""
        return await self._picture(request, await self._image(request, pixels=True), 1, None, THUMBNAIL_PX)

    @allows(Role.VIEWER, Role.UPLOADER, Role.AUDITOR, heeds_scope=True)
    async def receipt(self, request: web.Request) -> web.Response:
        """The server's signed word that it holds the image."""
        image = await self._image(request)
        receipt = await self._receipt_of(image, principal_of(request), request.remote)
        return web.json_response({"receipt": receipt, "jwks": f"{self._base_url(request)}/.well-known/jwks.json"},
                                 headers={"Cache-Control": "no-store"})

    async def _picture(
        self, request: web.Request, image: ImageRecord, frame: int, window: Window | None, size_px: int | None
    ) -> web.Response:
        if image.kind != "dicom":
            raise RequestError("render_failed", "only DICOM images are shown")
        media_type = _media_type(request)
        tag = f"{image.blob_sha256[:16]}-{frame}-{request.query.get('window', '')}-{size_px}-{media_type[-4:]}"
        unchanged = cached(request, web.Response(), tag)
        if unchanged.status == 304:
            return unchanged
        picture = await self._renderer.render(
            blob_path(self._store.blobs, image.site, image.blob_sha256), frame=frame, window=window, size_px=size_px,
            media_type=media_type)
        response = web.Response(body=picture.content, content_type=picture.media_type, headers={
            "X-Content-Type-Options": "nosniff", "Packhorse-Frames": str(picture.frames)})
        if picture.window_center is not None and picture.window_width is not None:
            response.headers["Packhorse-Window"] = f"{picture.window_center:g},{picture.window_width:g}"
        return cached(request, response, tag)

    @allows(Role.VIEWER)
    async def studies(self, request: web.Request) -> web.Response:
        """Studies in order of coming; with `?rejected=true` those of rejected images, for operators."""
        who = principal_of(request)
        rejected = _asks_for_rejected(request)
        limit = min(number(request.query.get("limit", "100"), "limit", 1), 500)
        after = number(request.query.get("cursor", "0"), "cursor")
        rows = await self._store.read(lambda tx: instances.studies(
            tx, who.site, limit + 1, after, rejected=rejected))
        base_url, sign = self._base_url(request), self._signing(who)
        results = [{
            "study_instance_uid": row["study_instance_uid"], "attributes": row["attributes"], "images": row["images"],
            "series": row["series"], "created_at": row["created_at"],
            "links": study_links(row["study_instance_uid"], base_url, sign)} for row in rows[:limit]]
        cursor = str(rows[limit - 1]["id"]) if len(rows) > limit else None
        return cached_json(request, {"results": results, "next_cursor": cursor})

    @allows(Role.VIEWER, Role.UPLOADER, heeds_scope=True)
    async def study(self, request: web.Request) -> web.Response:
        """The tree: study, series, images; a token of one visit sees only that visit's images.

        With `?rejected=true` its rejected images, for operators.
        """
        who = principal_of(request)
        who.require(Role.VIEWER, Role.UPLOADER)
        rejected = _asks_for_rejected(request)
        uid, base_url = request.match_info["study_instance_uid"], self._base_url(request)

        def unit(tx: Connection) -> dict[str, Any] | None:
            found = instances.tree(tx, who.site, uid, rejected=rejected)
            if found is None:
                return None
            study, series = found
            for row in series:
                row["images"] = [image for image in row["images"] if may_see_image(tx, image, who)]
            series = [row for row in series if row["images"]]
            return study_json(tx, study, series, base_url, self._signing(who)) if series else None

        body = await self._store.read(unit)
        if body is None:
            raise RequestError("not_found", "there is no such study")
        await self._reads.note(who, uid, request.remote)
        return cached_json(request, body)

    @allows(Role.OPERATOR)
    async def deliveries(self, request: web.Request) -> web.Response:
        """What is on its way to the destinations, what arrived there, what waits for a person."""
        who = principal_of(request)
        who.require(Role.OPERATOR)
        rows = await self._store.read(lambda tx: jobs.deliveries(tx, who.site))
        return cached_json(request, {"results": [{
            "delivery_id": row.delivery_id, "image_id": row.image_id, "destination": row.destination,
            "status": row.state, "attempts": row.attempts, "last_status": row.last_status,
            "last_error": row.last_error, "created_at": row.created_at, "delivered_at": row.delivered_at}
            for row in rows]})

    def _signing(self, who: Principal) -> Sign:
        return lambda path: self._signed(path, who)

    async def _image(self, request: web.Request, *, pixels: bool = False) -> ImageRecord:
        who = principal_of(request)
        who.require(*([Role.VIEWER, Role.UPLOADER] if pixels else [Role.VIEWER, Role.UPLOADER, Role.AUDITOR]))
        image_id = number(request.match_info["image_id"], "image_id", 1)

        def unit(tx: Connection) -> ImageRecord | None:
            image = instances.find(tx, who.site, image_id)
            if image is None or not may_see_image(tx, image, who):
                return None
            if pixels:
                check_sound(tx, image.site, image.blob_sha256)
            return image

        image = await self._store.read(unit)
        if image is None:
            raise RequestError("not_found", "there is no such image")
        await self._reads.note(who, subject_of(image), request.remote)
        return image


def _asks_for_rejected(request: web.Request) -> bool:
    asked: bool = request.query.get("rejected") == "true"
    if asked:
        principal_of(request).require(Role.OPERATOR)
    return asked


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError("invalid_field", "window must be center,width", field="window") from None
    if not (abs(center) < 1e9 and 0 < width < 1e9):
        raise RequestError("invalid_field", "window's width must be above 0", field="window")
    return Window(center, width)


def _media_type(request: web.Request) -> MediaType:
    asked: str = request.query.get("accept") or request.headers.get("Accept") or ""
    return "image/jpeg" if "image/jpeg" in asked and "image/png" not in asked else "image/png"
