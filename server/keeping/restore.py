"""Brings a backup back into an empty data folder. Takes nothing away from the backup, and overwrites nothing.

Facts: the database gets its name last, so a folder in which the restoring was cut short holds none; a mark says so
meanwhile, no server starts there, and the same backup may be brought on from where it broke off.
"""

import hashlib
from pathlib import Path

from server.errors import AppError
from server.keeping import manifest
from server.keeping.blobs import Carried, Told, carry
from server.keeping.manifest import BLOBS, KEYS, Manifest
from storage import inventory
from storage.backends import reading
from storage.blobs.copying import copy_file
from storage.blobs.medium import make_directory, sync_directory
from storage.records import DEFAULT_SITE, AuditEntry, Sha256

ACTOR = "command line"
MARK = ".restoring"
"""In the data folder while it is not whole: the digest of the manifest."""
NOT_OURS = frozenset({"serve.lock", "tls"})
"""What may lie in the data folder before: no backup holds it, so nothing is written over."""


def restore(source: Path, database: Path, blobs: Path, head: Path, told: Told) -> tuple[Manifest, Carried]:
    """Restore the backup in `source` to `database`, with the keys beside it, `blobs` and the audit's `head`.

    `finish` comes after. AppError: no backup, damaged, or something is there already.
    """
    made = manifest.read(source)
    manifest.check(source, made)
    mark = database.parent / MARK
    _begin(mark, hashlib.sha256((source / manifest.NAME).read_bytes()).hexdigest(), database, blobs, head)
    make_directory(database.parent / KEYS)
    for key in made.keys:
        copy_file(source / key.path, database.parent / key.path, Sha256(key.sha256))
    sync_directory(database.parent / KEYS)
    if made.head is not None:
        make_directory(head.parent)
        copy_file(source / made.head.path, head, Sha256(made.head.sha256))
        sync_directory(head.parent)
    with reading(source / made.database.path) as tx:
        carried = carry(inventory.sealed_blobs(tx), source / BLOBS, blobs, told)
    copy_file(source / made.database.path, database, Sha256(made.database.sha256))
    sync_directory(database.parent)
    return made, carried


def _begin(mark: Path, digest: str, database: Path, blobs: Path, head: Path) -> None:
    if mark.exists():
        if mark.read_text() != digest:
            raise AppError(f"another backup was being restored to {mark.parent}: empty it first")
        database.unlink(missing_ok=True)  # it was ours, and nobody has worked on it
        return
    make_directory(mark.parent)
    for folder in (mark.parent, blobs):
        strange = sorted(one.name for one in folder.iterdir() if folder != mark.parent or one.name not in NOT_OURS) \
            if folder.is_dir() else []
        if strange:
            raise AppError(f"{folder} is not empty: it holds {strange[0]}. Restore into an empty folder")
    if head.exists():
        raise AppError(f"{head} is there already: it tells of another history, so keep it, elsewhere")
    mark.touch(mode=0o600)
    mark.write_text(digest)
    sync_directory(mark.parent)


def finish(database: Path, made: Manifest, carried: Carried) -> AuditEntry:
    """The folder is whole: a server may start there. Gives what the audit is to tell of it."""
    (database.parent / MARK).unlink()
    return AuditEntry(
        DEFAULT_SITE, "backup.restored", ACTOR, outcome="incomplete" if carried.not_there else "ok",
        detail={"made_at": made.made_at, "audit_seq": made.audit_seq, "blobs": carried.blobs,
                "lacking": len(carried.not_there), "database_sha256": made.database.sha256})
