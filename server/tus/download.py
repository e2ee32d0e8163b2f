"""The bytes of a finished upload as plain HTTP, with Range; their SHA-256 is their strong ETag. Knows no upload.

Fact: aiohttp's FileResponse makes an ETag of the file's time and judges every condition by it.
"""

from collections.abc import Mapping
from pathlib import Path

from aiohttp import ETag, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from server.caching import is_known

CONDITIONS = (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH, hdrs.IF_MODIFIED_SINCE, hdrs.IF_UNMODIFIED_SINCE, hdrs.IF_RANGE)


def unwanted(request: web.Request, sha256: str) -> web.Response | None:
    """The answer without bytes that If-Match or If-None-Match asks for (RFC 9110 §13.2.2).

    Dates are not looked at: what a SHA-256 names never changes.
    """
    wanted = request.if_match
    if wanted is not None and not any(one.value in (sha256, "*") and not one.is_weak for one in wanted):
        return web.Response(status=412)
    if is_known(request, sha256):
        return web.Response(status=304, headers={hdrs.ETAG: f'"{sha256}"'})
    return None


class Download(web.FileResponse):
    """The file at `path`, which holds the bytes of that SHA-256."""

    def __init__(self, path: Path, sha256: str, headers: Mapping[str, str]) -> None:
        super().__init__(path, headers=headers)
        self._tag = f'"{sha256}"'

    @property
    def etag(self) -> ETag | None:
        """The digest."""
        return ETag(value=self._tag.strip('"'))

    @etag.setter
    def etag(self, _value: ETag | str | None) -> None:
        self.headers[hdrs.ETAG] = self._tag

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send it. A Range counts only while If-Range names these bytes (RFC 9110 §13.1.5)."""
        headers = request.headers.copy()
        if headers.get(hdrs.IF_RANGE, self._tag) != self._tag:
            headers.pop(hdrs.RANGE, None)
        for name in CONDITIONS:
            headers.popall(name, None)
        return await super().prepare(request.clone(headers=headers))
