"""What a reading of stored bytes is worth: for whom it counts, what it alarms, what closes an alarm, what gives way."""

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from server.errors import RequestError
from server.integrity.checking import Asks, Checker, Pace
from server.integrity.readback import Readback
from server.integrity.scrub import MIB, Scrubber
from server.tus.locks import MachineLocks
from server.worker import Tasks
from storage import audit, blob_rows, instances, integrity, quarantine
from storage.backends import migrate
from storage.blobs.base import OnRead, Piece, sealed, staging
from storage.blobs.filesystem import FilesystemBlobs
from storage.database.sqlite import SqliteDatabase
from storage.errors import NotAFile, StorageError
from storage.moments import is_after, moment
from storage.records import BlobRecord, Sha256, now, timestamp
from storage.store import Store
from tests.support import eventually

BYTES = b"what was stored" * 1000


class GatedBlobs(FilesystemBlobs):
    """Readings that have passed every byte, and end only when the gate is open."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = self.passed = self.running = self.most_at_once = 0

    async def digest(self, key: Any, on_read: OnRead | None = None) -> Sha256:
        self.begun, self.running = self.begun + 1, self.running + 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            found = await super().digest(key, on_read)
            self.passed += 1
            await self.gate.wait()
            return found
        finally:
            self.running -= 1


@pytest.fixture
def blobs(tmp_path: Path) -> GatedBlobs:
    return GatedBlobs(tmp_path / "blobs")


@pytest.fixture
async def store(tmp_path: Path, blobs: GatedBlobs) -> AsyncIterator[Store]:
    migrate(tmp_path / "p.db")
    opened = Store(SqliteDatabase(tmp_path / "p.db"), blobs)
    yield opened
    await opened.close()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as running:
        yield running
        running.cancel()


@pytest.fixture
def checker(store: Store, tmp_path: Path) -> Checker:
    return Checker(store, MachineLocks(tmp_path))


@pytest.fixture
def readback(store: Store, checker: Checker, tasks: Tasks) -> Readback:
    return Readback(store, checker, tasks)


async def keep(store: Store, content: bytes = BYTES) -> str:
    """Seal bytes, and give them a row; their SHA-256."""
    blob = await store.blobs.seal(staging("default", os.urandom(8).hex()), None, Piece(0, content))
    await store.write(lambda tx: store.keep(tx, blob))
    return blob.sha256


def file_of(blobs: FilesystemBlobs, sha256: str) -> Path:
    return blobs.path(sealed("default", sha256))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


async def row(store: Store, sha256: str) -> BlobRecord:
    found = await store.read(lambda tx: blob_rows.find(tx, "default", sha256))
    assert found is not None
    return found


async def told(store: Store, sha256: str) -> list[tuple[str, str]]:
    """The audit of a blob: (action, outcome)."""
    rows = await store.read(lambda tx: audit.of_subject(tx, f"blob/{sha256}"))
    return [(one["action"], one["outcome"]) for one in rows]


async def refused(verifying: Awaitable[None]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await verifying
    return caught.value


# --- for whom a reading counts ------------------------------------------------------------------------------


async def test_a_reading_does_not_count_for_who_came_after_it_had_begun(
    store: Store, blobs: GatedBlobs, readback: Readback
) -> None:
    sha256 = await keep(store)
    blobs.gate.clear()
    first = asyncio.ensure_future(readback.verify("default", sha256, "one", "acknowledge"))
    await eventually(lambda: blobs.passed == 1)
    flip(file_of(blobs, sha256))  # what is being read has been passed already
    late = [asyncio.ensure_future(readback.verify("default", sha256, name, "acknowledge")) for name in "abc"]
    await asyncio.sleep(0)
    blobs.gate.set()
    await first
    codes = {(await refused(one)).code for one in late}
    assert codes == {"readback_failed"}
    assert (blobs.begun, blobs.most_at_once) == (2, 1)  # those who came late shared one


async def test_readings_of_one_blob_are_one_at_a_time_over_two_processes(
    store: Store, blobs: GatedBlobs, tasks: Tasks, tmp_path: Path
) -> None:
    sha256, other = await keep(store), await keep(store, b"other bytes")
    both = [Readback(store, Checker(store, MachineLocks(tmp_path)), tasks) for _ in range(2)]
    blobs.gate.clear()
    asking = [
        asyncio.ensure_future(both[number % 2].verify("default", sha256, f"{number}", "acknowledge"))
        for number in range(6)
    ]
    await eventually(lambda: blobs.running == 1)
    elsewhere = asyncio.ensure_future(both[1].verify("default", other, "x", "acknowledge"))
    await eventually(lambda: blobs.running == 2)  # another blob waits for nobody
    blobs.gate.set()
    await asyncio.gather(*asking, elsewhere)
    assert blobs.most_at_once == 2 and blobs.begun <= 4


async def test_a_long_reading_goes_on_and_answers_who_asks_again_on_any_process(
    store: Store, blobs: GatedBlobs, tasks: Tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Readback, "WAIT_S", 0.05)
    sha256 = await keep(store)
    one, two = (Readback(store, Checker(store, MachineLocks(tmp_path)), tasks) for _ in range(2))
    blobs.gate.clear()
    for process in (one, two, one):
        error = await refused(process.verify("default", sha256, "tab1", "acknowledge"))
        assert error.code == "readback_running" and error.members["retry_after_s"] == 5
    assert blobs.running == 1
    monkeypatch.setattr(Readback, "WAIT_S", 10.0)
    blobs.gate.set()
    await eventually(lambda: blobs.running == 0)
    await asyncio.wait_for(two.verify("default", sha256, "tab1", "acknowledge"), 5)
    assert (await row(store, sha256)).verified_at is not None
    begun = blobs.begun
    assert begun <= 2  # the other process found what was read while it waited for its turn
    await one.verify("default", sha256, "tab1", "acknowledge")
    assert blobs.begun == begun + 1  # it was an answer once


async def test_what_a_long_reading_found_is_no_answer_to_another_device_nor_later(
    store: Store, blobs: GatedBlobs, readback: Readback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Readback, "WAIT_S", 0.05)
    sha256 = await keep(store)
    blobs.gate.clear()
    await refused(readback.verify("default", sha256, "tab1", "acknowledge"))
    monkeypatch.setattr(Readback, "WAIT_S", 10.0)
    blobs.gate.set()
    await eventually(lambda: blobs.running == 0)
    await eventually(lambda: store.glance(lambda tx: blob_rows.find(tx, "default", sha256)).read_at is not None)  # type: ignore[union-attr]
    flip(file_of(blobs, sha256))
    assert (await refused(readback.verify("default", sha256, "tab2", "acknowledge"))).code == "readback_failed"
    assert (await refused(readback.verify("default", sha256, "tab1", "acknowledge"))).code == "readback_failed"
    file_of(blobs, sha256).write_bytes(BYTES)
    begun = blobs.begun
    monkeypatch.setattr("server.integrity.readback.FRESH", timedelta(0))
    asked = moment()
    await store.write(lambda tx: integrity.wait(tx, "default", sha256, "tab3", asked, "2020"))
    await asyncio.sleep(0.01)
    await readback.verify("default", sha256, "tab3", "acknowledge")
    assert blobs.begun == begun + 1  # what is too old is read again


async def test_damage_that_a_long_reading_finds_is_told_to_who_waits(
    store: Store, blobs: GatedBlobs, readback: Readback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Readback, "WAIT_S", 0.05)
    sha256 = await keep(store)
    cut(file_of(blobs, sha256))
    blobs.gate.clear()
    assert (await refused(readback.verify("default", sha256, "tab1", "acknowledge"))).code == "readback_running"
    blobs.gate.set()
    await eventually(lambda: store.glance(lambda tx: blob_rows.find(tx, "default", sha256)).alarm is not None)  # type: ignore[union-attr]
    begun = blobs.begun
    assert (await refused(readback.verify("default", sha256, "tab1", "acknowledge"))).code == "readback_failed"
    assert blobs.begun == begun


async def test_a_reader_that_is_stopped_lets_go_of_the_blob(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    sha256 = await keep(store)
    blobs.gate.clear()
    reading = asyncio.ensure_future(checker.check("default", sha256, Asks.ACKNOWLEDGE))
    await eventually(lambda: blobs.running == 1)
    reading.cancel()
    blobs.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (await row(store, sha256)).read_at is None
    assert await checker.check("default", sha256, Asks.ACKNOWLEDGE)


# --- alarms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "words"), [(flip, "are not those"), (cut, "were stored"), (Path.unlink, "are gone")]
)
async def test_each_damage_is_an_alarm_in_words_raised_once(
    store: Store, blobs: GatedBlobs, checker: Checker, damage: Callable[[Path], None], words: str
) -> None:
    sha256 = await keep(store)
    damage(file_of(blobs, sha256))
    for _ in range(2):
        assert not await checker.check("default", sha256, Asks.ACKNOWLEDGE)
    found = await row(store, sha256)
    assert words in str(found.alarm) and found.alarm_at is not None and found.verified_at is None
    asked = ("blob.readback", "damaged")
    assert await told(store, sha256) == [("integrity.alarm", "damaged"), asked, asked]
    rows = await store.read(lambda tx: audit.of_subject(tx, f"blob/{sha256}"))
    assert rows[0]["detail"] == {
        "sha256": sha256, "image_ids": [], "session_ids": [], "damage": found.alarm, "found_by": "acknowledge"
    }  # fmt: skip


async def test_an_alarm_on_what_only_an_arrival_or_the_quarantine_holds_says_whose_it_is(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    sha256 = await keep(store)
    for _ in range(2):  # the same again is named once
        await store.write(lambda tx: instances.add_arrival(
            tx, site="default", door="dimse", calling="CT1", sop_instance_uid="1.2.3", blob_sha256=sha256, image_id=7,
            outcome="STORED"))
    held = await store.write(lambda tx: quarantine.hold(
        tx, "default", blob_sha256=sha256, reason="PATIENT_MISMATCH", sop_instance_uid="1.2.3", conflicts_with=None,
        session_id=None, radiology_order_id=None, door="dimse"))
    file_of(blobs, sha256).unlink()
    assert not await checker.check("default", sha256, Asks.SCRUB)
    (alarm,) = await store.read(lambda tx: audit.of_subject(tx, f"blob/{sha256}"))
    assert alarm["detail"]["arrivals"] == [
        {"calling": "CT1", "peer": None, "sop_instance_uid": "1.2.3", "image_id": 7}
    ]
    assert alarm["detail"]["quarantine_ids"] == [held] and alarm["detail"]["image_ids"] == []
    told = str(await store.read(lambda tx: integrity.owners(tx, "default", sha256)))
    assert told == f"quarantine {held}, arrival of 1.2.3 as image 7 from CT1"
    assert str(await store.read(lambda tx: integrity.owners(tx, "other", sha256))) == "nothing refers to it"


async def test_what_cannot_be_read_is_an_alarm_but_not_what_this_process_lacks(
    store: Store, blobs: GatedBlobs, checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = await keep(store)

    def failing(number: int) -> Callable[..., None]:
        def digest_of(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return digest_of

    monkeypatch.setattr("storage.blobs.filesystem.digest_of", failing(errno.EMFILE))
    with pytest.raises(StorageError):
        await checker.check("default", sha256, Asks.ACKNOWLEDGE)
    assert (await row(store, sha256)).alarm is None
    monkeypatch.setattr("storage.blobs.filesystem.digest_of", failing(errno.EIO))
    assert not await checker.check("default", sha256, Asks.ACKNOWLEDGE)
    assert "could not be read" in str((await row(store, sha256)).alarm)


async def test_sending_the_same_bytes_again_puts_them_right_and_closes_the_alarm(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    sha256 = await keep(store)
    for damage in (flip, cut, Path.unlink):
        damage(file_of(blobs, sha256))
        assert not await checker.check("default", sha256, Asks.SCRUB)
        assert await keep(store) == sha256
        assert (await row(store, sha256)).alarm is None and file_of(blobs, sha256).read_bytes() == BYTES
    assert await told(store, sha256) == [("integrity.alarm", "damaged"), ("integrity.repaired", "ok")] * 3
    flip(file_of(blobs, sha256))  # nobody has found it yet
    await keep(store)
    assert (await told(store, sha256))[-1] == ("integrity.repaired", "ok") and len(await told(store, sha256)) == 7
    await keep(store)  # bytes that are right are no news
    assert len(await told(store, sha256)) == 7


async def test_an_alarm_from_after_the_bytes_were_sealed_again_stays_open(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    sha256 = await keep(store)
    again = await blobs.seal(staging("default", "again"), None, Piece(0, BYTES))
    await eventually(lambda: is_after(moment(), again.looked_at))
    flip(file_of(blobs, sha256))
    assert not await checker.check("default", sha256, Asks.SCRUB)
    await store.write(lambda tx: store.keep(tx, again))
    assert (await row(store, sha256)).alarm is not None


async def test_a_file_that_was_put_back_closes_its_alarm_when_it_is_read_to_its_end(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    sha256 = await keep(store)
    flip(file_of(blobs, sha256))
    assert not await checker.check("default", sha256, Asks.SCRUB)
    file_of(blobs, sha256).write_bytes(BYTES)
    assert (await row(store, sha256)).alarm is not None  # until it is read
    assert await checker.check("default", sha256, Asks.SCRUB)
    assert (await row(store, sha256)).alarm is None
    assert await told(store, sha256) == [("integrity.alarm", "damaged"), ("integrity.repaired", "ok")]


# --- what is no file ----------------------------------------------------------------------------------------


def be_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def be_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("somebody's")


def lead_away(path: Path) -> None:
    """A link to the very bytes, elsewhere."""
    elsewhere = path.parents[3] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def lead_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("odd", [be_fifo, be_directory, lead_away, lead_nowhere])
async def test_what_is_no_file_is_damage_and_moves_aside_when_the_bytes_are_sent_again(
    store: Store, blobs: GatedBlobs, checker: Checker, odd: Callable[[Path], None]
) -> None:
    sha256 = await keep(store)
    path = file_of(blobs, sha256)
    odd(path)
    before = path.lstat()
    assert not await asyncio.wait_for(checker.check("default", sha256, Asks.ACKNOWLEDGE), 5)
    assert "is no file" in str((await row(store, sha256)).alarm)
    with pytest.raises(NotAFile):
        await blobs.size(sealed("default", sha256))
    with pytest.raises(NotAFile):
        await anext(blobs.read(sealed("default", sha256)))
    assert [size async for _, size in blobs.sizes("sealed")] == [-1]
    assert not blobs.holds(sealed("default", sha256)) and blobs.withdraw(sealed("default", sha256), -1.0) is None
    await keep(store)
    assert path.read_bytes() == BYTES and not path.is_symlink() and (await row(store, sha256)).alarm is None
    aside = next(path.parent.glob(".*.odd-*")).lstat()
    assert (aside.st_mode, aside.st_ino) == (before.st_mode, before.st_ino)
    assert [key.name async for key in blobs.keys("sealed")] == [sha256]
    assert await checker.check("default", sha256, Asks.ACKNOWLEDGE)


# --- a clock that is set right ------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many seconds the clock is ahead."""
    right, ahead_ns = time.time_ns, [0]
    monkeypatch.setattr("time.time_ns", lambda: right() + ahead_ns[0])

    def set_ahead(seconds: float) -> None:
        ahead_ns[0] = round(seconds * 1e9)

    return set_ahead


