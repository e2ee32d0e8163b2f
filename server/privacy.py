"""Keeps what is stored from the other users of the machine. Never touches what is not Packhorse's own.

Facts: the umask of the process covers what is made from now on, in this process and in those that it starts; what an
earlier version made is narrowed here. SQLite gives its log the mode of the database. A folder that holds strangers'
files too, as /var/lib would, stays as it is: what lies in it of ours is narrowed one by one.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from server.settings import AUDIT_HEAD, Settings

OTHERS = 0o077
"""The bits of everybody but the owner."""
SECRET_BYTES = 32
FOLDERS = frozenset({"keys", "metrics", "spool", "tls"})
FILES = frozenset({"admin-token", ".admin-token.partial", "serve.lock", "locks.secret", "urls.secret", AUDIT_HEAD,
                   f".{AUDIT_HEAD}.partial"})


def own_alone() -> None:
    """What this process and its children make from now on is for their user alone."""
    os.umask(OTHERS)


def keep_private(settings: Settings) -> list[Path]:
    """Make the data folder, 0700, or narrow what is there of ours. Gives what is another user's, and stays open.

    OSError where the folder cannot be made.
    """
    folder = settings.data_path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = {path for path in folder.iterdir() if _is_ours(path, settings)} | {settings.blobs_path}
    if all(path in ours or path.name.startswith((".locks.secret.", ".urls.secret.")) for path in folder.iterdir()):
        ours.add(folder)
    return [path for path in sorted(ours) if not _narrowed(path)]


def _is_ours(path: Path, settings: Settings) -> bool:
    database = settings.database_path.name
    return path.name in FOLDERS | FILES or path.name == database or path.name.startswith(
        (f"{database}-", f"{database}.", f"{AUDIT_HEAD}."))


def _narrowed(path: Path) -> bool:
    with suppress(FileNotFoundError):  # SQLite's log goes when its last user goes
        mode = path.stat().st_mode
        if mode & OTHERS:
            try:
                path.chmod(mode & 0o7777 & ~OTHERS)
            except OSError:
                return False
    return True


def secret_at(path: Path) -> bytes:
    """What `path` holds, made at first, whole and for its owner only, whoever else makes it at the same time."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        path.hardlink_to(partial)
    partial.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path.read_bytes()
