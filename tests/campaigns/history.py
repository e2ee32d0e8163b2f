"""Campaigns on the audit chain: what was done to it is found where it was done, and a long one is walked in time."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from storage import audit, chain, walks
from storage.backends import migrate, open_store
from storage.database.sqlite import driver_of
from storage.records import AuditEntry
from storage.store import Store
from storage.triggers import sqlite_triggers

CHAIN_ROWS = 10_000
UNIT_ROWS = 1000
LIMIT_S = 5.0
TEXTS = ("site", "at", "action", "actor", "subject", "peer", "outcome", "detail", "previous_hash", "row_hash")


def _entry(dice: random.Random, number: int) -> AuditEntry:
    return AuditEntry(
        "default", dice.choice(["session.status", "upload.transfer", "image.stored", "image.read"]),
        f"{dice.getrandbits(64):016x}", f"{dice.getrandbits(128):032x}", "192.168.7.21", "ok",
        {"from": "QUEUED", "to": "METADATA_UPLOADING", "bytes": number})


async def _fill(store: Store, dice: random.Random, rows: int) -> None:
    for start in range(0, rows, UNIT_ROWS):
        entries = [_entry(dice, number) for number in range(start, min(start + UNIT_ROWS, rows))]
        await store.write(lambda tx, entries=entries: [audit.append(tx, one) for one in entries])  # type: ignore[misc]


def _on_store(folder: Path, work: Callable[[Store], Awaitable[int]]) -> int:
    """Run `work` on a new store."""
    path = folder / "packhorse.db"
    migrate(path)

    async def run() -> int:
        store = open_store(path, folder / "blobs")
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def million_audit_rows(folder: Path, seed: int, count: int) -> int:
    """A chain of so many rows is walked, whole, in at most five seconds."""

    async def work(store: Store) -> int:
        await _fill(store, random.Random(seed), count)
        return count

    _on_store(folder, work)
    began = time.monotonic()
    report = walks.verify(folder / "packhorse.db")
    took = time.monotonic() - began
    print(f"{report.rows} audit rows verified in {took:.2f} s", flush=True)
    assert report.fault is None and took <= LIMIT_S, (seed, report, took)
    return report.rows


def mutated_audit_chains(folder: Path, seed: int, count: int) -> int:
    """10,000 rows are edited, deleted, put in, swapped, cut off, added: each is found, and its first bad row named."""
    dice = random.Random(seed)
    mutations = [_edit, _delete, _insert, _swap, _truncate, _extend]

    def mutate_all(tx: Connection) -> int:
        for name, _statement in sqlite_triggers():
            tx.execute(text(f"DROP TRIGGER {name}"))
        last = audit.newest(tx)
        end = chain.Anchor(last.seq, last.row_hash, "the head")
        driver = driver_of(tx)
        for ran in range(count):
            mutate = mutations[ran % len(mutations)]
            driver.execute("SAVEPOINT mutation")
            first_bad = mutate(driver, dice, CHAIN_ROWS)
            report = audit.verify(tx, [end], end)
            assert report.bad_seq == first_bad, (seed, ran, mutate.__name__, first_bad, report)
            driver.execute("ROLLBACK TO mutation")
            driver.execute("RELEASE mutation")
        assert audit.verify(tx, [end], end).fault is None, "all were undone"
        return count

    async def work(store: Store) -> int:
        await _fill(store, dice, CHAIN_ROWS)
        return await store.write(mutate_all)

    return _on_store(folder, work)


def _row(driver: sqlite3.Connection, seq: int) -> dict[str, Any]:
    values = driver.execute(f"SELECT {', '.join(chain.COLUMNS)} FROM audit WHERE seq = ?", (seq,)).fetchone()
    return dict(zip(chain.COLUMNS, values, strict=True))


def _rehashed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "row_hash": chain.row_hash(**{name: row[name] for name in chain.COLUMNS[:-1]})}


def _write(driver: sqlite3.Connection, row: dict[str, Any]) -> None:
    places = ", ".join("?" * len(row))
    driver.execute(f"INSERT OR REPLACE INTO audit ({', '.join(row)}) VALUES ({places})", list(row.values()))


def _edit(driver: sqlite3.Connection, dice: random.Random, rows: int) -> int:
    """One value of one row, perhaps with the row's hash made anew."""
    seq, column = dice.randrange(1, rows + 1), dice.choice(TEXTS)
    value = dice.choice(["", "somebody else", "\x00", "é", b"\xff", "0" * 64])
    row = _row(driver, seq)
    if row[column] == value:
        value = "yet another"
    row[column] = value
    if column != "row_hash" and isinstance(value, str) and dice.random() < 0.5:
        row = _rehashed(row)
    _write(driver, row)
    return seq


def _delete(driver: sqlite3.Connection, dice: random.Random, rows: int) -> int:
    """One row; perhaps the later ones close the gap."""
    seq = dice.randrange(1, rows + 1)
    driver.execute("DELETE FROM audit WHERE seq = ?", (seq,))
    if dice.random() < 0.5:
        _shift(driver, seq, -1)
    return seq


def _shift(driver: sqlite3.Connection, after: int, by: int) -> None:
    """Renumber the rows behind `after`; by way of the negative numbers, for each number is there once."""
    driver.execute("UPDATE audit SET seq = -(seq + ?) WHERE seq > ?", (by, after))
    driver.execute("UPDATE audit SET seq = -seq WHERE seq < 0")


def _insert(driver: sqlite3.Connection, dice: random.Random, rows: int) -> int:
    """A row between others: a copy of one, a made-up one, or one that fits what comes before it."""
    seq = dice.randrange(1, rows + 1)
    row, how = _row(driver, seq), dice.choice(["copy", "made up", "fitting"])
    previous = _row(driver, seq - 1)["row_hash"] if seq > 1 else chain.GENESIS
    _shift(driver, seq - 1, 1)
    source = dice.choice([number for number in (seq - 1, seq + 1, 1, rows + 1) if number not in (0, seq)])
    row = _row(driver, source) if how == "copy" else {**row, "actor": "somebody else"}
    if how == "fitting":
        row = _rehashed({**row, "seq": seq, "previous_hash": previous})
    _write(driver, {**row, "seq": seq})
    return seq + 1 if how == "copy" and source == seq + 1 else seq  # of twins the second one is too many


def _swap(driver: sqlite3.Connection, dice: random.Random, rows: int) -> int:
    """Two rows in each other's place, near or far."""
    first = dice.randrange(1, rows)
    second = first + 1 if dice.random() < 0.5 else dice.randrange(first + 1, rows + 1)
    one, other = _row(driver, first), _row(driver, second)
    if dice.random() < 0.5:  # the links stay where they were, as somebody would who knows of them
        for name in ("previous_hash", "row_hash"):
            one[name], other[name] = other[name], one[name]
    _write(driver, {**one, "seq": second})
    _write(driver, {**other, "seq": first})
    return first


def _truncate(driver: sqlite3.Connection, dice: random.Random, rows: int) -> int:
    """The last rows, or all."""
    kept = dice.randrange(rows)
    driver.execute("DELETE FROM audit WHERE seq > ?", (kept,))
    return kept + 1


def _extend(driver: sqlite3.Connection, dice: random.Random, rows: int) -> int:
    """Rows behind the end, right in themselves or not."""
    last = _row(driver, rows)
    for seq in range(rows + 1, rows + 1 + dice.randrange(1, 5)):
        last = {**last, "seq": seq, "previous_hash": last["row_hash"], "actor": "somebody else"}
        last = _rehashed(last) if dice.random() < 0.7 else last
        _write(driver, last)
    return rows + 1
