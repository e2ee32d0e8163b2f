"""A body that somebody wants to leave: whatever had reached the socket by then is read."""

import asyncio
import socket

from aiohttp import web

from server.errors import RequestError
from server.tus.body import UploadBody
from server.tus.pace import Pace
from tests.support import eventually

SENT, LENGTH = 900_000, 2_000_000


async def test_who_is_told_to_leave_before_it_begins_to_read_still_keeps_what_reached_the_socket() -> None:
    came = asyncio.Event()
    sent = asyncio.Event()
    kept: list[int | str] = []

    async def take(request: web.Request) -> web.Response:
        await sent.wait()
        body = UploadBody(request, Pace(), LENGTH)
        body.stop("upload_stopped")  # by a newcomer, before the first byte was asked for
        assert await body.open_socket()
        buffer = memoryview(bytearray(LENGTH))
        try:
            while await asyncio.to_thread(body.read, buffer):
                continue
        except RequestError as error:
            kept.append(error.code)
        kept.append(body.bytes_read)
        body.close_socket()
        came.set()
        return web.Response()


    app = web.Application()
    app.router.add_patch("/", take)
    runner = web.AppRunner(app, read_bufsize=64 * 1024)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LENGTH)
            head = f"PATCH / HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n".encode()
            await asyncio.to_thread(line.sendall, head + bytes(SENT))
            sent.set()
            await eventually(came.is_set)
    finally:
        await runner.cleanup()
    assert kept == ["upload_stopped", SENT]
