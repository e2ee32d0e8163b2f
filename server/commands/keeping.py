"""`packhorse backup`, `restore`, `rebuild-index`, and what `fsck --repair` does: for people, with how far it is."""

import time
from pathlib import Path
from typing import Annotated

import typer

from server import config
from server.commands.terminal import ConfigOption, errors, out, with_store
from server.errors import ConfigurationError
from server.folder_lock import sole_server
from server.integrity.checking import Asks, Checker
from server.keeping.backup import Alarm, Backup, Made
from server.keeping.blobs import Carried
from server.keeping.findings import SEND_AGAIN
from server.keeping.manifest import KEYS
from server.keeping.rebuild import DAMAGED, Rebuilt
from server.keeping.restore import finish
from server.keeping.restore import restore as bring_back
from server.lean import loading
from server.tus.locks import MachineLocks
from server.version import VERSION
from storage import audit
from storage.store import Store

TELL_S = 5.0
SHOWN = 20


class _Progress:
    """Tells how far it is, now and then, on stderr."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def carried(self, sofar: Carried) -> None:
        """So many blobs are there."""
        self._tell(f"{sofar.blobs} blobs, {sofar.bytes} bytes")

    def rebuilt(self, sofar: Rebuilt) -> None:
        """So many blobs were looked at."""
        self._tell(f"{sofar.seen} blobs, {sofar.images} images")

    def _tell(self, text: str) -> None:
        if time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            errors.print(f"… {text}")


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder, or one that holds a backup of before.")],
    config_file: ConfigOption = None,
    link: Annotated[bool, typer.Option("--link", help="Hard links instead of copies, on the same disk.")] = False,
) -> None:
    """Back up database, blobs and keys, also while the server runs."""
    settings = config.load(config_file)

    async def work(store: Store) -> Made:
        checker = Checker(store, MachineLocks(settings.data_path))

        async def check(site: str, sha256: str) -> bool:
            return await checker.check(site, sha256, Asks.BACKUP)

        keeper = Backup(store, check, settings.database_path, settings.blobs_path, settings.data_path / KEYS,
                        settings.audit_head_path, VERSION)
        return await keeper.make(target, _Progress().carried, link=link)

    done = with_store(settings, work)
    made = done.manifest
    out.print(f"{target}: the state of {made.made_at}, {made.blobs} blobs, {made.blob_bytes} bytes, "
              f"{len(made.keys)} keys, {made.audit_seq} audit rows")
    _tell([*map(_alarm, done.alarms), *(
        f"the blob {name} could not be copied, though its bytes are right: make the backup again"
        for name in set(made.lacking) - {one.name for one in done.alarms})])


def _alarm(one: Alarm) -> str:
    what = f"the blob {one.name} is damaged or gone here ({one.damage}; {one.whose})"
    if one.copy is None:
        return f"{what}, and not in the backup. The alarm is raised: {SEND_AGAIN}"
    return (f"{what}. The alarm is raised: {SEND_AGAIN}, or put it back from {one.copy}, "
            "then run packhorse scrub")


def restore(
    source: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    config_file: ConfigOption = None,
) -> None:
    """Restore a backup into an empty data folder."""
    settings = config.load(config_file)
    config.check_places(settings)
    with sole_server(settings.data_path):
        made, carried = bring_back(
            source, settings.database_path, settings.blobs_path, settings.audit_head_path, _Progress().carried)
        entry = finish(settings.database_path, made, carried)

        async def note(store: Store) -> None:
            await store.write(lambda tx: audit.append(tx, entry))

        with_store(settings, note)
    out.print(f"{settings.data_path}: the state of {made.made_at}, {carried.blobs} blobs, {carried.bytes} bytes")
    out.print("now run: packhorse fsck, packhorse audit verify; then start the server")
    _tell([f"the blob {name} is not in the backup, or damaged there: run packhorse fsck --repair"
           for name in carried.not_there])


def _tell(faults: list[str]) -> None:
    """Exit 1 where there are any."""
    for fault in faults[:SHOWN]:
        errors.print(fault)
    if len(faults) > SHOWN:
        errors.print(f"and {len(faults) - SHOWN} more")
    if faults:
        raise typer.Exit(1)


def rebuild_index(config_file: ConfigOption = None) -> None:
    """Make studies, series and images anew from the blobs, in a fresh database: where no backup is left."""
    settings = config.load(config_file)
    if not settings.blobs_path.is_dir():
        raise ConfigurationError(f"storage.blobs: there are no blobs in {settings.blobs_path}")
    if settings.audit_head_path.exists() and not settings.database_path.exists():
        errors.print(f"{settings.audit_head_path} tells of the history that was lost: keep it, and move it away before "
                     "the server starts")
    with sole_server(settings.data_path):
        done = with_store(settings, _rebuild, makes=True)
    out.print(f"{done.seen} blobs: {done.images} images made, {done.known} known before")
    for outcome, count in sorted(done.others.items()):
        out.print(f"{outcome}: {count}")
    raise typer.Exit(1 if DAMAGED in done.others else 0)


async def _rebuild(store: Store) -> Rebuilt:
    with loading():  # no other command needs them
        from server.pacs.render import Renderer  # noqa: PLC0415
        from server.services import rebuilder_of  # noqa: PLC0415
    renderer, progress = Renderer(), _Progress()
    rebuilder = rebuilder_of(store, renderer)
    try:
        return await rebuilder.run(progress.rebuilt)
    finally:
        await renderer.close()
