"""The URLs of uploads: what clients are told, and which upload a request is about."""

from collections.abc import Callable

from aiohttp import web

from server.errors import RequestError
from server.tus import tus_fields


class Links:
    """Makes and reads upload URLs. `base_url` never trusts a raw Host header (contract §5)."""

    def __init__(self, base_url: Callable[[web.Request], str]) -> None:
        self._base_url = base_url

    def upload_url(self, request: web.Request, upload_id: str) -> str:
        """The absolute URL of an upload."""
        return f"{self._base_url(request)}/files/{upload_id}"

    def upload_id(self, request: web.Request) -> str:
        """The id in the request's path. RequestError `not_found` for what cannot be one."""
        upload_id = request.match_info["upload_id"]
        if not tus_fields.is_upload_id(upload_id):
            raise RequestError("not_found", "there is no such upload")
        return upload_id
