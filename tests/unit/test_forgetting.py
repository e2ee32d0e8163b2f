"""What the entrance forgets by itself, and what it keeps."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, select

from server.auth import Role
from server.entrance.upkeep import LOGINS_KEPT, MINTED_KEPT, forget_logins
from server.identity.secrets import new_token
from storage import logins, tokens
from storage.backends import migrate, open_store
from storage.records import CodeRecord, now, timestamp
from storage.tables import login_code, token

SHORTLY = timedelta(minutes=1)


async def test_codes_go_a_day_after_their_time_and_minted_tokens_after_three_months(tmp_path: Path) -> None:
    migrate(tmp_path / "p.db")
    store = open_store(tmp_path / "p.db", tmp_path / "blobs")
    _, admin = new_token(Role.ADMIN, label="the first")

    def fill(tx: Connection) -> None:
        tokens.add(tx, admin)
        for age in (MINTED_KEPT - SHORTLY, MINTED_KEPT + SHORTLY):
            _, minted = new_token(Role.VIEWER, label=str(age), expires_at=timestamp(now() - age))
            tokens.add(tx, replace(minted, maker=admin.token_id))
        _, old = new_token(Role.VIEWER, label="of the command line", expires_at=timestamp(now() - 2 * MINTED_KEPT))
        tokens.add(tx, old)
        for age in (LOGINS_KEPT - SHORTLY, LOGINS_KEPT + SHORTLY):
            over = timestamp(now() - age)
            logins.add_code(tx, CodeRecord(str(age), admin.site, admin.token_id, over, over))

    def left(tx: Connection) -> tuple[set[str | None], set[str]]:
        labels = tx.execute(select(token.c.label)).scalars()
        return set(labels), set(tx.execute(select(login_code.c.code_sha256)).scalars())

    try:
        await store.write(fill)
        await forget_logins(store)
        labels, codes = await store.read(left)
        assert labels == {"the first", "of the command line", str(MINTED_KEPT - SHORTLY)}
        assert codes == {str(LOGINS_KEPT - SHORTLY)}
    finally:
        await store.close()
