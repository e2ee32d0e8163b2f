"""Makes a backup beside a running server: first the database, at one moment, then the blobs that it names, then keys.

Facts: sealed bytes get their row after they lie at their address, so what the database of one moment names was there
then; and clean-up, the only one that takes sealed bytes away, pauses meanwhile. The pause is pushed on while copying
goes on, and ends by itself. The manifest comes last and switches from the backup before to this one in one rename.
Bytes that are still being staged belong to nobody yet, and are not copied: their senders go on from 0.
What seems damaged or gone here is read once more by who raises the alarm: once that is known, nobody may be told that
the local copy can go.
"""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from server.errors import AppError
from server.keeping import manifest
from server.keeping.blobs import Carried, Told, carry
from server.keeping.manifest import BLOBS, FORMAT, KEYS, Manifest, NoBackup
from storage import audit, integrity, inventory, pauses
from storage.backends import copy_database, reading, revisions
from storage.blobs.base import sealed
from storage.blobs.copying import copy_file, size_of
from storage.blobs.layout import Layout
from storage.blobs.medium import make_directory, sync_directory
from storage.inventory import KeptBlob
from storage.records import DEFAULT_SITE, AuditEntry, BlobRecord, timestamp
from storage.store import Store

PUSHED_S = 120.0
ACTOR = "command line"
PREFIX, HEAD_PREFIX = "database-", "audit-head-"
Check = Callable[[str, str], Awaitable[bool]]
"""(site, SHA-256) → whether the medium gives the right bytes; where it does not, the integrity alarm is raised."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A blob that the backup names, whose bytes here are known to be damaged; `whose` in words.

    `copy`: where the backup has it, None where it has not.
    """

    name: str
    damage: str
    whose: str
    copy: Path | None


