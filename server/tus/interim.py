"""Interim responses: 100 when a body is really wanted, 104 for resumable uploads. Writes them past aiohttp's answer."""

from collections.abc import Mapping

from aiohttp import hdrs, web

CONTINUE = "100 Continue"
UPLOAD_RESUMPTION = "104 Upload Resumption Supported"


async def interim(request: web.Request, status_line: str, headers: Mapping[str, str] | None = None) -> None:
    """Send one interim response (RFC 9110 §15.2); HTTP/1.0 knows none."""
    if request.version < (1, 1) or request.transport is None:
        return
    lines = [f"HTTP/1.1 {status_line}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    await request.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    request.writer.output_size = 0


async def expect_nothing(_request: web.Request) -> None:
    """The expect handler of `/files`: 100 is sent when the first byte is wanted, not before the token was looked at."""


async def invite_body(request: web.Request) -> None:
    """Answer `Expect: 100-continue` now that the body is wanted (RFC 9110 §10.1.1)."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await interim(request, CONTINUE)
