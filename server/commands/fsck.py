"""`packhorse fsck`: what the store holds is looked at, and told; what is safe is done with `--repair`."""

from typing import Annotated

import typer

from server import config
from server.commands.guarding import tell_triggers
from server.commands.repairing import tell_remedies
from server.commands.terminal import ConfigOption, out, with_store
from server.health import Orphans, count_orphans
from server.integrity.checking import Asks, Checker
from server.tus.locks import MachineLocks
from storage.store import Store


def fsck(
    config_file: ConfigOption = None,
    repair: Annotated[bool, typer.Option("--repair", help="Do what is safe, and audit it; else only tell.")] = False,
) -> None:
    """Count the four orphans, tell the remedies; exit 1 unless all are zero. Blobs gone or cut raise an alarm."""
    settings = config.load(config_file)
    is_guarded = tell_triggers(settings, mend=repair)

    async def work(store: Store) -> Orphans:
        orphans = await count_orphans(store)
        checker = Checker(store, MachineLocks(settings.data_path))
        for key in (*orphans.blobs_gone, *orphans.blobs_cut):
            await checker.check(key.site, key.name, Asks.FSCK)
        return orphans

    found = with_store(settings, work)
    without_blob = len(found.blobs_gone) + len(found.blobs_cut)
    out.print(f"blobs without owner: {found.blobs_without_owner}")
    out.print(f"stored sessions without image or blob: {found.synced_without_image + without_blob}")
    for fault, keys in (("is gone", found.blobs_gone), ("has another size", found.blobs_cut)):
        for key in keys:
            out.print(f"  blob {key.name} of site {key.site} {fault}")
    out.print(f"DICOM images without series: {found.images_without_series}")
    out.print(f"SOP Instance UIDs with two live images: {found.sop_instances_twice}")
    out.print(f"(files that no row names yet: {found.files_without_row})")
    left = with_store(settings, lambda store: tell_remedies(store, mend=repair))
    if repair:
        found = with_store(settings, count_orphans)
    raise typer.Exit(0 if found.is_sound and not left and is_guarded else 1)
