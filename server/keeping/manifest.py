"""The manifest of a backup: what it holds, and by which digests that is told. Copies nothing.

A backup is a folder: `manifest.json`, the database that it names, `keys/`, and `blobs/`, laid out as the server's own.
The blobs are listed by that database, which the manifest names by its SHA-256; and each is named by its own.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.errors import AppError
from server.private_files import replace_durably
from storage.blobs.digests import digest_of

NAME = "manifest.json"
KEYS, BLOBS = "keys", "blobs"
FORMAT = 1


class NoBackup(AppError):
    """The folder is no backup, or not a whole one; the message says why."""

    code = "no_backup"
    title = "This is no backup"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a backup, by its path in it."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. `lacking`: blobs that its database names and that were damaged or gone when it was made.

    `head`: the signed head of the audit chain, where there was one.
    """

    format: int
    version: str
    made_at: str
    revision: str
    audit_seq: int
    audit_hash: str | None
    database: File
    keys: tuple[File, ...]
    head: File | None
    blobs: int
    blob_bytes: int
    lacking: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Put it into `folder`, whole and durable: from then on the backup is the one that it tells of."""
        replace_durably(folder / NAME, json.dumps(asdict(self), indent=1).encode())


def read(folder: Path) -> Manifest:
    """The manifest of `folder`. NoBackup."""
    path = folder / NAME
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise NoBackup(f"{folder} holds no {NAME}: it is no backup, or one that never came to its end") from None
    except (OSError, ValueError) as error:
        raise NoBackup(f"{path} cannot be read: {error}") from error
    try:
        if values["format"] != FORMAT:
            raise NoBackup(f"{path} is of format {values['format']}, which this version does not know")
        return Manifest(**{
            **values, "database": File(**values["database"]), "lacking": tuple(values["lacking"]),
            "head": File(**values["head"]) if values["head"] else None,
            "keys": tuple(File(**one) for one in values["keys"])})
    except (TypeError, KeyError, AttributeError) as error:
        raise NoBackup(f"{path} is no manifest of a backup") from error


def check(folder: Path, manifest: Manifest) -> None:
    """Whether the files that the manifest names are what it says. NoBackup."""
    for one in (manifest.database, *manifest.keys, *([manifest.head] if manifest.head else [])):
        path = folder / one.path
        if Path(one.path).is_absolute() or ".." in Path(one.path).parts:
            raise NoBackup(f"{NAME} names {one.path}, which is outside of the backup")
        if not path.is_file():
            raise NoBackup(f"{path} is gone")
        if digest_of(path, from_medium=False)[0] != one.sha256:
            raise NoBackup(f"{path} is not the file that {NAME} names: it was changed, or damaged")


def file_of(folder: Path, path: Path) -> File:
    """What the manifest says of a file in `folder`."""
    sha256, size_bytes = digest_of(path, from_medium=False)
    return File(str(path.relative_to(folder)), sha256, size_bytes)
