"""`packhorse token`: makes, lists and revokes tokens. Never shows a secret but the one that it just made."""

from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy import Connection

from server import config
from server.auth import PREFIX, Role, new_token
from server.commands.terminal import ConfigOption, out, with_store
from server.errors import AppError, ConfigurationError
from server.identifiers import parse_id
from storage import audit, tokens
from storage.records import DEFAULT_SITE, AuditEntry, TokenRecord, now, timestamp
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
    expires_at = _moment(expires) if expires is not None else None
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


@app.command("list")
def show(config_file: ConfigOption = None) -> None:
    """List every token, without its secret."""

    async def work(store: Store) -> list[TokenRecord]:
        return await store.read(tokens.listing)

    head = ("ID", "ROLE", "SITE", "VISIT", "CREATED", "EXPIRES", "REVOKED", "LABEL")
    rows = [head, *(_row(one) for one in with_store(config.load(config_file), work))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for row in rows:
        out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(one: TokenRecord) -> tuple[str, ...]:
    cells = (one.token_id, one.role, one.site, one.visit_id, one.created_at, one.expires_at, one.revoked_at, one.label)
    return tuple("".join(sign if sign.isprintable() else " " for sign in cell or "-") for cell in cells)


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id, as `token list` shows it.")],
    config_file: ConfigOption = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit.")] = None,
) -> None:
    """Refuse a token from now on; running servers do so within a second."""
    if token_id.startswith(f"{PREFIX}_"):  # the whole token: its secret is not to be shown again
        token_id = token_id.split("_")[1]

    def unit(tx: Connection) -> bool:
        found = tokens.find(tx, token_id)
        if found is None:
            raise AppError(f"there is no token {token_id}: `packhorse token list` shows the ids")
        is_fresh = tokens.revoke(tx, token_id)
        if is_fresh:
            audit.append(tx, AuditEntry(
                found.site, "token.revoked", ACTOR, f"token/{token_id}", detail={"role": found.role, "reason": reason}))
        return is_fresh

    async def work(store: Store) -> bool:
        return await store.write(unit)

    is_fresh = with_store(config.load(config_file), work)
    out.print(f"token {token_id} is revoked" if is_fresh else f"token {token_id} was revoked before")


def _moment(duration: str) -> str:
    """The time after `duration` from now."""
    try:
        return timestamp(now() + _duration(duration))
    except (OverflowError, ValueError) as error:  # beyond the year 9999, or beyond what int() reads
        raise ConfigurationError("--expires: is longer than the calendar") from error


def _duration(text: str) -> timedelta:
    units = {"m": "minutes", "h": "hours", "d": "days"}
    if len(text) < 2 or text[-1] not in units or not text[:-1].isdecimal():
        raise ConfigurationError("--expires: must be like 30m, 12h or 30d")
    if not int(text[:-1]):
        raise ConfigurationError("--expires: must be longer than nothing")
    return timedelta(**{units[text[-1]]: int(text[:-1])})
