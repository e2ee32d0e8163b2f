"""What every Database must keep (storage.database.base), and what the triggers refuse; SQLite so far."""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from storage import audit, chain, walks
from storage.backends import open_store
from storage.chain import Anchor, ChainReport
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
        ("UPDATE audit SET actor = CAST(x'ff' AS TEXT) WHERE seq = 3", "row 3 does not follow"),
        ("UPDATE audit SET actor = x'ff' WHERE seq = 3", "row 3 was changed"),
        ("UPDATE audit SET seq = -7 WHERE seq = 3", "row -7 does not belong"),
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

    def with_receipt(seq: int, row_hash: str) -> Callable[[Connection], ChainReport]:
        return lambda tx: audit.verify(tx, [Anchor(seq, row_hash, "a receipt")])

    assert (await store.read(with_receipt(position.seq, position.row_hash))).fault is None
    foreign = await store.read(with_receipt(position.seq, "0" * 64))
    assert (foreign.bad_seq, foreign.fault) == (1, "row 1 is not the one that a receipt names")
    missing = await store.read(with_receipt(99, "0" * 64))
    assert (missing.bad_seq, missing.fault) == (2, "row 2 is missing: a receipt names row 99")


async def test_behind_the_end_no_row_may_follow(store: Store) -> None:
    end = await store.write(lambda tx: audit.append(tx, entry()))
    anchor = Anchor(end.seq, end.row_hash, "the head")
    assert (await store.read(lambda tx: audit.verify(tx, [], anchor))).fault is None
    await store.write(lambda tx: audit.append(tx, entry("put in")))
    report = await store.read(lambda tx: audit.verify(tx, [], anchor))
    assert (report.bad_seq, report.fault) == (2, "row 2 is foreign: the head ended at row 1")
    assert (await store.read(lambda tx: audit.verify(tx, [anchor]))).fault is None


SELECT = "SELECT * FROM audit"


def hurt(path: Path, statement: str) -> None:
    """Change the file as somebody would who owns it."""
    with closing(sqlite3.connect(path)) as database, database:
        for name, _statement in sqlite_triggers():
            database.execute(f"DROP TRIGGER IF EXISTS {name}")
        database.executescript(statement)


@pytest.mark.parametrize(
    ("statement", "bad_seq"),
    [
        ("", None),
        ("UPDATE audit SET actor = 'x' WHERE seq = 1", 1),
        ("UPDATE audit SET actor = 'x' WHERE seq = 30", 30),
        ("DELETE FROM audit WHERE seq = 50", 50),
        ("DELETE FROM audit WHERE seq = 51", 51),
        ("DELETE FROM audit WHERE seq BETWEEN 20 AND 80", 20),
        ("DELETE FROM audit WHERE seq > 70", 71),
        ("UPDATE audit SET seq = 1000000 WHERE seq = 100", 100),
        ("UPDATE audit SET actor = CAST(x'ff' AS TEXT) WHERE seq = 75", 75),
        (f"CREATE TABLE x AS {SELECT} WHERE seq = 9; UPDATE x SET seq = 101; INSERT INTO audit SELECT * FROM x", 101),
    ],
)
async def test_parts_of_a_chain_that_are_walked_at_once_fit_together(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, bad_seq: int | None
) -> None:
    monkeypatch.setattr(walks, "ROWS_A_PROCESS", 10)
    monkeypatch.setattr(walks.os, "cpu_count", lambda: 4)
    end = (await store.write(lambda tx: [audit.append(tx, entry()) for _ in range(100)]))[-1]
    await store.close()
    hurt(tmp_path / "p.db", statement)
    anchor = Anchor(end.seq, end.row_hash, "the head")
    assert walks.verify(tmp_path / "p.db", [anchor], anchor).bad_seq == bad_seq
    early = walks.verify(tmp_path / "p.db", [Anchor(10, "0" * 64, "a receipt")])
    assert early.bad_seq == min(10, bad_seq or 10)


@given(st.lists(st.one_of(st.text(), st.none()), min_size=9, max_size=9), st.integers(1, 2**62))
def test_a_row_is_hashed_as_its_canonical_json(values: list[str | None], seq: int) -> None:
    texts = [value if place in (4, 5) else value or "" for place, value in enumerate(values)]
    canonical = json.dumps([seq, *texts], ensure_ascii=False, separators=(",", ":"))
    assert chain.row_hash(seq, *texts) == hashlib.sha256(canonical.encode()).hexdigest()  # type: ignore[arg-type]
