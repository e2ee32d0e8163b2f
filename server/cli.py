"""The command: serving, migrating, the configuration; and the rim of every command, which says what went wrong.

Exit status: 0 done, 1 it failed, 2 the configuration is unusable. The other commands are in `server/commands`.
"""

import signal
import sqlite3
import sys
from typing import Annotated

import structlog
import typer
import uvloop
from sqlalchemy.exc import DBAPIError

from server import config
from server.commands import audit, checks, doctor, fsck, keeping, keys, scrub, tls, tokens, webhook
from server.commands.terminal import ConfigOption, errors, make_private, out
from server.errors import AppError, ConfigurationError
from server.kinds import ALL, Kind
from server.lean import loading
from server.logs import log_to_stderr
from server.privacy import own_alone
from server.settings import Settings
from server.tls import Certificate
from server.version import VERSION
from storage import backends
from storage.errors import StorageError

log = structlog.get_logger()
app = typer.Typer(name="packhorse", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Takes medical images over bad lines and says when the local copy may be deleted.")
config_app = typer.Typer(no_args_is_help=True, help="The configuration.")
for name, group in (("config", config_app), ("token", tokens.app), ("audit", audit.app),
                    ("receipt", checks.receipt_app), ("keys", keys.app), ("tls", tls.app), ("webhook", webhook.app)):
    app.add_typer(group, name=name)


def main() -> None:
    """The console script."""
    own_alone()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))  # stdout is for what was asked
    try:
        app()
    except ConfigurationError as error:
        errors.print(f"configuration: {error.detail}")
        sys.exit(2)
    except (AppError, StorageError) as error:
        errors.print(f"packhorse: {error}")
        sys.exit(1)
    except (sqlite3.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        errors.print(f"packhorse: the database cannot be used: {cause}")
        sys.exit(1)
    except OSError as error:  # the disk, the network, a right that is missing: nobody needs our stack for it
        where = f": {error.filename}" if error.filename else ""
        errors.print(f"packhorse: {error.strerror or error}{where}")
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
    with loading():  # no other command needs them
        from server.processes import serve_in_processes  # noqa: PLC0415
        from server.supervisor import serve as serve_forever  # noqa: PLC0415
    settings = config.load(config_file)
    config.check_places(settings)
    certificate = Certificate(settings)
    certificate.load()
    log_to_stderr(settings.log.format)
    for warning in _warnings(settings, certificate):
        log.warning("configuration.warning", detail=warning)

    def reread() -> Settings:
        return config.load(config_file)

    kinds = _kinds(only)
    if workers == 1 or Kind.HTTP not in kinds:
        uvloop.run(serve_forever(settings, reread, kinds))
    else:
        uvloop.run(serve_in_processes(settings, reread, workers, kinds))


def _warnings(settings: Settings, certificate: Certificate) -> list[str]:
    ending = certificate.warning()
    return config.warnings_of(settings) + ([ending] if ending is not None else [])


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
    config.check_places(settings)
    present, newest = backends.revisions(settings.database_path)
    if check:
        out.print(f"database {present or 'none'}, newest {newest}")
        raise typer.Exit(0 if present == newest else 1)
    make_private(settings)
    copy = backends.migrate(settings.database_path)
    out.print(f"the database is at {newest}" + (f"; the copy from before is {copy}" if copy else ""))


@config_app.command("check")
def config_check(config_file: ConfigOption = None) -> None:
    """Tell whether the configuration is usable."""
    settings = config.load(config_file)
    config.check_places(settings)
    certificate = Certificate(settings)
    certificate.load()
    for warning in _warnings(settings, certificate):
        errors.print(f"warning: {warning}")
    out.print(f"usable: HTTP {settings.http.host}:{settings.http.port}, data in {settings.data_path}")


COMMANDS = (doctor.doctor, fsck.fsck, scrub.scrub, keeping.backup, keeping.restore)
for command in COMMANDS:  # here, so that help names serving first
    app.command()(command)
app.command("rebuild-index")(keeping.rebuild_index)
