"""What every Database must keep (storage.database.base), and what the triggers refuse; SQLite so far."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from storage import audit
from storage.backends import open_store
from storage.errors import Conflict, Refused, StorageError
from storage.records import AuditEntry, timestamp
from storage.store import Store
from storage.triggers import create_triggers, missing_triggers, sqlite_triggers


def entry(action: str = "test") -> AuditEntry:
    return AuditEntry("default", action)


async def test_units_that_come_together_commit_one_after_another(store: Store) -> None:
    positions = await asyncio.gather(*(store.write(lambda tx: audit.append(tx, entry())) for _ in range(300)))
    assert sorted(position.seq for position in positions) == list(range(1, 301))
    assert (await store.read(audit.verify)).fault is None


async def test_a_unit_that_raises_leaves_no_trace_and_harms_no_other(store: Store) -> None:
    def bad(tx: Connection) -> None:
        audit.append(tx, entry("bad"))
        raise Conflict("no")

    results = await asyncio.gather(
        *(store.write(bad if number % 2 else lambda tx: audit.append(tx, entry("good"))) for number in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Conflict) for result in results) == 10
    assert (await store.read(audit.verify)).rows == 10


async def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(StorageError):
        await store.read(lambda tx: audit.append(tx, entry()))


async def test_a_glance_sees_what_was_committed_and_cannot_write(store: Store) -> None:
    await store.write(lambda tx: audit.append(tx, entry("seen")))
    assert store.glance(lambda tx: [row["action"] for row in audit.after(tx, 0, 10)]) == ["seen"]
    with pytest.raises(StorageError):
        store.glance(lambda tx: audit.append(tx, entry()))
    await store.write(lambda tx: audit.append(tx, entry("later")))
    assert store.glance(audit.verify).rows == 2, "the refused one holds no snapshot"


async def test_a_light_unit_is_seen_at_once_and_takes_its_place_in_the_chain(store: Store) -> None:
    await asyncio.gather(*(
        store.write(lambda tx: audit.append(tx, entry()), light=number % 3 != 0) for number in range(60)))
    last = await store.write(lambda tx: audit.append(tx, entry("light")), light=True)
    assert last.seq == 61 == store.glance(audit.verify).rows
    assert (await store.read(audit.verify)).fault is None


async def test_what_a_unit_appended_is_read_in_the_same_unit(store: Store) -> None:
    def unit(tx: Connection) -> list[str]:
        audit.append(tx, entry("one"))
        audit.append(tx, entry("two"))
        return [row["action"] for row in audit.after(tx, 0, 10)]

    assert await store.write(unit) == ["one", "two"]


async def test_two_processes_share_one_chain(store: Store, tmp_path: Path) -> None:
    other = open_store(tmp_path / "p.db", tmp_path / "blobs")
    try:
        await asyncio.gather(
            *(one.write(lambda tx: audit.append(tx, entry())) for one in (store, other) for _ in range(50))
        )
    finally:
        await other.close()
    report = await store.read(audit.verify)
    assert (report.rows, report.fault) == (100, None)


def seed(tx: Connection) -> None:
    """One row in each guarded table."""
    moment = timestamp()
    audit.append(tx, entry())
    tx.execute(
        text(
            "INSERT INTO session (session_id, site, status, priority, file_name, file_size, checksum_sha256,"
            " checksum_source, principal, numeric_ids, max_retries, retry_count, created_at, updated_at, seq)"
            " VALUES ('s', 'default', 'QUEUED', 'ROUTINE', 'f', 1, 'x', 'client', 'p', '', 5, 0, :t, :t, 1)"
        ),
        {"t": moment},
    )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'x'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit",
        "DELETE FROM session",
        "INSERT OR REPLACE INTO session SELECT * FROM session",
        "UPDATE session SET file_name = 'x'",
        "UPDATE session SET checksum_sha256 = 'y'",
        "UPDATE session SET checksum_sha256 = NULL",
        "UPDATE session SET site = 'x'",
    ],
)
async def test_the_database_itself_refuses_to_change_history(store: Store, statement: str) -> None:
    await store.write(seed)
    with pytest.raises(Refused):
        await store.write(lambda tx: tx.execute(text(statement)))


async def test_a_dropped_trigger_is_named(store: Store) -> None:
    assert await store.read(missing_triggers) == []
    await store.write(lambda tx: tx.execute(text("DROP TRIGGER audit_no_update")))
    assert await store.read(missing_triggers) == ["audit_no_update"]
    await store.write(create_triggers)
    assert await store.read(missing_triggers) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("UPDATE audit SET actor = 'x' WHERE seq = 3", "row 3 was changed"),
        ("DELETE FROM audit WHERE seq = 3", "row 3 is missing"),
        ("UPDATE audit SET row_hash = previous_hash WHERE seq = 3", "row 3 was changed"),
        ("UPDATE audit SET previous_hash = row_hash WHERE seq = 3", "row 3 does not follow"),
    ],
)
async def test_a_chain_that_somebody_touched_names_the_first_bad_row(store: Store, fault: str, words: str) -> None:
    for _ in range(5):
        await store.write(lambda tx: audit.append(tx, entry()))
    for name, _statement in sqlite_triggers():
        await store.write(lambda tx, name=name: tx.execute(text(f"DROP TRIGGER {name}")))  # type: ignore[misc]
    await store.write(lambda tx: tx.execute(text(fault)))
    report = await store.read(audit.verify)
    assert report.fault is not None and words in report.fault


async def test_a_row_that_a_receipt_names_must_be_that_row(store: Store) -> None:
    position = await store.write(lambda tx: audit.append(tx, entry()))
    good = await store.read(lambda tx: audit.verify(tx, {position.seq: position.row_hash}))
    foreign = await store.read(lambda tx: audit.verify(tx, {position.seq: "0" * 64}))
    missing = await store.read(lambda tx: audit.verify(tx, {99: "0" * 64}))
    assert good.fault is None and foreign.fault and missing.fault
