"""The signed head outside the database: what is cut off, put in behind it, or written anew is found and named."""

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage import chain
from storage.triggers import sqlite_triggers
from tests.server import Server, create, patch, upload_url
from tests.support import eventually

COLUMNS = ", ".join(chain.COLUMNS)


def database(server: Server) -> Path:
    return server.folder / "data" / "packhorse.db"


def head_path(server: Server) -> Path:
    return server.folder / "data" / "audit-head.jws"


def head(path: Path) -> dict[str, Any]:
    payload = path.read_text().split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


def rows(server: Server) -> int:
    with closing(sqlite3.connect(database(server))) as opened:
        return int(opened.execute("SELECT max(seq) FROM audit").fetchone()[0])


def as_its_owner(server: Server, work: Callable[[sqlite3.Connection], object]) -> None:
    """Write into the database as somebody who owns the file, and leave the triggers as they were."""
    with closing(sqlite3.connect(database(server))) as opened, opened:
        for name, _statement in sqlite_triggers():
            opened.execute(f"DROP TRIGGER {name}")
        work(opened)
        for _name, statement in sqlite_triggers():
            opened.execute(statement)


def put_in(opened: sqlite3.Connection, seq: int) -> None:
    """A row behind `seq` that is right in itself."""
    values = opened.execute(f"SELECT {COLUMNS} FROM audit WHERE seq = ?", (seq,)).fetchone()
    row = dict(zip(chain.COLUMNS, values, strict=True))
    row |= {"seq": seq + 1, "previous_hash": row["row_hash"]}
    row["row_hash"] = chain.row_hash(**{name: row[name] for name in chain.COLUMNS[:-1]})
    opened.execute(f"INSERT INTO audit ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


def write_anew(opened: sqlite3.Connection) -> None:
    """The whole chain, with another actor everywhere and every hash made anew."""
    previous = chain.GENESIS
    for values in opened.execute(f"SELECT {COLUMNS} FROM audit ORDER BY seq").fetchall():
        row = {**dict(zip(chain.COLUMNS, values, strict=True)), "actor": "nobody", "previous_hash": previous}
        previous = chain.row_hash(**{name: row[name] for name in chain.COLUMNS[:-1]})
        opened.execute("UPDATE audit SET actor = 'nobody', previous_hash = ?, row_hash = ? WHERE seq = ?",
                       (row["previous_hash"], previous, row["seq"]))


def store(server: Server, content: bytes) -> str:
    """Bring a file in; gives its receipt."""
    session = create(server, content, file_name="a.bin")
    patch(server, upload_url(server, session["session_id"]), content)
    return str(server.api("GET", f"/upload-sessions/{session['session_id']}/receipt/").json()["receipt"])


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one process", "two workers"])
def any_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server", arguments=request.param).start()
    yield running
    running.stop()


async def test_the_head_follows_the_chain_and_is_closed_at_the_end(any_server: Server) -> None:
    server = any_server
    assert head(head_path(server))["closed"] is False
    store(server, b"one")
    await eventually(lambda: head(head_path(server))["audit_seq"] == rows(server), 5)
    assert head_path(server).stat().st_mode & 0o077 == 0
    store(server, b"two")
    assert server.stop() == 0
    assert head(head_path(server)) | {"closed": True, "audit_seq": rows(server)} == head(head_path(server))
    whole = server.command("audit", "verify")
    assert whole.returncode == 0 and f"covers {rows(server)} of them" in whole.stdout, whole.stderr


@pytest.mark.parametrize(("cut", "words"), [(1, "is missing"), (3, "is missing"), (1000, "row 1 is missing")])
def test_an_end_that_was_cut_off_is_found_and_stays_found(server: Server, cut: int, words: str) -> None:
    store(server, b"one")
    server.stop()
    left = max(0, rows(server) - cut)
    as_its_owner(server, lambda opened: opened.execute("DELETE FROM audit WHERE seq > ?", (left,)))
    before = head_path(server).read_text()
    found = server.command("audit", "verify")
    assert found.returncode == 1 and words in found.stderr and f"row {left + 1} " in found.stderr, found.stderr
    server.restart()
    assert "audit.head_contradicted" in (server.folder / "server.log").read_text()
    server.stop()
    assert head_path(server).read_text() == before, "evidence is not written over"
    assert server.command("audit", "verify").returncode == 1


def test_a_row_behind_the_end_of_a_stopped_server_is_foreign(server: Server) -> None:
    store(server, b"one")
    server.stop()
    last = rows(server)
    as_its_owner(server, lambda opened: put_in(opened, last))
    found = server.command("audit", "verify")
    assert found.returncode == 1 and f"row {last + 1} is foreign" in found.stderr
    assert server.command("token", "create", "--role", "viewer").returncode == 0
    assert f"row {last + 1} is foreign" in server.command("audit", "verify").stderr, "a command signs no strange row"


def test_what_a_command_writes_while_no_server_runs_belongs_there(server: Server) -> None:
    server.stop()
    before = rows(server) if head(head_path(server))["audit_seq"] else 0
    assert server.command("token", "create", "--role", "viewer").returncode == 0
    assert head(head_path(server))["audit_seq"] == before + 1 and head(head_path(server))["closed"] is True
    assert server.command("audit", "verify").returncode == 0
    server.restart()
    assert "audit.head_contradicted" not in (server.folder / "server.log").read_text()


def test_after_a_kill_the_rows_that_the_head_had_not_reached_are_good(server: Server) -> None:
    store(server, b"one")
    server.kill()
    whole = server.command("audit", "verify")
    assert whole.returncode == 0, whole.stderr
    server.restart()
    assert head(head_path(server))["audit_seq"] == rows(server)


def test_a_chain_that_was_written_anew_is_caught_by_one_old_receipt(server: Server, tmp_path: Path) -> None:
    receipt, kept = tmp_path / "receipt.jws", tmp_path / "kept.jws"
    receipt.write_text(store(server, b"one"))
    for number in range(5):
        store(server, f"{number}".encode())
    server.stop()
    shutil.copy(head_path(server), kept)
    assert server.command("audit", "verify", "--receipt", str(receipt), "--head", str(kept)).returncode == 0
    as_its_owner(server, write_anew)
    assert "is not the one that the head" in server.command("audit", "verify").stderr
    head_path(server).unlink()
    gone = server.command("audit", "verify")
    assert gone.returncode == 1 and "is gone" in gone.stderr and "the chain is whole" in gone.stdout
    seq = json.loads(base64.urlsafe_b64decode(receipt.read_text().split(".")[1] + "=="))["audit_seq"]
    caught = server.command("audit", "verify", "--receipt", str(receipt))
    assert caught.returncode == 1 and f"row {seq} is not the one that the receipt {receipt} names" in caught.stderr
    by_copy = server.command("audit", "verify", "--head", str(kept))
    assert by_copy.returncode == 1 and f"that the head {kept} names" in by_copy.stderr


def test_a_database_that_is_older_than_the_head_is_told(server: Server, tmp_path: Path) -> None:
    server.stop()
    shutil.copy(database(server), tmp_path / "old.db")
    server.restart()
    store(server, b"one")
    server.stop()
    last = rows(server)
    for path in database(server).parent.glob("packhorse.db-*"):
        path.unlink()
    shutil.copy(tmp_path / "old.db", database(server))
    told = server.command("audit", "verify")
    assert told.returncode == 1 and f"names row {last}" in told.stderr


def test_a_kept_head_holds_although_the_chain_went_on(server: Server, tmp_path: Path) -> None:
    store(server, b"one")
    server.stop()
    shutil.copy(head_path(server), tmp_path / "kept.jws")
    server.restart()
    store(server, b"two")
    assert server.command("audit", "verify", "--head", str(tmp_path / "kept.jws")).returncode == 0


def test_a_head_that_somebody_made_up_proves_nothing(server: Server, tmp_path: Path) -> None:
    server.stop()
    signed = head_path(server).read_text()
    start, _payload, signature = signed.split(".")
    claims = json.dumps({**head(head_path(server)), "audit_seq": 1})
    other = base64.urlsafe_b64encode(claims.encode()).decode().rstrip("=")
    (tmp_path / "receipt.jws").write_text(signed)
    for text in (f"{start}.{other}.{signature}", "nonsense", ""):
        head_path(server).write_text(text)
        told = server.command("audit", "verify")
        assert told.returncode == 1 and "proves nothing" in told.stderr, told.stderr
    other_kind = server.command("audit", "verify", "--head", str(server.folder / "packhorse.toml"))
    assert other_kind.returncode == 1 and "proves nothing" in other_kind.stderr


def test_the_head_may_lie_on_another_disk(tmp_path: Path) -> None:
    place = tmp_path / "other" / "disk" / "head.jws"
    server = Server(tmp_path / "server", extra=f'[audit]\nhead = "{place}"\n').start()
    try:
        assert head(place)["closed"] is False and not head_path(server).exists()
    finally:
        assert server.stop() == 0
    assert head(place)["closed"] is True and server.command("audit", "verify").returncode == 0


def test_a_head_that_is_gone_when_the_server_starts_leaves_a_row(server: Server) -> None:
    store(server, b"one")
    server.stop()
    head_path(server).unlink()
    server.restart()
    with closing(sqlite3.connect(database(server))) as opened:
        found = opened.execute("SELECT count(*) FROM audit WHERE action = 'audit.head_missing'").fetchone()
    assert found == (1,)
    assert server.command("audit", "verify").returncode == 0
