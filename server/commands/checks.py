"""`packhorse fsck`, `receipt`: what the store holds is looked at, and told. Mends nothing in it."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from server import config
from server.commands.repairing import tell_remedies
from server.commands.terminal import ConfigOption, out, with_store
from server.errors import AppError
from server.health import Orphans, count_orphans
from server.integrity.checking import Asks, Checker
from server.keeping.senders import SEND_AGAIN_OR_PUT_BACK, whose
from server.sessions import receipts
from server.tus.locks import MachineLocks
from storage import figures, tokens
from storage.store import Store

receipt_app = typer.Typer(no_args_is_help=True, help="Receipts.")


def fsck(
    config_file: ConfigOption = None,
    repair: Annotated[bool, typer.Option("--repair", help="Do what is safe, and audit it; else only tell.")] = False,
) -> None:
    """Count the four orphans, tell the remedies; exit 1 unless all are zero. Blobs gone or cut raise an alarm."""
    settings = config.load(config_file)

    async def work(store: Store) -> tuple[Orphans, list[str], int]:
        orphans = await count_orphans(store)
        checker = Checker(store, MachineLocks(settings.data_path))
        told = []
        for fault, keys in (("is gone", orphans.blobs_gone), ("has another size", orphans.blobs_cut)):
            for key in keys:
                await checker.check(key.site, key.name, Asks.FSCK)
                named = await store.read(partial(whose, site=key.site, sha256=key.name))
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
    raise typer.Exit(0 if found.is_sound and not left else 1)


@receipt_app.command("verify")
def receipt_verify(
    receipt: Annotated[Path, typer.Argument(help="A file with the receipt, or - for stdin.")],
    config_file: ConfigOption = None,
) -> None:
    """Tell whether a receipt is genuine, and what it says."""
    settings = config.load(config_file)
    out.print_json(data=receipts.verify(text_of(receipt), with_store(settings, published_keys)))


def text_of(path: Path) -> str:
    """What a file holds, or stdin where it is -. AppError."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AppError(f"{path}: this is no receipt, for it is no text") from error


async def published_keys(store: Store) -> list[dict[str, Any]]:
    """Every public key that ever signed here."""
    return await store.read(tokens.keys)
