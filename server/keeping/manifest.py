"""The manifest of a backup: what it holds, and by which digests that is told. Copies nothing.

A backup is a folder: `manifest.json`, the database that it names, `keys/`, and `blobs/`, laid out as the server's own.
The blobs are listed by that database, which the manifest names by its SHA-256; and each is named by its own.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.errors import AppError
from server.private_files import replace_durably
from storage.blobs.digests import digest_of

NAME = "manifest.json"
KEYS, BLOBS = "keys", "blobs"
FORMAT = 1
BESIDE = re.compile(r"(?!\.{1,2}$)[^/\0]+")
KEY = re.compile(rf"{KEYS}/[^/\0]+\.json")
"""Where the manifest may name files: in the folder itself, and keys."""


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
        values: object = json.loads(path.read_text())
    except FileNotFoundError:
        raise NoBackup(f"{folder} holds no {NAME}: it is no backup, or one that never came to its end") from None
    except (OSError, ValueError, RecursionError) as error:
        raise NoBackup(f"{path} cannot be read: {error}") from error
    if isinstance(values, dict) and "format" in values and values["format"] != FORMAT:
        raise NoBackup(f"{path} is of format {values['format']!r:.20}, which this version does not know")
    try:
        return _of(values)
    except (TypeError, KeyError) as error:
        raise NoBackup(f"{path} is no manifest of a backup") from error


def _of(values: object) -> Manifest:
    """KeyError, TypeError where something is lacking, too much, or of another type."""
    given = _object(values)
    made = Manifest(**{
        **given, "database": _file(given["database"]), "lacking": tuple(_list(given["lacking"])),
        "head": _file(given["head"]) if given["head"] is not None else None,
        "keys": tuple(_file(one) for one in _list(given["keys"]))})
    texts = (made.version, made.made_at, made.revision, made.audit_hash or "", *made.lacking)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("text is needed")
    if not all(type(number) is int for number in (made.audit_seq, made.blobs, made.blob_bytes)):
        raise TypeError("a number is needed")
    return made


def _file(value: object) -> File:
    file = File(**_object(value))
    if not isinstance(file.path, str) or not isinstance(file.sha256, str) or type(file.size_bytes) is not int:
        raise TypeError("this tells of no file")
    return file


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object is needed")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is needed")
    return value


def check(folder: Path, manifest: Manifest) -> None:
    """Whether the files that the manifest names lie where a backup has them, and are what it says. NoBackup."""
    heads = [manifest.head] if manifest.head else []
    for one, pattern in [*((key, KEY) for key in manifest.keys), *((file, BESIDE) for file in
                                                                   (manifest.database, *heads))]:
        path = folder / one.path
        if not pattern.fullmatch(one.path):
            raise NoBackup(f"{NAME} names {one.path!a:.80}, where no backup has a file")
        if path.is_symlink() or (path.parent.is_symlink() and path.parent != folder):
            raise NoBackup(f"{path} is a link, and nothing of a backup is")
        if not path.is_file():
            raise NoBackup(f"{path} is gone")
        if digest_of(path, from_medium=False)[0] != one.sha256:
            raise NoBackup(f"{path} is not the file that {NAME} names: it was changed, or damaged")


def file_of(folder: Path, path: Path) -> File:
    """What the manifest says of a file in `folder`."""
    sha256, size_bytes = digest_of(path, from_medium=False)
    return File(str(path.relative_to(folder)), sha256, size_bytes)
