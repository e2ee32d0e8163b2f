"""The commands. Each loads the configuration, does one thing, and says clearly what went wrong.

Exit status: 0 done, 1 it failed, 2 the configuration is unusable.
"""

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import aiohttp
import structlog
import typer
import uvloop
from rich.console import Console
from sqlalchemy import Connection

from server import config
from server.app import VERSION
from server.auth import Role, new_token
from server.errors import AppError, ConfigurationError
from server.health import count_orphans
from server.identifiers import parse_id
from server.logs import log_to_stderr
from server.processes import serve_in_processes
from server.sessions import receipts
from server.settings import Settings
from server.supervisor import ALL, Kind
from server.supervisor import serve as serve_forever
from server.webhooks.service import Webhook, post
from storage import audit, backends, tokens
from storage.errors import StorageError
from storage.records import DEFAULT_SITE, AuditEntry, now, timestamp
from storage.store import Store
from storage.triggers import missing_triggers

T = TypeVar("T")
log = structlog.get_logger()
app = typer.Typer(name="packhorse", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Takes medical images over bad lines and says when the local copy may be deleted.")
config_app = typer.Typer(no_args_is_help=True, help="The configuration.")
token_app = typer.Typer(no_args_is_help=True, help="Tokens.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit chain.")
webhook_app = typer.Typer(no_args_is_help=True, help="Webhooks.")
receipt_app = typer.Typer(no_args_is_help=True, help="Receipts.")
for name, group in (("config", config_app), ("token", token_app), ("audit", audit_app), ("receipt", receipt_app),
                    ("webhook", webhook_app)):
    app.add_typer(group, name=name)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
out = Console(soft_wrap=True, highlight=False, markup=False)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file; else ./packhorse.toml.")]


def main() -> None:
    """The console script."""
    try:
        app()
    except ConfigurationError as error:
        errors.print(f"configuration: {error.detail}")
        sys.exit(2)
    except (AppError, StorageError) as error:
        errors.print(f"packhorse: {error}")
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"packhorse {VERSION}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def serve(
    config_file: ConfigOption = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="HTTP processes that share the port.")] = 1,
    only: Annotated[str | None, typer.Option(help="Do only these: http,dicom,jobs.")] = None,
) -> None:
    """Serve in the foreground until SIGTERM."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it can be heeded
    settings = config.load(config_file)
    log_to_stderr()

    for warning in config.warnings_of(settings):
        log.warning("configuration.warning", detail=warning)

    def reread() -> Settings:
        return config.load(config_file)

    kinds = _kinds(only)
    if workers == 1 or Kind.HTTP not in kinds:
        uvloop.run(serve_forever(settings, reread, kinds))
    else:
        uvloop.run(serve_in_processes(settings, reread, workers, kinds))


def _kinds(only: str | None) -> frozenset[Kind]:
    if only is None:
        return ALL
    try:
        return frozenset(Kind(word.strip()) for word in only.split(","))
    except ValueError as error:
        raise ConfigurationError("--only: a list of http, dicom, jobs") from error


@app.command()
def migrate(
    config_file: ConfigOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only tell whether migrations are pending.")] = False,
) -> None:
    """Bring the database to the newest revision, after a copy."""
    settings = config.load(config_file)
    present, newest = backends.revisions(settings.database_path)
    if check:
        out.print(f"database {present or 'none'}, newest {newest}")
        raise typer.Exit(0 if present == newest else 1)
    copy = backends.migrate(settings.database_path)
    out.print(f"the database is at {newest}" + (f"; the copy from before is {copy}" if copy else ""))


@config_app.command("check")
def config_check(config_file: ConfigOption = None) -> None:
    """Tell whether the configuration is usable."""
    settings = config.load(config_file)
    for warning in config.warnings_of(settings):
        errors.print(f"warning: {warning}")
    out.print(f"usable: HTTP {settings.http.host}:{settings.http.port}, data in {settings.data_path}")


@token_app.command("create")
def token_create(
    role: Annotated[Role, typer.Option(help="What it may do.")],
    config_file: ConfigOption = None,
    site: Annotated[str, typer.Option(help="The one site that it belongs to.")] = DEFAULT_SITE,
    visit: Annotated[str | None, typer.Option(help="The one visit that it may touch.")] = None,
    expires: Annotated[str | None, typer.Option(help="For how long: 12h, 30d.")] = None,
    label: Annotated[str | None, typer.Option(help="What people call it.")] = None,
) -> None:
    """Make a token and print it, alone, once."""
    settings = config.load(config_file)
    expires_at = timestamp(now() + _duration(expires)) if expires else None
    for field, value in (("--site", site), ("--visit", visit)):
        if value is not None:
            parse_id(value, field)
    if set(site) <= {"."}:
        raise ConfigurationError("--site: must hold more than dots")
    text, record = new_token(role, site, visit, expires_at, label)

    def unit(tx: Connection) -> None:
        tokens.add(tx, record)
        audit.append(tx, AuditEntry(site, "token.created", "command line", f"token/{record.token_id}",
                                    detail={"role": role, "visit": visit, "expires_at": expires_at}))

    async def work(store: Store) -> None:
        await store.write(unit)

    _with_store(settings, work)
    print(text)  # noqa: T201 - alone on stdout, for scripts


@app.command()
def fsck(config_file: ConfigOption = None) -> None:
    """Count the four orphans; exit 1 unless all are zero."""
    found = _with_store(config.load(config_file), count_orphans)
    out.print(f"blobs without owner: {found.blobs_without_owner}")
    out.print(f"stored sessions without image or blob: {found.synced_without_image}")
    out.print(f"DICOM images without series: {found.images_without_series}")
    out.print(f"SOP Instance UIDs with two live images: {found.sop_instances_twice}")
    out.print(f"(files that no row names yet: {found.files_without_row})")
    raise typer.Exit(0 if found.is_sound else 1)


@audit_app.command("verify")
def audit_verify(
    config_file: ConfigOption = None,
    receipt: Annotated[list[Path] | None, typer.Option(help="Receipts whose place in the chain is compared.")] = None,
) -> None:
    """Walk the audit chain; name the first bad, missing or foreign row."""
    expected = {}
    settings = config.load(config_file)
    for path in receipt or []:
        claims = _verified(settings, path)
        expected[int(claims["audit_seq"])] = str(claims["audit_hash"])

    async def work(store: Store) -> tuple[audit.ChainReport, list[str]]:
        return await store.read(lambda tx: (audit.verify(tx, expected), missing_triggers(tx)))

    report, dropped = _with_store(settings, work)
    for trigger in dropped:
        errors.print(f"the trigger {trigger} is gone: somebody opened the lock")
    if report.fault:
        errors.print(f"after {report.rows} good rows: {report.fault}")
    else:
        out.print(f"{report.rows} rows, the chain is whole")
    raise typer.Exit(1 if report.fault or dropped else 0)


@receipt_app.command("verify")
def receipt_verify(
    receipt: Annotated[Path, typer.Argument(help="A file with the receipt, or - for stdin.")],
    config_file: ConfigOption = None,
) -> None:
    """Tell whether a receipt is genuine, and what it says."""
    out.print_json(data=_verified(config.load(config_file), receipt))


@webhook_app.command("test")
def webhook_test(
    url: Annotated[str, typer.Argument(help="The receiver; its secret is taken from the configuration.")],
    config_file: ConfigOption = None,
    secret: Annotated[str | None, typer.Option(help="The secret of a receiver that is not configured.")] = None,
) -> None:
    """Send a signed test event and tell the answer; exit 1 unless it is taken."""
    known = {one.url: one.secret for one in config.load(config_file).webhooks}
    key = secret if secret is not None else known.get(url)
    if key is None:
        raise ConfigurationError(f"webhooks: {url} is not configured: give --secret")
    body = json.dumps({"type": "webhook.test", "timestamp": timestamp(), "data": {}}).encode()

    async def work() -> int:
        async with aiohttp.ClientSession() as session:
            return await post(session, Webhook(url, key, ("*",)), f"evt_test_{uuid.uuid4().hex}", body)

    try:
        status = asyncio.run(work())
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise AppError(f"{url} does not answer: {error or type(error).__name__}") from error
    out.print(f"{url} answered {status}")
    raise typer.Exit(0 if 200 <= status < 300 else 1)


def _verified(settings: Settings, path: Path) -> dict[str, Any]:  # the claims of a receipt
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise AppError(f"{path} cannot be read") from error

    async def work(store: Store) -> list[dict[str, Any]]:
        return await store.read(tokens.keys)

    return receipts.verify(text, _with_store(settings, work))


def _with_store(settings: Settings, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Run `work` on the store beside a running server; the database is made when there is none."""
    backends.migrate(settings.database_path)

    async def run() -> T:
        store = backends.open_store(settings.database_path, settings.blobs_path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _duration(text: str) -> timedelta:
    units = {"m": "minutes", "h": "hours", "d": "days"}
    if len(text) < 2 or text[-1] not in units or not text[:-1].isdecimal():
        raise ConfigurationError("--expires: must be like 30m, 12h or 30d")
    return timedelta(**{units[text[-1]]: int(text[:-1])})

