"""What every command shares: the two consoles, the option of the configuration, and the store beside a server."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from server.settings import Settings
from storage import backends
from storage.store import Store

T = TypeVar("T")
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
out = Console(soft_wrap=True, highlight=False, markup=False)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file; else ./packhorse.toml.")]


def with_store(settings: Settings, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Run `work` on the store beside a running server; the database is made when there is none."""
    backends.migrate(settings.database_path)

    async def run() -> T:
        store = backends.open_store(settings.database_path, settings.blobs_path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())
