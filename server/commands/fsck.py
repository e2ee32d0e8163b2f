"""`packhorse fsck`: what the store holds is looked at, and told; what is safe is done with `--repair`."""

from functools import partial
from typing import Annotated

import typer

from server import config
from server.commands.guarding import tell_triggers
from server.commands.repairing import tell_remedies
from server.commands.terminal import ConfigOption, out, with_store
from server.health import Orphans, count_orphans
from server.integrity.checking import Asks, Checker
from server.keeping.findings import SEND_AGAIN_OR_PUT_BACK
from server.tus.locks import MachineLocks
from storage import figures
from storage.integrity import owners
from storage.store import Store


def fsck(
    config_file: ConfigOption = None,
    repair: Annotated[bool, typer.Option("--repair", help="Do what is safe, and audit it; else only tell.")] = False,
) -> None:
    """Count the four orphans, tell the remedies; exit 1 unless all are zero. Blobs gone or cut raise an alarm."""
    settings = config.load(config_file)
    is_guarded = tell_triggers(settings, mend=repair)

    async def work(store: Store) -> tuple[Orphans, list[str], int]:
        orphans = await count_orphans(store)
        checker = Checker(store, MachineLocks(settings.data_path))
        told = []
        for fault, keys in (("is gone", orphans.blobs_gone), ("has another size", orphans.blobs_cut)):
            for key in keys:
                await checker.check(key.site, key.name, Asks.FSCK)
                named = await store.read(partial(owners, site=key.site, sha256=key.name))
                told.append(f"  blob {key.name} of site {key.site} {fault} ({named}): "
                            f"the alarm is raised; {SEND_AGAIN_OR_PUT_BACK}")
        return orphans, told, await store.read(figures.alarms)

    found, without_bytes, alarms = with_store(settings, work)
    out.print(f"blobs without owner: {found.blobs_without_owner}")
    out.print(f"stored sessions without image or blob: {found.synced_without_image + len(without_bytes)}")
    for line in without_bytes:
        out.print(line)
    out.print(f"DICOM images without series: {found.images_without_series}")
    out.print(f"SOP Instance UIDs with two live images: {found.sop_instances_twice}")
    out.print(f"(files that no row names yet: {found.files_without_row})")
    if alarms:
        out.print(f"(integrity alarms open: {alarms}; packhorse doctor names them)")
    left = with_store(settings, lambda store: tell_remedies(store, mend=repair))
    if repair:
        found = with_store(settings, count_orphans)
    raise typer.Exit(0 if found.is_sound and not left and is_guarded else 1)
