"""From the blobs alone: every study, series and image is there again, once, however often it is asked for."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from tests import builders
from tests.server import Server, create, packhorse, patch, sha256, upload_url
from tests.starting import ROOT

TREE = (
    "SELECT image.kind, image.sop_instance_uid, image.blob_sha256, image.dataset_sha256, image.transfer_syntax_uid, "
    "series.series_instance_uid, series.attributes, study.study_instance_uid, study.attributes FROM image "
    "LEFT JOIN series ON series.id = image.series_id LEFT JOIN study ON study.id = series.study_id"
)


def tree(folder: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "data" / "packhorse.db")) as database:
        return sorted(database.execute(TREE), key=str)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a stopped server: 6 images of 2 studies, 2 files; and what can be no image of its own."""
    server = Server(tmp_path_factory.mktemp("filled") / "server").start()
    contents = [("a.bin", b"a report"), ("b.bin", b"a video")]
    for _ in range(2):
        uid, series = generate_uid(None), generate_uid(None)
        for number in range(3):
            path = builders.ct(server.folder / "a.dcm", rows=8, columns=8, seed=number, StudyInstanceUID=uid,
                               SeriesInstanceUID=series)
            contents.append(("a.dcm", path.read_bytes()))
    contents.append(("a.dcm", builders.ct(server.folder / "a.dcm", rows=8, columns=8).read_bytes()[:-20]))
    for name, content in contents:
        session = create(server, content, file_name=name)
        patch(server, upload_url(server, session["session_id"]), content)
    server.stop()
    yield server.folder


@pytest.fixture
def lost(filled: Path, tmp_path: Path) -> Path:
    """A copy whose database is lost."""
    folder = Path(shutil.copytree(filled, tmp_path / "server"))
    for path in (folder / "data").glob("packhorse.db*"):
        path.unlink()
    return folder


def test_the_tree_is_as_it_was_and_a_second_time_changes_nothing(filled: Path, lost: Path) -> None:
    told = packhorse(lost, "rebuild-index")
    head = lost / "data" / "audit-head.jws"
    assert f"{head} tells of the history that was lost" in told.stderr
    assert head.read_text() == (filled / "data" / "audit-head.jws").read_text()
    head.unlink()
    assert told.returncode == 0 and "8 images made, 0 known before" in told.stdout, told.stdout + told.stderr
    assert "DICOM_REJECTED: 1" in told.stdout
    assert tree(lost) == tree(filled)
    assert packhorse(lost, "fsck").returncode == 0
    assert "the chain is whole" in packhorse(lost, "audit", "verify").stdout
    again = packhorse(lost, "rebuild-index")
    assert "0 images made, 9 known before" in again.stdout and tree(lost) == tree(filled)


def test_a_server_serves_what_was_rebuilt_and_frees_nothing_of_it(lost: Path) -> None:
    assert packhorse(lost, "rebuild-index").returncode == 0
    (lost / "data" / "admin-token").unlink()
    server = Server(lost).start()
    try:
        studies = server.api("GET", "/studies/").json()["results"]
        assert sorted(one["images"] for one in studies) == [3, 3]
        for number in range(1, 9):
            image = server.api("GET", f"/images/{number}/").json()
            assert sha256(server.api("GET", f"/images/{number}/file/").content) == image["file_sha256"]
        told = server.command("rebuild-index")
        assert told.returncode == 1 and "another server" in told.stderr
    finally:
        server.stop()


def test_a_damaged_blob_is_not_filed_and_is_told(lost: Path) -> None:
    path = next((lost / "data" / "blobs" / "sealed" / "site-default").glob(f"*/{sha256(b'a report')}"))
    path.write_bytes(b"a repost")
    told = packhorse(lost, "rebuild-index")
    assert told.returncode == 1 and "damaged: 1" in told.stdout and "7 images made" in told.stdout


def test_a_rebuilding_that_was_killed_goes_on(filled: Path, lost: Path) -> None:
    words = [sys.executable, "-m", "server", "rebuild-index", "--config", str(lost / "packhorse.toml")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            if (lost / "data" / "packhorse.db-wal").exists() and len(_arrivals(lost)) > 1:
                break
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert packhorse(lost, "rebuild-index").returncode == 0
    assert tree(lost) == tree(filled) and packhorse(lost, "fsck").returncode == 0


def _arrivals(folder: Path) -> list[object]:
    with closing(sqlite3.connect(folder / "data" / "packhorse.db")) as database:
        try:
            return database.execute("SELECT id FROM arrival").fetchall()
        except sqlite3.Error:
            return []


def test_a_database_with_sessions_is_refused(filled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(filled, tmp_path / "server"))
    told = packhorse(folder, "rebuild-index")
    assert told.returncode == 1 and "holds sessions" in told.stderr


def test_a_folder_without_blobs_is_refused(tmp_path: Path) -> None:
    told = packhorse(tmp_path, "rebuild-index")
    assert told.returncode == 2 and "storage.blobs" in told.stderr and list(tmp_path.iterdir()) == []
