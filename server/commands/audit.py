"""`packhorse audit`: walks the chain, compares it with what is known outside the database, prints it. Mends nothing."""

from pathlib import Path
from typing import Annotated, Any

import typer

from server import config
from server.auditing.export import Format
from server.auditing.export import export as rows_of
from server.auditing.head import Head, head_of, set_aside
from server.commands.checks import published_keys, text_of
from server.commands.terminal import ConfigOption, errors, out, with_store
from server.errors import AppError
from server.keeping.manifest import KEYS
from server.sessions import receipts
from server.sessions.receipts import Signer
from server.settings import Settings
from storage import walks
from storage.chain import Anchor, ChainReport
from storage.store import Store
from storage.triggers import missing_triggers, said_of

app = typer.Typer(no_args_is_help=True, help="The audit chain.")
ACTOR = "command line"
Keys = list[dict[str, Any]]  # public JWKs


@app.command("verify")
def verify(
    config_file: ConfigOption = None,
    receipt: Annotated[list[Path] | None, typer.Option(help="Receipts whose place in the chain is compared.")] = None,
    head: Annotated[list[Path] | None, typer.Option(
        help="Copies of the signed head that were kept; without them, the one that the server keeps.")] = None,
) -> None:
    """Walk the audit chain; name the first bad, missing or foreign row."""
    settings = config.load(config_file)

    async def look(store: Store) -> tuple[Keys, list[str]]:
        return await published_keys(store), await store.read(missing_triggers)

    published, dropped = with_store(settings, look)
    faults = [f"{said_of(name)}: somebody opened the lock" for name in dropped]
    keys = published + _private_ones(settings, {jwk["kid"] for jwk in published})
    if not head and (strange := set_aside(settings.audit_head_path)) is not None:
        faults.append(f"the signed head: {strange}")
    anchors = [_receipt_anchor(path, keys) for path in receipt or []]
    anchors += [_head(path, keys).anchor(f"the head {path}") for path in head or []]
    report, known = _walk(settings, anchors, keys, own_head=not head)
    if known is None and keys and not head:
        faults.append(f"the signed head {settings.audit_head_path} is gone: "
                      "whether the end was cut off cannot be told; a server that starts makes a new one")
    if report.fault:
        faults.append(f"after {report.rows} good rows: {report.fault}")
    for fault in faults:
        errors.print(fault)
    if not report.fault:
        covered = f"; the signed head covers {known.seq} of them" if known is not None else ""
        out.print(f"{report.rows} rows, the chain is whole{covered}")
    raise typer.Exit(1 if faults else 0)


@app.command("export")
def export(
    config_file: ConfigOption = None,
    form: Annotated[Format, typer.Option("--format", help="JSON Lines, or DICOM audit messages, one a line.")] =
    Format.JSONL,
    after: Annotated[int, typer.Option(min=0, help="Only rows behind this seq.")] = 0,
) -> None:
    """Print the audit rows, one a line; that they were printed is a row too."""
    settings = config.load(config_file)

    async def work(store: Store) -> None:
        async for line in rows_of(store, form, after, ACTOR, settings.dicom.ae_title):
            print(line)  # noqa: T201 - for other programs

    with_store(settings, work)


def fault_of_chain(settings: Settings) -> str | None:
    """What is wrong with the chain, or with the signed head that the server keeps; None when all is well."""
    keys = with_store(settings, published_keys)
    try:
        report, known = _walk(settings, [], keys, own_head=True)
    except AppError as error:
        return error.detail
    if report.fault:
        return f"after {report.rows} good rows: {report.fault}"
    return f"the signed head {settings.audit_head_path} is gone" if known is None and keys else None


def _walk(settings: Settings, anchors: list[Anchor], keys: Keys, *, own_head: bool) -> tuple[ChainReport, Head | None]:
    """Walk, and again where the server renewed its head meanwhile and something seemed wrong."""
    path = settings.audit_head_path
    source = f"the head {path}"
    known = _head(path, keys) if own_head and path.exists() else None
    while True:
        mine = [known.anchor(source)] if known is not None else []
        report = walks.verify(
            settings.database_path, [*anchors, *mine], mine[0] if known is not None and known.closed else None)
        newer = _head(path, keys) if known is not None and report.fault else known
        if newer == known:
            return report, known
        known = newer


def _receipt_anchor(path: Path, keys: Keys) -> Anchor:
    claims = receipts.verify(text_of(path), keys)
    try:
        return Anchor(int(claims["audit_seq"]), str(claims["audit_hash"]), f"the receipt {path}")
    except (KeyError, TypeError, ValueError) as error:
        raise AppError(f"{path}: this receipt names no row of the audit chain") from error


def _private_ones(settings: Settings, published: set[str]) -> Keys:
    """The public keys of those that lie beside and that the database does not tell: it may be an older one."""
    try:
        return [jwk for jwk in Signer(settings.data_path / KEYS).public_jwks() if jwk["kid"] not in published]
    except (AppError, OSError):
        return []


def _head(path: Path, keys: Keys) -> Head:
    """A head whose signature is ours. AppError."""
    if path.exists() and not path.is_file():
        raise AppError(f"the head {path} proves nothing: it is no file")
    try:
        return head_of(receipts.verify(text_of(path), keys))
    except AppError as error:
        raise AppError(f"the head {path} proves nothing: {error.detail}") from error
    except ValueError as error:
        raise AppError(f"{path}: {error}") from error
