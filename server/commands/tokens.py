"""`packhorse token`: makes tokens. Never shows a secret but the one that it just made."""

from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy import Connection

from server import config
from server.auth import Role, new_token
from server.commands.terminal import ConfigOption, with_store
from server.errors import ConfigurationError
from server.identifiers import parse_id
from storage import audit, tokens
from storage.records import DEFAULT_SITE, AuditEntry, now, timestamp
from storage.store import Store

app = typer.Typer(no_args_is_help=True, help="Tokens.")
ACTOR = "command line"


@app.command("create")
def create(
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
        audit.append(tx, AuditEntry(site, "token.created", ACTOR, f"token/{record.token_id}",
                                    detail={"role": role, "visit": visit, "expires_at": expires_at}))

    async def work(store: Store) -> None:
        await store.write(unit)

    with_store(settings, work, makes=True)
    print(text)  # noqa: T201 - alone on stdout, for scripts


def _duration(text: str) -> timedelta:
    units = {"m": "minutes", "h": "hours", "d": "days"}
    if len(text) < 2 or text[-1] not in units or not text[:-1].isdecimal():
        raise ConfigurationError("--expires: must be like 30m, 12h or 30d")
    return timedelta(**{units[text[-1]]: int(text[:-1])})
