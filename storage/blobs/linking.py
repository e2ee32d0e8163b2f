"""Gives a staged file its sealed name beside its own, durably, and heals what lies there. Computes no address."""

import os
from contextlib import suppress
from pathlib import Path

from storage.blobs.digests import digest_of
from storage.blobs.medium import sync_directory
from storage.records import Sha256


def link(source: str, target: str, sha256: Sha256) -> bool:
    """Link `source` to `target`, the address of its bytes; whether the same bytes were there already."""
    existed = False
    try:
        os.link(source, target)
    except FileExistsError:
        with suppress(OSError):  # what cannot be read is damaged
            existed = digest_of(target, from_medium=True)[0] == sha256
        if not existed:
            # a second link, moved over the damaged bytes that lie there: never a moment without a file
            replacement = Path(target).with_name(f".{Path(source).name}.link")
            replacement.unlink(missing_ok=True)
            os.link(source, replacement)
            replacement.replace(target)
            replacement.unlink(missing_ok=True)  # rename() keeps both names when they are one file
    sync_directory(target[: -len(sha256)])
    return existed
