"""What every UploadLocks must keep (server.tus.locks), within one process and between two."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from server.errors import RequestError
from server.tus.locks import MachineLocks, UploadLocks
from tests.support import eventually

HOLDER = """
import asyncio, sys
from pathlib import Path
from server.tus.locks import MachineLocks

async def main():
    left = asyncio.Event()
    async with await MachineLocks(Path(sys.argv[1])).take(sys.argv[2], lambda code: left.set()):
        print("held", flush=True)
        await left.wait()

asyncio.run(main())
"""


@pytest.fixture(params=["machine"])
def locks(request: pytest.FixtureRequest, tmp_path: Path) -> UploadLocks:
    assert request.param == "machine"
    return MachineLocks(tmp_path)


def nobody(_code: str) -> None:
    """Does not leave."""


async def test_a_newcomer_makes_the_holder_leave(locks: UploadLocks) -> None:
    left = asyncio.Event()

    async def hold() -> None:
        async with await locks.take("one", lambda code: left.set()):
            await left.wait()

    holder = asyncio.ensure_future(hold())
    await eventually(lambda: locks.is_held("one"))
    began = time.monotonic()
    async with await locks.take("one", nobody):
        assert left.is_set()
    await holder
    assert time.monotonic() - began < 0.9 and not locks.is_held("one")


async def test_a_holder_that_does_not_leave_keeps_the_newcomer_out_for_a_second(locks: UploadLocks) -> None:
    async with await locks.take("one", nobody):
        with pytest.raises(RequestError, match="writes") as refusal:
            async with await locks.take("one", nobody):
                pass
    assert (refusal.value.code, refusal.value.status) == ("upload_locked", 503)
    async with await locks.take("one", nobody):
        assert locks.is_held("one")


async def test_uploads_do_not_wait_for_one_another(locks: UploadLocks) -> None:
    async with await locks.take("one", nobody), await locks.take("two", nobody):
        assert locks.is_held("one") and locks.is_held("two") and not locks.is_held("three")


async def test_a_stopping_process_asks_its_holders_to_leave(locks: UploadLocks) -> None:
    left = asyncio.Event()
    async with await locks.take("one", lambda code: left.set()):
        locks.stop_all()
        assert left.is_set()


@pytest.mark.parametrize("how", ["asked", "killed"])
async def test_a_holder_in_another_process_leaves_or_is_known_to_be_dead(tmp_path: Path, how: str) -> None:
    locks, upload_id = MachineLocks(tmp_path), str(uuid.uuid4())
    other = subprocess.Popen(  # noqa: ASYNC220 - it takes its lock before anything else happens
        [sys.executable, "-c", HOLDER, str(tmp_path), upload_id], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert locks.is_held(upload_id)
        if how == "killed":
            other.kill()
            other.wait()
        began = time.monotonic()
        async with await locks.take(upload_id, nobody):
            assert time.monotonic() - began < 0.9
    finally:
        other.kill()
        other.communicate()


async def test_who_takes_a_lock_while_the_process_stops_is_asked_to_leave_at_once(locks: UploadLocks) -> None:
    told: list[str] = []
    locks.stop_all()
    async with await locks.take("one", told.append):
        assert told == ["server_shutdown"]
    held = await locks.take_free("two", told.append)
    assert held is not None
    async with held:
        assert told == ["server_shutdown"] * 2


async def test_servers_of_other_folders_share_nothing(tmp_path: Path) -> None:
    async with await MachineLocks(tmp_path / "a").take("one", nobody):
        assert not MachineLocks(tmp_path / "b").is_held("one")


async def test_a_copy_of_a_folder_shares_nothing_with_it(tmp_path: Path) -> None:
    MachineLocks(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    async with await MachineLocks(tmp_path / "a").take("one", nobody):
        assert not MachineLocks(tmp_path / "b").is_held("one")


def test_the_secret_is_for_its_owner_only_and_stays(tmp_path: Path) -> None:
    MachineLocks(tmp_path)
    path = tmp_path / "locks.secret"
    content = path.read_bytes()
    assert len(content) == 32 and path.stat().st_mode & 0o777 == 0o600
    MachineLocks(tmp_path)
    assert path.read_bytes() == content and [one.name for one in tmp_path.iterdir()] == ["locks.secret"]


STRANGER = """
import os, re, socket, sys
os.setgid(65534), os.setuid(65534)
names = re.findall("@(packhorse/[0-9a-f]+)$", open("/proc/net/unix").read(), re.M)
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for name in names:
    one.sendto(b"leave", b"\\0" + name.encode())
print(len(names))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_evicts_nobody(locks: UploadLocks) -> None:
    told: list[str] = []
    async with await locks.take("one", told.append):
        stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", STRANGER, stdout=subprocess.PIPE)
        out, _ = await stranger.communicate()
        await asyncio.sleep(0)
        assert int(out) >= 1 and told == []
        with pytest.raises(RequestError, match="writes"):  # our own is heard all the same
            await locks.take("one", nobody)
        assert set(told) == {"upload_stopped"}


async def test_nobody_can_tell_an_address_from_the_upload(locks: UploadLocks) -> None:
    async with await locks.take("an-upload", nobody):
        assert "an-upload" not in Path("/proc/net/unix").read_text()  # noqa: ASYNC240 - it is no file
