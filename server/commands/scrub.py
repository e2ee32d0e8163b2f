"""`packhorse scrub`: every stored file is read again, or open alarms are listed, beside a server. Mends nothing."""

from typing import Annotated

import typer
from sqlalchemy import Connection

from server import config
from server.commands.terminal import ConfigOption, out, with_store
from server.integrity.checking import Checker
from server.integrity.scrub import MIB, Scrubbed, Scrubber
from server.tus.locks import MachineLocks
from storage import integrity
from storage.records import timestamp
from storage.store import Store


def scrub(
    config_file: ConfigOption = None,
    mib_per_s: Annotated[float | None, typer.Option(
        min=0.001, help="How fast at most; else integrity.scrub_mib_per_s.")] = None,
    lists: Annotated[bool, typer.Option("--list", help="Read nothing: only list the open alarms.")] = False,
) -> None:
    """Read every blob again and compare its SHA-256; exit 1 when any is damaged. May be stopped, and goes on then."""
    settings = config.load(config_file)
    if lists:
        known = with_store(settings, lambda store: store.read(_alarms))
        for alarm in known:
            out.print(alarm)
        out.print(f"{len(known)} open alarms")
        raise typer.Exit(1 if known else 0)

    async def work(store: Store) -> tuple[Scrubbed, list[str]]:
        rate = mib_per_s if mib_per_s is not None else settings.integrity.scrub_mib_per_s
        scrubber = Scrubber(store, Checker(store, MachineLocks(settings.data_path)), mib_per_s=rate, every_days=0)
        return await scrubber.scrub(timestamp()), await store.read(_alarms)

    done, alarms = with_store(settings, work)
    for alarm in alarms:
        out.print(alarm)
    out.print(f"{done.blobs} blobs read, {done.size_bytes / MIB:.1f} MiB, {done.damaged} damaged")
    raise typer.Exit(1 if alarms else 0)


def _alarms(tx: Connection) -> list[str]:
    """A line for each blob that is doubted, whoever found that."""
    return [f"blob {one.sha256} of site {one.site}: {one.alarm} ({integrity.owners(tx, one.site, one.sha256)})"
            for one in integrity.alarms(tx)]
