"""Gives a staged file its sealed name beside its own, durably, and heals what lies there. Computes no address."""

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from storage.blobs.digests import digest_of
from storage.blobs.medium import sync_directory
from storage.errors import NotAFile
from storage.records import Sha256


def link(source: str, target: str, sha256: Sha256) -> bool:
    """Link `source` to `target`, the address of its bytes; whether the same bytes were there already."""
    existed = False
    try:
        os.link(source, target)
    except FileExistsError:
        with suppress(OSError, NotAFile):  # what cannot be read is damaged
            existed = digest_of(target, from_medium=True)[0] == sha256
        if not existed:
            _keep_odd(target)
            # a second link, moved over the damaged bytes that lie there: never a moment without a file
            replacement = Path(target).with_name(f".{Path(source).name}.link")
            replacement.unlink(missing_ok=True)
            os.link(source, replacement)
            replacement.replace(target)
            replacement.unlink(missing_ok=True)  # rename() keeps both names when they are one file
    sync_directory(target[: -len(sha256)])
    return existed


def _keep_odd(target: str) -> None:
    """What is no file gets a name beside `target`, which no listing tells: nobody takes away what somebody put there.

    Only a directory has to leave `target` for that, since nothing can be moved over one.
    """
    path = Path(target)
    aside = path.with_name(f".{path.name}.odd-{uuid.uuid4().hex[:8]}")
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        os.rename(f"{target}/", aside)  # noqa: PTH104 - the slash: never a file that another has just put there
    elif not stat.S_ISREG(mode):
        with suppress(OSError):  # where the system links no such thing it is replaced all the same
            os.link(target, aside, follow_symlinks=False)
