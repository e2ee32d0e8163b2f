"""The URLs of uploads: what clients are told, and which upload a request is about."""

from collections.abc import Callable

from aiohttp import web

from server.auth import principal_of
from server.errors import RequestError
from server.tus import protocol
from server.tus.uploads import Uploads
from storage.records import UploadRecord


class Links:
    """Makes and reads upload URLs. `base_url` never trusts a raw Host header (contract §5)."""

    def __init__(self, uploads: Uploads, base_url: Callable[[web.Request], str]) -> None:
        self._uploads = uploads
        self._base_url = base_url

    def upload_url(self, request: web.Request, upload_id: str) -> str:
        """The absolute URL of an upload."""
        return f"{self._base_url(request)}/files/{upload_id}"

    async def find(self, request: web.Request, *, reading: bool) -> UploadRecord:
        """The upload that the request's path names. RequestError `not_found`, `forbidden`, `gone`."""
        upload_id = request.match_info["upload_id"]
        if not protocol.is_upload_id(upload_id):
            raise RequestError("not_found", "there is no such upload")
        return await self._uploads.find(upload_id, principal_of(request), reading=reading)
