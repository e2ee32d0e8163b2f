"""`packhorse receipt`: what a receipt says, and whether it is genuine."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from server import config
from server.commands.terminal import ConfigOption, out, with_store
from server.errors import AppError
from server.sessions import receipts
from storage import tokens
from storage.store import Store

receipt_app = typer.Typer(no_args_is_help=True, help="Receipts.")


@receipt_app.command("verify")
def receipt_verify(
    receipt: Annotated[Path, typer.Argument(help="A file with the receipt, or - for stdin.")],
    config_file: ConfigOption = None,
) -> None:
    """Tell whether a receipt is genuine, and what it says."""
    settings = config.load(config_file)
    out.print_json(data=receipts.verify(text_of(receipt), with_store(settings, published_keys)))


def text_of(path: Path) -> str:
    """What a file holds, or stdin where it is -. AppError."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise AppError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AppError(f"{path}: this is no receipt, for it is no text") from error


async def published_keys(store: Store) -> list[dict[str, Any]]:
    """Every public key that ever signed here."""
    return await store.read(tokens.keys)
