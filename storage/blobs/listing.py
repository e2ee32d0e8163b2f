"""Tells what files lie in an area, a directory at a time: there may be millions. Reads no file."""

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from storage.blobs.base import BlobKey
from storage.blobs.threads import in_thread

NO_SIZE = -1
"""Of what lies in the place of a blob and is no file: no blob has that size."""


async def keys(root: Path, area: str) -> AsyncIterator[BlobKey]:
    """The key of every file."""
    async for site, folder in _folders(root, area):
        for name in await in_thread(lambda folder=folder: sorted(os.listdir(folder))):  # type: ignore[misc]  # noqa: PTH208
            if not name.startswith("."):
                yield BlobKey(area, site, name)


async def sizes(root: Path, area: str) -> AsyncIterator[tuple[BlobKey, int]]:
    """The key of every file, and its size in bytes; NO_SIZE of what is no file."""
    async for site, folder in _folders(root, area):
        for name, size in await in_thread(lambda folder=folder: _sizes(folder)):  # type: ignore[misc]
            yield BlobKey(area, site, name), size


async def _folders(root: Path, area: str) -> AsyncIterator[tuple[str, Path]]:
    base = root / area
    pattern = "site-*/*" if area == "sealed" else "site-*"
    for folder in await in_thread(lambda: sorted(base.glob(pattern))):
        yield folder.relative_to(base).parts[0].removeprefix("site-"), folder


def _sizes(folder: Path) -> list[tuple[str, int]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it was taken away meanwhile
                if not entry.name.startswith("."):
                    found.append((
                        entry.name,
                        entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else NO_SIZE))
    return found