@dataclass(frozen=True, slots=True)
class Made:
    """A backup, and the alarms that are open on what it names."""

    manifest: Manifest
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was copied before the keys and the manifest."""

    made_at: str
    database: Path
    head: manifest.File | None
    audit_seq: int
    audit_hash: str | None
    carried: Carried


class Backup:
    """Backs one data folder up; `version` is the program's."""

    def __init__(
        self, store: Store, check: Check, database: Path, blobs: Path, keys: Path, head: Path, version: str
    ) -> None:
        self._store = store
        self._check = check
        self._database = database
        self._blobs = blobs
        self._keys = keys
        self._head = head
        self._version = version

    async def make(self, target: Path, told: Told, *, link: bool = False) -> Made:
        """A backup in `target`: a new folder, or one with an earlier backup, of which only what is new is copied.

        AppError where the folder holds something else, or another backup is being made in it.
        """
        _check_target(target, self._blobs)
        make_directory(target)
        with _alone(target):
            await self._store.write(pauses.pause_cleanup)
            try:
                async with asyncio.TaskGroup() as group:
                    pushing = group.create_task(self._push_on())
                    try:
                        made = await self._made(target, told, link)
                    finally:
                        pushing.cancel()
            except BaseExceptionGroup as failures:  # the terminal tells a sentence of one
                failure = failures.exceptions[0]
                if isinstance(failure, OSError):
                    raise AppError(f"the backup in {target} was not made: {failure.strerror}") from failure
                raise failure from None
            outcome = "incomplete" if made.lacking else "ok"
            alarms = await self._alarms(target, made.made_at)
            entry = AuditEntry(DEFAULT_SITE, "backup.made", ACTOR, outcome=outcome, detail={
                "made_at": made.made_at, "audit_seq": made.audit_seq, "blobs": made.blobs, "bytes": made.blob_bytes,
                "lacking": len(made.lacking), "alarms": len(alarms), "database_sha256": made.database.sha256})
            await self._store.write(lambda tx: audit.append(tx, entry))
        return Made(made, alarms)

    async def _push_on(self) -> None:
        while True:
            await asyncio.sleep(PUSHED_S)
            await self._store.write(pauses.pause_cleanup)

    async def _made(self, target: Path, told: Told, link: bool) -> Manifest:
        taken = await asyncio.to_thread(self._take, target, told, link)
        doubted = [*taken.carried.lacking, *taken.carried.doubted]
        good = {one for one in doubted if await self._check(one.site, one.sha256)}
        again = [one for one in taken.carried.lacking if one in good]  # put back meanwhile, or misread
        return await asyncio.to_thread(self._close, target, taken, again, told, link)

    def _take(self, target: Path, told: Told, link: bool) -> _Taken:
        made_at = timestamp()
        database = target / f"{PREFIX}{made_at.translate(dict.fromkeys(map(ord, '-:.')))}.db"
        head = self._copy_head(target)  # before the database: the row that it names must be there
        copy_database(self._database, database)
        with reading(database) as tx:
            audit_seq, audit_hash = inventory.audit_head(tx)
            carried: Carried = carry(inventory.sealed_blobs(tx), self._blobs, target / BLOBS, told, link=link)
        return _Taken(made_at, database, head, audit_seq, audit_hash, carried)

    def _close(self, target: Path, taken: _Taken, again: list[KeptBlob], told: Told, link: bool) -> Manifest:
        """Carry `again` what could not be carried, and keys; then the manifest makes a backup of it all."""
        carried = carry(again, self._blobs, target / BLOBS, told, link=link)
        brought = set(again) - set(carried.lacking)
        lacking = (*(one.name for one in taken.carried.lacking if one not in brought), *taken.carried.strange)
        keys = self._copy_keys(target)
        revision, _ = revisions(taken.database)
        made = Manifest(
            FORMAT, self._version, taken.made_at, revision or "", taken.audit_seq, taken.audit_hash,
            manifest.file_of(target, taken.database), keys, taken.head, taken.carried.blobs + carried.blobs,
            taken.carried.bytes + carried.bytes, lacking)
        made.write(target)
        ours = {made.database.path} | ({made.head.path} if made.head else set())
        for older in [*target.glob(f"{PREFIX}*"), *target.glob(f"{HEAD_PREFIX}*")]:
            if older.name not in ours:
                older.unlink()
        return made

    async def _alarms(self, target: Path, made_at: str) -> tuple[Alarm, ...]:
        """The alarms that are open on what was sealed before the backup was made."""

        def unit(tx: Connection) -> list[tuple[BlobRecord, str]]:
            return [(one, str(integrity.owners(tx, one.site, one.sha256)))
                    for one in integrity.alarms(tx) if one.sealed_at <= made_at]

        found = await self._store.read(unit)
        return tuple(Alarm(f"{one.site}/{one.sha256}", one.alarm or "", words, self._copy_of(one, target))
                     for one, words in found)

    def _copy_of(self, one: BlobRecord, target: Path) -> Path | None:
        """Where the backup has other bytes than the damaged ones: a hard link to these is no copy."""
        key = sealed(one.site, one.sha256)
        copy, here = Path(Layout(target / BLOBS).name(key)), Path(Layout(self._blobs).name(key))
        if size_of(copy) != one.size_bytes or (here.exists() and here.samefile(copy)):
            return None
        return copy

    def _copy_head(self, target: Path) -> manifest.File | None:
        """The head under a name of its own, for the one of the backup before is not to be lost before this one is."""
        if not self._head.is_file():
            return None
        text = self._head.read_bytes()
        path = target / f"{HEAD_PREFIX}{hashlib.sha256(text).hexdigest()[:16]}.jws"
        copy_file(self._head, path)
        return manifest.file_of(target, path)

    def _copy_keys(self, target: Path) -> tuple[manifest.File, ...]:
        make_directory(target / KEYS)
        kept = []
        for path in sorted(one for one in self._keys.glob("*.json") if one.is_file()):
            copy_file(path, target / KEYS / path.name)
            kept.append(manifest.file_of(target, target / KEYS / path.name))
        sync_directory(target / KEYS)
        return tuple(kept)


def _check_target(target: Path, blobs: Path) -> None:
    if target.exists() and not target.is_dir():
        raise AppError(f"{target} is a file, where a folder is needed")
    if blobs.resolve() in (target.resolve(), *target.resolve().parents):
        raise AppError(f"{target} lies among the blobs that are to be copied: choose a folder elsewhere")
    if target.exists():
        ours = {manifest.NAME, f".{manifest.NAME}.partial", KEYS, BLOBS, "lost+found"}
        strange = sorted(one.name for one in target.iterdir()
                         if one.name not in ours and not one.name.startswith((PREFIX, HEAD_PREFIX)))
        if strange:
            raise NoBackup(f"{target} holds {strange[0]}, which is of no backup: choose an empty folder, or one that "
                           "holds a backup already")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One backup at a time in a folder; the lock goes with its process."""
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AppError(f"another backup is being made in {target}") from None
        yield
    finally:
        os.close(descriptor)
