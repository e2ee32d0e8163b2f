"""Carries the blobs that a database names from one folder of blobs to another. Takes none away, reads no content."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from server.identifiers import PATTERN
from storage.blobs.base import sealed
from storage.blobs.copying import copy_file, link_file, size_of
from storage.blobs.layout import Layout
from storage.blobs.medium import storage_errors, sync_directory
from storage.errors import DigestMismatch, NotFound, Unreadable
from storage.inventory import KeptBlob
from storage.records import Sha256

TOLD_EVERY = 500
SHA256 = re.compile(r"[0-9a-f]{64}")
Told = Callable[["Carried"], None]
"""Hears how far it is."""


@dataclass(slots=True)
class Carried:
    """How far it is: blobs and bytes that are there now, how many of them were copied, and those that could not be.

    `doubted`: those that were at the target already, and are gone or of another size at the source. `strange`: rows
    that name no blob.
    """

    blobs: int = 0
    bytes: int = 0
    copied: int = 0
    lacking: list[KeptBlob] = field(default_factory=list)
    doubted: list[KeptBlob] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    @property
    def not_there(self) -> list[str]:
        """How people are told of what the target lacks."""
        return [*(one.name for one in self.lacking), *self.strange]


def carry(named: Iterable[KeptBlob], source: Path, target: Path, told: Told, *, link: bool = False) -> Carried:
    """Bring every blob of `named` to `target`, verified: by its SHA-256 where it is copied, by its size where it is
    linked or there already. What is damaged, gone or cannot be read is listed, and so is a row that names no blob,
    whose words are never a path; the rest goes on. NoSpace, StorageIO: of the target.
    """
    sources, targets, carried = Layout(source), Layout(target), Carried()
    touched: set[Path] = set()
    for one in named:
        if not PATTERN.fullmatch(one.site) or not SHA256.fullmatch(one.sha256):
            carried.strange.append(f"{one.site!a:.80}/{one.sha256!a:.80}")
            continue
        key = sealed(one.site, one.sha256)
        targets.make_fan(one.site)
        path, from_where = Path(targets.name(key)), Path(sources.name(key))
        if size_of(path) == one.size_bytes:
            if size_of(from_where) != one.size_bytes:
                carried.doubted.append(one)
        else:
            _clear(path)
            if not _bring(from_where, path, one, link):
                carried.lacking.append(one)
                continue
            touched.add(path.parent)
            carried.copied += 1
        carried.blobs += 1
        carried.bytes += one.size_bytes
        if carried.blobs % TOLD_EVERY == 0:
            told(carried)
    for folder in touched:
        sync_directory(folder)
    told(carried)
    return carried


def _clear(path: Path) -> None:
    """What has the blob's name and is not the blob. StorageIO."""
    with storage_errors():
        path.unlink(missing_ok=True)


def _bring(source: Path, target: Path, one: KeptBlob, link: bool) -> bool:
    """Whether the blob lies at `target` now, as it should be. NoSpace, StorageIO: the target's."""
    try:
        if link:
            linked = link_file(source, target)
            if linked is not None:
                if linked.size_bytes != one.size_bytes:
                    target.unlink()
                    return False
                return True
        return copy_file(source, target, Sha256(one.sha256)).size_bytes == one.size_bytes
    except (NotFound, DigestMismatch, Unreadable):
        return False
