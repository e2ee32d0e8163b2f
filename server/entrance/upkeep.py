"""What the entrance does by itself: a code for whoever starts the server at a terminal, and forgetting what is over."""

import asyncio
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from server.entrance.codes import new_code
from server.entrance.service import is_live
from storage import logins, tokens
from storage.records import now, timestamp
from storage.store import Store

LOGINS_KEPT = timedelta(days=1)
MINTED_KEPT = timedelta(days=90)
"""A minted token that has expired still tells whose an unfinished upload is (contract §5)."""


async def admin_code(store: Store, token_path: Path) -> str | None:
    """A one-time code for the admin token in that file; None where there is no such file, or no such token any more."""
    try:
        token_id = (await asyncio.to_thread(token_path.read_text)).split("_")[1]
    except (OSError, IndexError):
        return None

    def unit(tx: Connection) -> str | None:
        record = tokens.find(tx, token_id)
        return new_code(tx, record, "terminal")[0] if record is not None and is_live(record) else None

    return await store.write(unit)


async def forget_logins(store: Store) -> None:
    """Take away codes and cookies a day after their time, minted tokens three months after theirs."""

    def unit(tx: Connection) -> None:
        logins.forget(tx, timestamp(now() - LOGINS_KEPT))
        tokens.forget(tx, timestamp(now() - MINTED_KEPT))

    await store.write(unit)
