"""Rows of what may come often: one a minute, over several processes, whatever the clock was before."""

from datetime import timedelta

import pytest

from server.seldom import Seldom
from storage import audit
from storage.records import AuditEntry, now, timestamp
from storage.store import Store

READ = AuditEntry("default", "image.read", "somebody", "1.2.3")


async def count(store: Store) -> int:
    return len(await store.read(lambda tx: audit.of_subject(tx, "1.2.3")))


async def test_several_processes_leave_one_row_a_minute(store: Store) -> None:
    for process in (Seldom(store), Seldom(store)):
        await process.note(READ)
        await process.note(READ)
    assert await count(store) == 1


async def test_rows_of_a_clock_that_was_ahead_keep_no_row_out_once_it_was_set_right(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        ahead.setattr(audit, "timestamp", lambda: timestamp(now() + timedelta(days=1)))
        await Seldom(store).note(READ)
    await Seldom(store).note(READ)
    assert await count(store) == 2
    await Seldom(store).note(READ)
    assert await count(store) == 2
