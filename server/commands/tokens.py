"""`packhorse token`: makes, lists and revokes tokens. Never shows a secret but the one that it just made."""

from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy import Connection

from server import config
from server.auth import Role
from server.commands.terminal import ConfigOption, ReasonOption, out, reason_of, with_store
from server.entrance.codes import new_code
from server.entrance.service import is_live
from server.entrance.service import revoke as revoke_lineage
from server.errors import AppError, ConfigurationError
from server.identifiers import parse_id
from server.identity.secrets import PREFIX, new_token
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
    order: Annotated[str | None, typer.Option(help="The one order that it may touch.")] = None,
    user: Annotated[str | None, typer.Option(help="The one user that it acts for (created_by_id).")] = None,
    expires: Annotated[str | None, typer.Option(help="For how long: 12h, 30d.")] = None,
    label: Annotated[str | None, typer.Option(help="What people call it.")] = None,
) -> None:
    """Make a token and print it, alone, once."""
    settings = config.load(config_file)
    expires_at = _moment(expires) if expires is not None else None
    for field, value in (("--site", site), ("--visit", visit), ("--order", order), ("--user", user)):
        if value is not None:
            parse_id(value, field)
    if set(site) <= {"."}:
        raise ConfigurationError("--site: must hold more than dots")
    text, record = new_token(role, site, visit, expires_at, label, radiology_order_id=order, created_by_id=user)

    def unit(tx: Connection) -> None:
        tokens.add(tx, record)
        audit.append(tx, AuditEntry(site, "token.created", ACTOR, f"token/{record.token_id}",
                                    detail={"role": role, "visit": visit, "order": order, "user": user,
                                            "expires_at": expires_at}))

    async def work(store: Store) -> None:
        await store.write(unit)

    with_store(settings, work, makes=True)
    print(text)  # noqa: T201 - alone on stdout, for scripts


@app.command("list")
def show(config_file: ConfigOption = None) -> None:
    """List every token, without its secret."""

    async def work(store: Store) -> list[TokenRecord]:
        return await store.read(tokens.listing)

    head = ("ID", "ROLE", "SITE", "VISIT", "ORDER", "USER", "MAKER", "CREATED", "EXPIRES", "REVOKED", "LAST USE",
            "LABEL")
    rows = [head, *(_row(one) for one in with_store(config.load(config_file), work))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for row in rows:
        out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(one: TokenRecord) -> tuple[str, ...]:
    cells = (one.token_id, one.role, one.site, one.visit_id, one.radiology_order_id, one.created_by_id, one.maker,
             one.created_at, one.expires_at, one.revoked_at, one.last_used_at, one.label)
    return tuple("".join(sign if sign.isprintable() else " " for sign in cell or "-") for cell in cells)


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id, as `token list` shows it.")],
    config_file: ConfigOption = None,
    reason: ReasonOption = None,
) -> None:
    """Refuse a token from now on, and what it minted; running servers do so within a second."""
    token_id, why = _id_of(token_id), reason_of(reason)

    def unit(tx: Connection) -> int:
        found = _found(tx, token_id)
        return len(revoke_lineage(tx, token_id, AuditEntry(
            found.site, "token.revoked", ACTOR, detail={"reason": why})))

    async def work(store: Store) -> int:
        return await store.write(unit)

    count = with_store(config.load(config_file), work)
    others = f", and {count - 1} that it minted" if count > 1 else ""
    out.print(f"token {token_id} is revoked{others}" if count else f"token {token_id} was revoked before")


@app.command("code")
def code(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id, as `token list` shows it.")],
    config_file: ConfigOption = None,
) -> None:
    """Make a one-time code that logs a browser in with a token, and print it, alone: open URL/login#code=CODE."""
    token_id = _id_of(token_id)

    def unit(tx: Connection) -> str:
        found = _found(tx, token_id)
        if not is_live(found):
            raise AppError(f"token {token_id} has expired or was revoked")
        return new_code(tx, found, ACTOR)[0]

    async def work(store: Store) -> str:
        return await store.write(unit)

    print(with_store(config.load(config_file), work))  # noqa: T201 - alone on stdout, for scripts


def _id_of(text: str) -> str:
    """The id, also of a whole token, whose secret is not to be shown again."""
    return text.split("_")[1] if text.startswith(f"{PREFIX}_") else text


def _found(tx: Connection, token_id: str) -> TokenRecord:
    found = tokens.find(tx, token_id)
    if found is None:
        raise AppError(f"there is no token {token_id}: `packhorse token list` shows the ids")
    return found


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
