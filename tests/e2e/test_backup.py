"""A backup made while uploads run is whole, and restored elsewhere it is the same, byte for byte."""

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.server import Server, create, packhorse, patch, sha256, upload_url
from tests.starting import ROOT
from tests.support import eventually


def stored(server: Server, content: bytes) -> dict[str, object]:
    """A session of `content` that is SYNCED."""
    session = create(server, content, file_name="a.bin")
    answer = patch(server, upload_url(server, session["session_id"]), content)
    assert answer.headers["Packhorse-Status"] == "SYNCED"
    return session


@contextmanager
def uploading(server: Server) -> Iterator[list[bytes]]:
    """Uploads run until the end of the block; gives the contents that were stored."""
    ending, done = threading.Event(), list[bytes]()

    def run(number: int) -> None:
        count = 0
        while not ending.is_set():
            content = f"{number}-{count}-".encode() * 500
            stored(server, content)
            done.append(content)
            count += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def manifest(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def restored(folder: Path, backup: Path) -> Server:
    """A server's folder, not started, to which `backup` was restored."""
    folder.mkdir()
    (folder / "packhorse.toml").write_text("[http]\nport = 0\n[dicom]\nport = 0\n")
    told = packhorse(folder, "restore", str(backup))
    assert told.returncode == 0, told.stderr
    assert "packhorse fsck" in told.stdout and "packhorse audit verify" in told.stdout
    return Server(folder)


def synced(database: Path) -> list[tuple[str, str]]:
    """(session, SHA-256) of the sessions that a database calls SYNCED."""
    with closing(sqlite3.connect(database)) as reading:
        return list(reading.execute("SELECT session_id, blob_sha256 FROM session WHERE status = 'SYNCED'"))


def test_a_backup_made_while_uploads_run_is_restored_byte_for_byte(server: Server, tmp_path: Path, ct: bytes) -> None:
    backup = tmp_path / "backup"
    session = stored(server, ct)
    receipt = server.api("GET", f"/upload-sessions/{session['session_id']}/receipt/").json()["receipt"]
    with uploading(server) as done:
        for _ in range(3):
            before = len(done)
            told = server.command("backup", str(backup))
            assert told.returncode == 0, told.stderr
            assert len(done) > before, "nothing was uploaded meanwhile"
    (database,) = backup.glob("*.db")
    there = synced(database)
    assert len(there) > 3 and len(there) < len(done) + 2
    assert manifest(backup)["blobs"] == len(list((backup / "blobs" / "sealed").glob("*/*/*")))

    other = restored(tmp_path / "other", backup)
    (tmp_path / "other" / "r.jws").write_text(receipt)
    assert packhorse(other.folder, "fsck").returncode == 0
    verified = packhorse(other.folder, "audit", "verify", "--receipt", "r.jws")
    assert verified.returncode == 0, verified.stderr
    assert sorted(synced(other.folder / "data" / "packhorse.db")) == sorted(there)
    other.token = server.token  # the tokens are the ones of before
    (tmp_path / "other" / "data" / "admin-token").write_text(server.token)
    other.start()
    try:
        for session_id, digest in there:
            shown = other.api("GET", f"/upload-sessions/{session_id}/").json()
            content = other.api("GET", f"/images/{shown['server_image_id']}/file/").content
            assert shown["status"] == "SYNCED" and sha256(content) == digest
        answer = other.api("POST", f"/upload-sessions/{there[0][0]}/acknowledge/", {"server_image_id": 1})
        assert answer.status_code in (200, 409)
        stored(other, b"and it goes on")
        assert other.command("audit", "verify").returncode == 0
    finally:
        other.stop()
    assert packhorse(other.folder, "fsck").returncode == 0


def test_what_the_backup_holds_is_for_its_user_alone_and_no_staged_byte_is_in_it(
    server: Server, tmp_path: Path
) -> None:
    stored(server, b"stored")
    url = server.tus("POST", "/files", Upload_Length="100").headers["Location"]
    patch(server, url, b"begun")
    backup = tmp_path / "backup"
    assert server.command("backup", str(backup)).returncode == 0
    assert not (backup / "blobs" / "staging").exists() and len(list((backup / "keys").iterdir())) == 1
    for path in (backup, *backup.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    other = restored(tmp_path / "other", backup)
    shutil.copy(server.folder / "data" / "admin-token", other.folder / "data")
    other.start()
    try:
        answer = other.tus("HEAD", url.replace(server.url, other.url))
        assert answer.status_code == 410 or answer.headers["Upload-Offset"] == "0"
    finally:
        other.stop()


def test_the_same_folder_again_copies_only_what_is_new(server: Server, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    stored(server, b"one")
    assert server.command("backup", str(backup)).returncode == 0
    (first,) = (backup / "blobs" / "sealed").glob("*/*/*")
    before, made_at = first.stat(), manifest(backup)["made_at"]
    stored(server, b"two")
    assert server.command("backup", str(backup)).returncode == 0
    assert first.stat().st_ino == before.st_ino and first.stat().st_mtime_ns == before.st_mtime_ns
    assert manifest(backup)["blobs"] == 2 and manifest(backup)["made_at"] != made_at
    assert len(list(backup.glob("*.db"))) == 1


async def test_hard_links_are_made_where_they_are_asked_for(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    await eventually(lambda: blob(server, b"one").stat().st_nlink == 1)  # its staged name goes a moment later
    assert server.command("backup", "--link", str(tmp_path / "linked")).returncode == 0
    (path,) = (tmp_path / "linked" / "blobs" / "sealed").glob("*/*/*")
    assert path.stat().st_nlink == 2
    restored(tmp_path / "other", tmp_path / "linked")


def blob(server: Server, content: bytes) -> Path:
    (path,) = (server.folder / "data" / "blobs" / "sealed").glob(f"*/*/{sha256(content)}")
    return path


def acknowledged(server: Server, content: bytes) -> dict[str, object]:
    """A session of `content` whose sender was told that the copy may go."""
    session = stored(server, content)
    path = f"/upload-sessions/{session['session_id']}/"
    image = server.api("GET", path).json()["server_image_id"]
    answer = server.api("POST", f"{path}acknowledge/", {"server_image_id": image})
    assert answer.json()["safe_to_delete_local"] is True
    return session


def is_safe(server: Server, session: dict[str, object]) -> bool:
    return bool(server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["safe_to_delete_local"])


def damaged(path: Path, how: str) -> None:
    if how == "bit":
        path.write_bytes(b"damageD")
    elif how == "cut":
        path.write_bytes(b"dam")
    else:
        path.unlink()
    if how == "unreadable":
        path.mkdir()


def alarms_found_by(server: Server) -> list[str]:
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
        rows = database.execute("SELECT detail FROM audit WHERE action = 'integrity.alarm' ORDER BY seq").fetchall()
    return [json.loads(detail)["found_by"] for (detail,) in rows]


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "unreadable"])
def test_a_damaged_blob_is_named_no_copy_of_it_may_go_and_the_rest_is_backed_up(
    server: Server, tmp_path: Path, damage: str
) -> None:
    session, good = acknowledged(server, b"damaged"), acknowledged(server, b"good")
    damaged(blob(server, b"damaged"), damage)
    assert is_safe(server, session), "nobody knows yet"
    told = server.command("backup", str(tmp_path / "backup"))
    assert told.returncode == 1 and sha256(b"damaged") in told.stderr and len(told.stderr.splitlines()) == 1
    assert f"session {session['session_id']}" in told.stderr
    assert "The alarm is raised: have it sent again" in told.stderr
    assert not is_safe(server, session) and is_safe(server, good)
    assert alarms_found_by(server) == ["backup"]
    assert manifest(tmp_path / "backup")["lacking"] == [f"default/{sha256(b'damaged')}"]
    assert server.command("backup", str(tmp_path / "backup")).returncode == 1 and len(alarms_found_by(server)) == 1
    assert "integrity alarms open: 1; packhorse doctor names them" in server.command("fsck").stdout
    (tmp_path / "other").mkdir()
    told = packhorse(tmp_path / "other", "restore", str(tmp_path / "backup"))
    assert told.returncode == 1 and sha256(b"damaged") in told.stderr
    assert packhorse(tmp_path / "other", "fsck").returncode == 1
    assert packhorse(tmp_path / "other", "audit", "verify").returncode == 0


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_an_earlier_backup_holds_is_looked_for_here_and_may_be_put_back(
    server: Server, tmp_path: Path, damage: str
) -> None:
    session, backup = acknowledged(server, b"damaged"), tmp_path / "backup"
    assert server.command("backup", str(backup)).returncode == 0
    damaged(blob(server, b"damaged"), damage)
    told = server.command("backup", str(backup))
    (copy,) = (backup / "blobs" / "sealed").glob("*/*/*")
    assert told.returncode == 1 and f"put it back from {copy}, then run packhorse scrub" in told.stderr
    assert not is_safe(server, session) and manifest(backup)["lacking"] == []
    path = server.folder / "data" / "blobs" / "sealed" / copy.relative_to(backup / "blobs" / "sealed")
    shutil.copy(copy, path)
    assert server.command("scrub").returncode == 0 and is_safe(server, session)
    assert server.command("backup", str(backup)).returncode == 0


def test_a_backup_of_what_is_known_to_be_damaged_fails_though_it_has_a_good_copy(
    server: Server, tmp_path: Path
) -> None:
    acknowledged(server, b"damaged")
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    damaged(blob(server, b"damaged"), "bit")
    assert server.command("scrub").returncode == 1
    told = server.command("backup", str(tmp_path / "backup"))
    assert told.returncode == 1 and f"put it back from {tmp_path / 'backup'}" in told.stderr
    told = server.command("backup", "--link", str(tmp_path / "linked"))
    assert told.returncode == 1 and "not in the backup" in told.stderr, "a link to damaged bytes is no copy"


def tampered(backup: Path, how: str) -> None:
    (database,) = backup.glob("*.db")
    if how == "another database":
        database.write_bytes(database.read_bytes()[:-1] + b"x")
    elif how == "no database":
        database.unlink()
    elif how == "another key":
        next((backup / "keys").iterdir()).write_text("{}")
    elif how == "no manifest":
        (backup / "manifest.json").unlink()
    elif how == "no JSON":
        (backup / "manifest.json").write_text("{")
    elif how == "another format":
        (backup / "manifest.json").write_text(json.dumps({**manifest(backup), "format": 2}))
    else:
        named = {**manifest(backup), "database": {"path": "../p.db", "sha256": "0", "size_bytes": 1}}
        (backup / "manifest.json").write_text(json.dumps(named))


TAMPERED = ["another database", "no database", "another key", "no manifest", "no JSON", "another format", "outside"]


def test_what_is_no_whole_backup_is_refused_and_nothing_is_made(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    for how in TAMPERED:
        shutil.copytree(tmp_path / "backup", tmp_path / how)
        tampered(tmp_path / how, how)
        (tmp_path / "other").mkdir(exist_ok=True)
        told = packhorse(tmp_path / "other", "restore", str(tmp_path / how))
        assert told.returncode == 1 and len(told.stderr.splitlines()) == 1, (how, told.stderr)
        assert not (tmp_path / "other" / "data" / "packhorse.db").exists(), how


def test_a_blob_that_was_changed_in_the_backup_is_not_restored(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    (path,) = (tmp_path / "backup" / "blobs" / "sealed").glob("*/*/*")
    path.write_bytes(b"onE")
    (tmp_path / "other").mkdir()
    told = packhorse(tmp_path / "other", "restore", str(tmp_path / "backup"))
    assert told.returncode == 1 and sha256(b"one") in told.stderr


def test_restoring_over_something_is_refused(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    told = server.command("restore", str(tmp_path / "backup"))
    assert told.returncode == 1 and "another server" in told.stderr
    server.stop()
    told = server.command("restore", str(tmp_path / "backup"))
    assert told.returncode == 1 and "not empty" in told.stderr
    assert server.command("fsck").returncode == 0


def test_certificates_may_be_there_before_and_what_hinders_is_named(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    other = tmp_path / "other"
    other.mkdir()
    assert packhorse(other, "tls", "init", "--host", "images.clinic.example").returncode == 0
    certificate = (other / "data" / "tls" / "server.crt").read_bytes()
    (other / "data" / "zettel").write_text("somebody's")
    told = packhorse(other, "restore", str(tmp_path / "backup"))
    assert told.returncode == 1 and "it holds zettel." in told.stderr, told.stderr
    (other / "data" / "zettel").unlink()
    assert packhorse(other, "restore", str(tmp_path / "backup")).returncode == 0
    assert (other / "data" / "tls" / "server.crt").read_bytes() == certificate


def test_a_head_of_another_history_is_not_written_over(server: Server, tmp_path: Path) -> None:
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    (kept,) = (tmp_path / "backup").glob("audit-head-*.jws")
    assert kept.read_text().count(".") == 2
    (tmp_path / "other" / "disk").mkdir(parents=True)
    (tmp_path / "other" / "disk" / "head.jws").write_text("evidence")
    (tmp_path / "other" / "packhorse.toml").write_text("[audit]\nhead = 'disk/head.jws'\n")
    told = packhorse(tmp_path / "other", "restore", str(tmp_path / "backup"))
    assert told.returncode == 1 and "another history" in told.stderr
    assert (tmp_path / "other" / "disk" / "head.jws").read_text() == "evidence"


def test_a_folder_with_something_else_in_it_takes_no_backup(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    told = server.command("backup", str(tmp_path / "mine"))
    assert told.returncode == 1 and "letter" in told.stderr and len(list((tmp_path / "mine").iterdir())) == 1
    inside = server.folder / "data" / "blobs" / "backup"
    told = server.command("backup", str(inside))
    assert told.returncode == 1 and not inside.exists()


def test_a_restore_that_was_cut_short_starts_no_server_and_goes_on(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    other = restored(tmp_path / "other", tmp_path / "backup")
    data = other.folder / "data"
    digest = sha256((tmp_path / "backup" / "manifest.json").read_bytes())
    (data / ".restoring").write_text(digest)  # as after kill -9
    (data / "packhorse.db").unlink()
    told = packhorse(other.folder, "serve")
    assert told.returncode == 1 and "half of a backup" in told.stderr and not (data / "packhorse.db").exists()
    assert packhorse(other.folder, "restore", str(tmp_path / "backup")).returncode == 0
    assert packhorse(other.folder, "fsck").returncode == 0 and not (data / ".restoring").exists()


def test_a_killed_backup_leaves_the_one_before_and_the_next_one_goes_on(server: Server, tmp_path: Path) -> None:
    for number in range(300):
        stored(server, f"{number}".encode() * 3000)
    backup = tmp_path / "backup"
    words = [sys.executable, "-m", "server", "backup", str(backup), "--config", str(server.folder / "packhorse.toml")]
    assert server.command("backup", str(backup)).returncode == 0
    before = manifest(backup)
    shutil.rmtree(backup / "blobs")
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not list(backup.glob("blobs/sealed/*/*/*")) and time.monotonic() < deadline:
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert manifest(backup) == before
    assert server.command("backup", str(backup)).returncode == 0
    assert manifest(backup)["blobs"] == 300 and len(list(backup.glob("*.db*"))) == 1
    restored(tmp_path / "other", backup)
    assert packhorse(tmp_path / "other", "fsck").returncode == 0


def test_each_is_a_row_of_the_audit(server: Server, tmp_path: Path) -> None:
    assert server.command("backup", str(tmp_path / "backup")).returncode == 0
    other = restored(tmp_path / "other", tmp_path / "backup")
    for folder, action in ((server.folder, "backup.made"), (other.folder, "backup.restored")):
        with closing(sqlite3.connect(folder / "data" / "packhorse.db")) as database:
            rows = database.execute("SELECT outcome FROM audit WHERE action = ?", (action,)).fetchall()
        assert rows == [("ok",)]


def blob_of(server: Server, content: bytes) -> Path:
    return next((server.folder / "data" / "blobs" / "sealed").rglob(sha256(content)))


@pytest.mark.parametrize("words", [(), ("--link",)], ids=["copied", "linked"])
def test_a_blob_that_cannot_be_read_is_lacking_and_the_rest_is_there(
    server: Server, tmp_path: Path, words: tuple[str, ...]
) -> None:
    stored(server, b"good")
    stored(server, b"unreadable")
    blob = blob_of(server, b"unreadable")
    blob.unlink()
    blob.mkdir()
    told = server.command("backup", str(tmp_path / "backup"), *words)
    assert told.returncode == 1 and f"{sha256(b'unreadable')} is damaged or gone here" in told.stderr, told.stderr
    assert manifest(tmp_path / "backup")["blobs"] == 1 and "Traceback" not in told.stderr


def test_a_disk_that_is_full_is_told_in_a_sentence(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    for code in ("storage.errors.NoSpace('the disk is full')", "OSError(28, 'No space left on device')"):
        program = (f"import sys, storage.errors, server.keeping.backup as b\nfrom server.cli import main\n"
                   f"def full(*_, **__): raise {code}\nb.carry = full\nmain()")
        told = subprocess.run(
            [sys.executable, "-c", program, "backup", str(tmp_path / "b"), "--config", "packhorse.toml"],
            cwd=server.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            timeout=60, check=False)
        assert told.returncode == 1 and len(told.stderr.splitlines()) == 1, told.stderr
        assert "full" in told.stderr or "No space left" in told.stderr


def told_anew(backup: Path, **changes: object) -> None:
    """The manifest, with `changes`, of the database as it is now."""
    values = manifest(backup)
    database = backup / str(values["database"]["path"])  # type: ignore[index]
    values["database"]["sha256"] = sha256(database.read_bytes())  # type: ignore[index]
    (backup / "manifest.json").write_text(json.dumps({**values, **changes}))


def refused(folder: Path, backup: Path) -> str:
    """What is told of a backup that is not restored."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    told = packhorse(folder, "restore", str(backup))
    assert told.returncode == 1 and "Traceback" not in told.stderr, told.stderr
    return told.stderr


def test_a_backup_of_somebody_who_means_harm_touches_nothing_outside(server: Server, tmp_path: Path) -> None:
    stored(server, b"one")
    backup, folder, victim = tmp_path / "backup", tmp_path / "new", tmp_path / "victim.txt"
    assert server.command("backup", str(backup)).returncode == 0
    victim.write_text("precious")
    database = next(backup.glob("database-*"))
    with closing(sqlite3.connect(database)) as opened, opened:
        for site, digest in (("default", "../../../../../../victim.txt"), ("x/../../../../../evil", "a" * 64),
                             ("default", "A" * 64)):
            opened.execute("INSERT INTO blob (site, sha256, size_bytes, sealed_at) VALUES (?, ?, 7, 'now')",
                           (site, digest))
    told_anew(backup)
    assert refused(folder, backup).count("is not in the backup, or damaged there") == 3
    assert victim.read_text() == "precious" and not list(tmp_path.rglob("*evil*"))
    assert {path.name for path in (folder / "data" / "blobs" / "sealed").iterdir()} == {"site-default"}
    keys = list(manifest(backup)["keys"])  # type: ignore[call-overload]
    (backup / "keys" / "link.json").symlink_to(victim)
    (backup / "keys" / "deep").mkdir()
    for name, why in (("keys/link.json", "is a link"), ("../victim.txt", "where no backup has"),
                      ("keys/../../victim.json", "where no backup has"), (str(victim), "where no backup has")):
        file = {"path": name, "sha256": sha256(b"precious"), "size_bytes": 8}
        told_anew(backup, keys=[*keys, file])
        assert why in refused(folder, backup) and not (folder / "data" / "keys").exists()


def test_a_manifest_of_other_types_is_none(server: Server, tmp_path: Path) -> None:
    backup, folder = tmp_path / "backup", tmp_path / "new"
    assert server.command("backup", str(backup)).returncode == 0
    good = manifest(backup)
    for name, value in (("database", {"path": 5, "sha256": "x", "size_bytes": 1}), ("database", []), ("keys", "abc"),
                        ("keys", [1]), ("lacking", 5), ("lacking", [5]), ("head", [1]), ("format", [1]),
                        ("made_at", {}), ("audit_seq", "1"), ("more", 1)):
        (backup / "manifest.json").write_text(json.dumps({**good, name: value}))
        assert "no manifest of a backup" in (told := refused(folder, backup)) or "of format" in told
    for text in ("[" * 100_000, "[]", "null", "5"):
        (backup / "manifest.json").write_text(text)
        assert "manifest" in refused(folder, backup)
