"""What every command shares: the two consoles, the option of the configuration, and the store beside a server."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from server.auditing.head import AuditHead
from server.config import check_places
from server.errors import AppError, ConfigurationError
from server.privacy import keep_private
from server.sessions.receipts import open_signer
from server.settings import Settings
from storage import audit, backends
from storage.records import AuditPosition
from storage.store import Store

T = TypeVar("T")
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
out = Console(soft_wrap=True, highlight=False, markup=False)
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file; else ./packhorse.toml.")]

ReasonOption = Annotated[str | None, typer.Option("--reason", help="Why, for the audit; required.")]
REASON_LENGTH = 500
"""As over the API (contract §4)."""


def reason_of(given: str | None) -> str:
    """Why an operator acts: every such command says it, and it is audited (contract §4). ConfigurationError."""
    why = (given or "").strip()
    if not why:
        raise ConfigurationError("--reason: is required: say why, for the audit")
    if len(why) > REASON_LENGTH or not why.isprintable():
        raise ConfigurationError(f"--reason: must be one line of at most {REASON_LENGTH} characters")
    return why


def make_private(settings: Settings) -> None:
    """Keep the data from other users of the machine; say where that is not in our power."""
    for path in keep_private(settings):
        errors.print(f"warning: others on this machine may read {path}, which belongs to another user")


def with_store(settings: Settings, work: Callable[[Store], Coroutine[Any, Any, T]], *, makes: bool = False) -> T:
    """Run `work` on the store beside a running server.

    AppError where there is no database; with `makes` one is made then, and its path told on stderr.
    """
    path = settings.database_path
    if not makes and not path.exists():
        raise _missing(path, "is not there")
    check_places(settings)
    is_new = backends.revisions(path)[0] is None
    if is_new and not makes:
        raise _missing(path, "holds nothing of Packhorse")
    make_private(settings)
    backends.migrate(path)
    if is_new:
        errors.print(f"a new database was made: {path}")

    async def run() -> T:
        store = backends.open_store(settings.database_path, settings.blobs_path)
        try:
            before = await store.read(audit.newest)
            result = await work(store)
            await _follow(settings, store, before)
            return result
        finally:
            await store.close()

    with backends.naming(path):
        return asyncio.run(run())


async def _follow(settings: Settings, store: Store, before: AuditPosition) -> None:
    """The signed head goes along with the rows that a command wrote while no server ran."""
    if settings.audit_head_path.exists() and await store.read(audit.newest) != before:
        signer = open_signer(settings.data_path / "keys")
        await AuditHead(store, settings.audit_head_path, signer).follow(before)


def _missing(path: Path, what: str) -> AppError:
    return AppError(
        f"the database {path} {what}: name the server's configuration with --config, or run this in its folder")
