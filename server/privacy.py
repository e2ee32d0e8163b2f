"""Keeps what is stored from the other users of the machine. Never touches what is not Packhorse's own.

Facts: the umask of the process covers what is made from now on, in this process and in those that it starts; what an
earlier version made is narrowed here. SQLite gives its log the mode of the database. A folder that holds strangers'
files too, as /var/lib would, stays as it is: what lies in it of ours is narrowed one by one.
"""

import os
from contextlib import suppress
from pathlib import Path

from server.settings import AUDIT_HEAD, Settings

OTHERS = 0o077
"""The bits of everybody but the owner."""
FOLDERS = frozenset({"keys", "metrics", "spool"})
FILES = frozenset({"admin-token", ".admin-token", "serve.lock", "locks.secret", AUDIT_HEAD, f"{AUDIT_HEAD}.lock"})


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
    if all(path in ours or path.name.startswith(".locks.secret.") for path in folder.iterdir()):
        ours.add(folder)
    return [path for path in sorted(ours) if not _narrowed(path)]


def _is_ours(path: Path, settings: Settings) -> bool:
    database = settings.database_path.name
    return path.name in FOLDERS | FILES or path.name == database or path.name.startswith((f"{database}-",
                                                                                          f"{database}."))


def _narrowed(path: Path) -> bool:
    with suppress(FileNotFoundError):  # SQLite's log goes when its last user goes
        mode = path.stat().st_mode
        if mode & OTHERS:
            try:
                path.chmod(mode & 0o7777 & ~OTHERS)
            except OSError:
                return False
    return True
