"""Files of our own beside the store: written whole or not at all, on the medium, for the server's user alone."""

import os
from pathlib import Path

from storage.blobs.medium import sync_directory, sync_file


def replace_durably(path: Path, content: bytes) -> None:
    """Write aside, flush, rename, flush the folder: after a crash the file is the old one or the new one, mode 0600.

    Where root does so in another's folder, the file is that user's: the server must be able to read it.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # what a crash left
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if os.geteuid() == 0:
            folder = path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
        file.write(content)
        file.flush()
        sync_file(descriptor)
    partial.replace(path)
    sync_directory(path.parent)
