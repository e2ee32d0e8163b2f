"""File work in a thread, off the loop; a caller that is cancelled leaves when it has ended. Knows no blob."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from storage.blobs.medium import storage_errors

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run file work off the loop, its failures in the storage's words."""

    def guarded() -> T:
        with storage_errors():
            return work()

    return await shielded(guarded)


async def shielded(work: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
    """Run `work` in a thread. A cancelled caller never leaves a file half written."""
    task = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():  # whoever cancels may do so more than once
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
