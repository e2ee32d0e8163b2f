"""The sweeper that ends what expired, under clocks that jump."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.tus.expiry import ExpirySweeper
from storage import uploads
from storage.backends import migrate, open_store
from storage.records import UploadRecord, UploadState, timestamp
from storage.store import Store

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Clocks:
    """A wall clock that people set, and one that runs steadily."""

    def __init__(self) -> None:
        self.wall = START
        self.steady_s = 1000.0

    def run(self, time: timedelta) -> None:
        """Time passes."""
        self.wall += time
        self.steady_s += time.total_seconds()


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    migrate(tmp_path / "p.db")
    return open_store(tmp_path / "p.db", tmp_path / "blobs")


class Swept:
    """A sweeper, its clocks, and the ids of what it ended."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clocks = Clocks()
        self.ended: list[str] = []
        self.restart()

    def restart(self) -> None:
        """A new process: only rows are remembered."""
        self.sweeper = ExpirySweeper(
            self.store, self.end, wall=lambda: self.clocks.wall, steady_s=lambda: self.clocks.steady_s
        )

    async def end(self, upload: UploadRecord) -> None:
        """What the sweeper does with an expired upload."""
        self.ended.append(upload.upload_id)
        await self.store.write(lambda tx: uploads.end(tx, upload.upload_id, "UPLOAD_EXPIRED"))

    async def add(self, name: str, expires_in: timedelta) -> None:
        """A part that expires after a while."""
        record = UploadRecord(
            upload_id=name,
            site="default",
            session_id=None,
            principal="p",
            length_bytes=1,
            offset_bytes=0,
            state=UploadState.OPEN,
            gone_reason=None,
            boot_id="b",
            upload_metadata="",
            created_at=timestamp(START),
            expires_at=timestamp(self.clocks.wall + expires_in),
            upload_concat="partial",
        )
        await self.store.write(lambda tx: uploads.add(tx, replace(record)))


async def test_what_has_expired_is_ended_once_and_nothing_else(store: Store) -> None:
    swept = Swept(store)
    await swept.add("soon", timedelta(minutes=5))
    await swept.add("later", DAY)
    assert await swept.sweeper.sweep() == 0
    swept.clocks.run(timedelta(minutes=6))
    assert await swept.sweeper.sweep() == 1 and await swept.sweeper.sweep() == 0
    assert swept.ended == ["soon"]
    await store.close()


async def test_a_clock_that_jumps_back_ends_nothing_until_it_has_caught_up(store: Store) -> None:
    swept = Swept(store)
    await swept.sweeper.sweep()
    swept.clocks.wall -= DAY
    swept.restart()
    await swept.add("soon", timedelta(minutes=5))
    swept.clocks.run(HOUR)
    assert await swept.sweeper.sweep() == 0
    swept.clocks.run(DAY)
    assert await swept.sweeper.sweep() == 1
    await store.close()


async def test_a_clock_that_jumps_ahead_pauses_the_sweep_for_an_hour(store: Store) -> None:
    swept = Swept(store)
    await swept.sweeper.sweep()
    await swept.add("soon", timedelta(minutes=5))
    await swept.add("in a month", timedelta(days=30))
    swept.clocks.wall += timedelta(days=365)
    for _ in range(59):
        assert await swept.sweeper.sweep() == 0
        swept.clocks.run(timedelta(minutes=1))
    swept.clocks.wall -= timedelta(days=365)  # somebody has mended it
    assert await swept.sweeper.sweep() == 1
    assert swept.ended == ["soon"]
    await store.close()


async def test_after_a_long_rest_the_sweep_goes_on_within_an_hour_of_running(store: Store) -> None:
    swept = Swept(store)
    await swept.sweeper.sweep()
    await swept.add("soon", timedelta(minutes=5))
    swept.clocks.run(timedelta(days=7))
    swept.restart()
    assert await swept.sweeper.sweep() == 0
    swept.clocks.run(timedelta(minutes=61))
    assert await swept.sweeper.sweep() == 1
    await store.close()