DAY_S = 86400.0


async def test_a_reading_of_a_clock_that_was_ahead_answers_nobody_who_asks_after_it_was_set_right(
    store: Store, blobs: GatedBlobs, readback: Readback, clock: Callable[[float], None]
) -> None:
    clock(DAY_S)
    sha256 = await keep(store)
    await readback.verify("default", sha256, "tab1", "acknowledge")
    clock(0)
    cut(file_of(blobs, sha256))
    for device in ("tab1", "tab2"):
        assert (await refused(readback.verify("default", sha256, device, "acknowledge"))).code == "readback_failed"
    assert blobs.begun == 3


async def test_who_waits_while_the_clock_is_set_back_gets_what_its_own_reading_found(
    store: Store, blobs: GatedBlobs, readback: Readback, clock: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock(DAY_S)
    sha256 = await keep(store)
    monkeypatch.setattr(Readback, "WAIT_S", 0.05)
    blobs.gate.clear()
    assert (await refused(readback.verify("default", sha256, "tab1", "acknowledge"))).code == "readback_running"
    clock(0)
    blobs.gate.set()
    await eventually(lambda: store.glance(lambda tx: blob_rows.find(tx, "default", sha256)).read_at is not None)  # type: ignore[union-attr]
    monkeypatch.setattr(Readback, "WAIT_S", 10.0)
    await readback.verify("default", sha256, "tab1", "acknowledge")
    assert blobs.begun == 1


async def test_what_was_read_before_the_machine_was_started_anew_answers_nobody(
    store: Store, blobs: GatedBlobs, readback: Readback, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = await keep(store)
    await readback.verify("default", sha256, "tab1", "acknowledge")
    monkeypatch.setattr("storage.moments.boot_id", lambda: "another")
    cut(file_of(blobs, sha256))
    assert (await refused(readback.verify("default", sha256, "tab1", "acknowledge"))).code == "readback_failed"
    monkeypatch.setattr("storage.moments.boot_id", lambda: "a third one")
    assert await keep(store) == sha256 and (await row(store, sha256)).alarm is None


async def test_an_alarm_that_was_raised_while_the_clock_was_ahead_closes_when_the_bytes_are_sent_again(
    store: Store, blobs: GatedBlobs, checker: Checker, clock: Callable[[float], None]
) -> None:
    clock(DAY_S)
    sha256 = await keep(store)
    flip(file_of(blobs, sha256))
    assert not await checker.check("default", sha256, Asks.ACKNOWLEDGE)
    clock(0)
    await keep(store)
    assert (await row(store, sha256)).alarm is None
    assert await told(store, sha256) == [
        ("integrity.alarm", "damaged"), ("blob.readback", "damaged"), ("integrity.repaired", "ok")]


async def test_an_alarm_stays_open_where_damage_was_found_once_more_after_the_bytes_were_sealed_again(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    sha256 = await keep(store)
    flip(file_of(blobs, sha256))
    assert not await checker.check("default", sha256, Asks.SCRUB)
    again = await blobs.seal(staging("default", "again"), None, Piece(0, BYTES))
    flip(file_of(blobs, sha256))
    assert not await checker.check("default", sha256, Asks.SCRUB)
    await store.write(lambda tx: store.keep(tx, again))
    assert (await row(store, sha256)).alarm is not None


async def test_a_scrub_reads_what_was_stored_or_read_in_the_future(
    store: Store, blobs: GatedBlobs, checker: Checker, clock: Callable[[float], None]
) -> None:
    clock(DAY_S)
    kept = [await keep(store, bytes([number])) for number in range(3)]
    assert await checker.check("default", kept[0], Asks.ACKNOWLEDGE)
    clock(0)
    for sha256 in kept:
        flip(file_of(blobs, sha256))
    await scrubber_of(store, checker).sweep()
    assert {one.sha256 for one in await store.read(integrity.alarms)} == set(kept) and blobs.begun == 4
    await scrubber_of(store, checker).sweep()
    assert blobs.begun == 4


# --- the scrub ----------------------------------------------------------------------------------------------


def scrubber_of(store: Store, checker: Checker, mib_per_s: float = 10_000, every_days: float = 1.0) -> Scrubber:
    return Scrubber(store, checker, mib_per_s=mib_per_s, every_days=every_days)


async def test_a_scrub_reads_everything_once_and_finds_every_damage(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    kept = [await keep(store, BYTES + bytes([number])) for number in range(9)]
    for number, damage in enumerate((flip, cut, Path.unlink)):
        damage(file_of(blobs, kept[number]))
    before = timestamp(now())
    await eventually(lambda: timestamp() > before)
    done = await scrubber_of(store, checker).scrub(timestamp())
    assert (done.blobs, done.size_bytes, done.damaged) == (9, 9 * (len(BYTES) + 1), 3)
    assert {one.sha256 for one in await store.read(integrity.alarms)} == set(kept[:3])
    assert all([(await row(store, sha256)).verified_at for sha256 in kept[3:]])
    rows = await store.read(lambda tx: [one for one in audit.after(tx, 0, 100) if one["action"] != "integrity.alarm"])
    assert [one["action"] for one in rows] == ["integrity.scrubbed"]  # what was right is no row
    assert json.loads(rows[0]["detail"])["damaged"] == 3
    begun = blobs.begun
    await scrubber_of(store, checker).sweep()  # all were read within the day, the damaged ones too
    assert blobs.begun == begun


async def test_a_scrub_ends_also_when_the_clock_is_set_back(store: Store, blobs: GatedBlobs, checker: Checker) -> None:
    for number in range(3):
        await keep(store, bytes([number]))
    done = await scrubber_of(store, checker).scrub("9999-01-01T00:00:00.000Z")  # all that it reads is older
    assert (done.blobs, blobs.begun) == (3, 3)


async def test_a_scrub_reads_what_was_left_alone_and_not_what_an_ack_has_read(
    store: Store, blobs: GatedBlobs, checker: Checker
) -> None:
    one, two = await keep(store), await keep(store, b"two")
    await asyncio.sleep(0.3)
    await checker.check("default", one, Asks.ACKNOWLEDGE)
    verified = (await row(store, one)).verified_at
    await scrubber_of(store, checker, every_days=0.2 / 86_400).sweep()
    assert (await row(store, two)).verified_at is not None and (await row(store, one)).verified_at == verified


async def test_a_scrub_keeps_to_its_pace_and_gives_way_to_who_asks(
    store: Store, blobs: GatedBlobs, checker: Checker, tmp_path: Path
) -> None:
    content = os.urandom(3 * MIB)
    sha256 = await keep(store, content)
    scrubbing = asyncio.ensure_future(checker.check_if_free("default", sha256, Asks.SCRUB, Pace(100_000)))
    await eventually(lambda: blobs.running == 1)
    began_s = time.monotonic()
    assert await Checker(store, MachineLocks(tmp_path)).check("default", sha256, Asks.ACKNOWLEDGE)  # another process
    assert time.monotonic() - began_s < 5 and await scrubbing is None  # alone it would have taken 30 s
    began_s = time.monotonic()
    assert await checker.check_if_free("default", sha256, Asks.SCRUB, Pace(6 * MIB))
    assert 0.4 < time.monotonic() - began_s < 5


async def test_a_scrub_that_is_stopped_ends_at_once(store: Store, blobs: GatedBlobs, checker: Checker) -> None:
    await keep(store, os.urandom(2 * MIB))
    scrubbing = asyncio.ensure_future(scrubber_of(store, checker, mib_per_s=0.01).scrub("9999"))
    await eventually(lambda: blobs.running == 1)
    began_s = time.monotonic()
    scrubbing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scrubbing
    assert time.monotonic() - began_s < 2


def test_how_often_the_server_looks_follows_from_what_is_promised(store: Store, checker: Checker) -> None:
    periods = [scrubber_of(store, checker, every_days=days).period_s for days in (0, 30, 1 / 864, 0.00001)]
    assert periods == [None, 600.0, 10.0, 1.0]
