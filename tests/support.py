"""What many tests share: waiting for a fact, finding a peer, choosing a port."""

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable

import pytest


async def eventually(predicate: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Wait until `predicate` is true, looking every 10 ms; raise AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline, f"not true within {timeout_s} s"
        await asyncio.sleep(0.01)


def require_peer(name: str) -> str:
    """The path of a program that a test needs. Missing: skipped at home, a failure in CI."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: run make setup-peers")
        pytest.skip(f"{name} is missing: run make setup-peers")
    return path


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
