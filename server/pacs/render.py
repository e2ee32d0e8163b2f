"""Pictures of images, made by a limited child process that is killed when it takes too long. Decodes nothing here."""

import asyncio
import json
import os
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.errors import RenderFailed

MediaType = Literal["image/png", "image/jpeg"]


@dataclass(frozen=True, slots=True)
class Window:
    """A VOI window in output units of the modality LUT (PS3.3 §C.11.2.1.2)."""

    center: float
    width: float


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one picture may cost."""

    memory_bytes: int = 2 * 1024 * 1024 * 1024
    time_s: float = 20.0
    wait_s: float = 60.0
    children: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: its bytes, size in pixels, the number of frames, and the window if it is a grey one."""

    content: bytes
    media_type: str
    width_px: int
    height_px: int
    frames: int
    window_center: float | None
    window_width: float | None


class Renderer:
    """Children that render, one request at a time each; a new one is started when one dies."""

    def __init__(self, limits: RenderLimits | None = None) -> None:
        self._limits = limits or RenderLimits()
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        for _ in range(self._limits.children):
            self._idle.put_nowait(None)  # a place for a child that is started when it is needed

    async def render(
        self, path: Path, *, frame: int = 1, window: Window | None = None, size_px: int | None = None,
        media_type: MediaType = "image/png",
    ) -> Picture:
        """One frame, counted from 1. RenderFailed says why not; the stored bytes are only read."""
        facts, content = await self._answer({
            "path": str(path), "frame": frame, "size_px": size_px, "media_type": media_type,
            "window": [window.center, window.width] if window else None})
        return Picture(content, media_type, **facts)

    async def same_content(self, one: Path, two: Path) -> bool:
        """Whether two files hold one object in two encodings; False also when that cannot be told."""
        try:
            facts, _ = await self._answer({"paths": [str(one), str(two)]})
        except RenderFailed:
            return False
        return bool(facts["same"])

    async def _answer(self, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:  # the child's JSON
        request = json.dumps(asked).encode()
        try:
            async with asyncio.timeout(self._limits.wait_s):
                child = await self._idle.get()
        except TimeoutError:
            raise RenderFailed("too many pictures are asked for at once") from None
        healthy = False
        try:
            if child is None or child.returncode is not None:
                child = await self._start()
            async with asyncio.timeout(self._limits.time_s):
                facts, content = await _ask(child, request)
            healthy = True
        except TimeoutError:
            raise RenderFailed(f"showing this image takes longer than {self._limits.time_s:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            raise RenderFailed("showing this image needs more than is allowed") from None
        finally:
            # cancelled, timed out or dead: half an answer may be under way, so this child is done with
            if child is not None and not healthy:
                await asyncio.shield(_end(child))
            self._idle.put_nowait(child if healthy else None)
        if "error" in facts:
            raise RenderFailed(str(facts["error"]))
        return facts, content

    async def _start(self) -> Process:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server.pacs.render_child", str(self._limits.memory_bytes),
            stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, cwd=Path(__file__).parents[2],
            start_new_session=True)

    async def close(self) -> None:
        """End every child that is idle; callers are gone by now."""
        while not self._idle.empty():
            child = self._idle.get_nowait()
            if child is not None:
                await _end(child)


async def _ask(child: Process, request: bytes) -> tuple[dict[str, Any], bytes]:  # the child's JSON
    assert child.stdin is not None and child.stdout is not None, "both are pipes"
    child.stdin.write(struct.pack(">I", len(request)) + request)
    await child.stdin.drain()
    header_bytes, content_bytes = struct.unpack(">II", await child.stdout.readexactly(8))
    facts = json.loads(await child.stdout.readexactly(header_bytes))
    return facts, await child.stdout.readexactly(content_bytes)


async def _end(child: Process) -> None:
    if child.returncode is None:
        child.kill()
    await child.wait()
