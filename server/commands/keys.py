"""`packhorse keys`: the keys that sign receipts. Never shows a private one."""

import typer
from sqlalchemy import Connection

from server import config
from server.commands.terminal import ConfigOption, ReasonOption, out, reason_of, with_store
from server.errors import AppError
from server.sessions.receipts import Signer, keep_key, new_key, open_signer, public_jwk
from storage import audit, tokens
from storage.records import DEFAULT_SITE, AuditEntry
from storage.store import Store

app = typer.Typer(no_args_is_help=True, help="The keys that sign receipts.")
ACTOR = "command line"


@app.command("rotate")
def rotate(
    config_file: ConfigOption = None,
    reason: ReasonOption = None,
) -> None:
    """Sign with a new key from now on, without a restart; the public keys of before stay published."""
    settings, why = config.load(config_file), reason_of(reason)
    folder = settings.data_path / "keys"
    key = new_key(after=Signer(folder).made_at if any(folder.glob("*.json")) else None)
    jwk = public_jwk(key)

    def unit(tx: Connection) -> None:
        tokens.publish(tx, DEFAULT_SITE, [jwk])
        audit.append(tx, AuditEntry(DEFAULT_SITE, "key.rotated", ACTOR, f"key/{jwk['kid']}", detail={"reason": why}))

    async def work(store: Store) -> None:
        await store.write(unit)

    with_store(settings, work)
    keep_key(folder, key)  # after its public key is a row: nothing is signed before
    signing = open_signer(folder).kid
    if signing != jwk["kid"]:
        raise AppError(f"{signing} goes on signing, for it tells that it was made later than the new key {jwk['kid']}")
    out.print(f"receipts are signed with the key {jwk['kid']} from now on")


@app.command("list")
def show(config_file: ConfigOption = None) -> None:
    """List every public key, the oldest first, and tell which one signs."""
    settings = config.load(config_file)

    async def work(store: Store) -> list[str]:
        return [str(jwk["kid"]) for jwk in await store.read(tokens.keys)]

    published = with_store(settings, work)
    signing = open_signer(settings.data_path / "keys").kid
    for kid in published:
        out.print(f"{kid}  signs" if kid == signing else kid)
