"""Clean-up pauses while a backup copies, not for long after its last word; another database's bytes it never frees."""

from datetime import timedelta

import pytest

from storage import pauses
from storage.blobs.base import Piece, Sealed, staging
from storage.records import now
from storage.store import Store


async def of_nobody(store: Store) -> Sealed:
    blob = await store.blobs.seal(staging("default", "x"), None, Piece(0, b"of nobody"))
    await store.blobs.delete(staging("default", "x"))
    return blob


async def freed(store: Store, blob: Sealed) -> bool:
    return await store.write(lambda tx: store.take_back(tx, blob.key, -1.0)) is not None


async def test_a_pause_holds_clean_up_back_until_it_runs_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = await of_nobody(store)
    await store.write(pauses.pause_cleanup)
    assert not await freed(store, blob)
    later = now() + pauses.LONGEST + timedelta(seconds=1)
    monkeypatch.setattr("storage.pauses.timestamp", lambda moment=later: moment.isoformat())
    assert await freed(store, blob)


async def test_a_pause_of_a_clock_that_was_set_back_is_not_believed(store: Store) -> None:
    blob = await of_nobody(store)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("storage.pauses.now", lambda: now() + timedelta(days=400))
        await store.write(pauses.pause_cleanup)
    assert await freed(store, blob)


async def test_bytes_that_were_there_before_the_database_are_not_its_to_free(store: Store) -> None:
    blob = await of_nobody(store)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("storage.store.inventory.born_at", lambda _tx: "2999-01-01T00:00:00.000Z")
        assert not await freed(store, blob)
        patched.setattr("storage.store.inventory.born_at", lambda _tx: None)
        assert not await freed(store, blob)
    assert await freed(store, blob)
