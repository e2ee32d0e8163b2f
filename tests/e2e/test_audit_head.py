"""The signed head outside the database: what is cut off, put in behind it, or written anew is found and named."""

import asyncio
import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

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


def actions(server: Server) -> list[str]:
    with closing(sqlite3.connect(database(server))) as opened:
        return [row[0] for row in opened.execute("SELECT action FROM audit ORDER BY seq")]


def head_fault(server: Server) -> str:
    """What /readyz tells of the head."""
    told = requests.get(f"{server.url}/readyz", headers=server.auth, timeout=10).json()
    return next((str(fault["detail"]) for fault in told["faults"] if fault["code"] == "audit_head"), "")


def made_up(**claims: object) -> str:
    """A head that nobody signed."""
    text = json.dumps({"kind": "audit-head", "signed_at": "2026-01-01T00:00:00.000Z", "closed": False, **claims})
    return f"x.{base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}.y"


def cut_off(opened: sqlite3.Connection, count: int) -> tuple[int, str]:
    """Take the last `count` rows away; gives what is the last one then."""
    opened.execute("DELETE FROM audit WHERE seq > (SELECT max(seq) FROM audit) - ?", (count,))
    seq, row_hash = opened.execute("SELECT seq, row_hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    return int(seq), str(row_hash)


async def test_an_end_that_is_cut_off_while_the_server_runs_is_found_though_the_head_is_gone(
    any_server: Server,
) -> None:
    server = any_server
    for number in range(3):
        store(server, f"{number}".encode())
    await eventually(lambda: head(head_path(server))["audit_seq"] == rows(server), 5)
    last = rows(server)
    as_its_owner(server, lambda opened: cut_off(opened, 6))
    head_path(server).unlink()
    await eventually(lambda: head_path(server).exists() and head(head_path(server))["audit_seq"] == last, 5)
    await eventually(lambda: f"row {last} is gone" in head_fault(server), 10)
    store(server, b"and it goes on")
    told = server.command("audit", "verify")
    assert told.returncode == 1 and str(head_path(server)) in told.stderr, told.stderr
    server.stop()
    server.restart()
    await eventually(lambda: f"row {last} is not the one" in head_fault(server), 10)  # whichever worker is asked
    assert server.command("audit", "verify").returncode == 1


async def test_a_head_that_vanishes_while_the_server_runs_leaves_a_row_and_comes_back(any_server: Server) -> None:
    server = any_server
    store(server, b"one")
    await eventually(lambda: head(head_path(server))["audit_seq"] == rows(server), 5)
    head_path(server).unlink()
    store(server, b"two")
    await eventually(lambda: head_path(server).exists() and head(head_path(server))["audit_seq"] == rows(server), 5)
    assert "audit.head_missing" in actions(server) and head_fault(server) == ""
    assert server.stop() == 0 and server.command("audit", "verify").returncode == 0


def test_a_head_that_somebody_made_up_is_set_aside_and_told_until_it_is_taken_away(server: Server) -> None:
    for number in range(3):
        store(server, f"{number}".encode())
    server.stop()
    as_its_owner(server, lambda opened: head_path(server).write_text(
        made_up(**dict(zip(("audit_seq", "audit_hash"), cut_off(opened, 6), strict=True), closed=True))))
    assert server.command("audit", "verify").returncode == 1
    assert "is no head of ours" in server.command("doctor").stdout
    server.restart()
    aside = next(head_path(server).parent.glob("audit-head.jws.foreign-*"))
    assert actions(server).count("audit.head_foreign") == 1 and "audit.head_missing" not in actions(server)
    assert "audit.head_foreign" in (server.folder / "server.log").read_text()
    for _ in range(2):
        assert str(aside) in head_fault(server)
        told = server.command("audit", "verify")
        assert told.returncode == 1 and str(aside) in told.stderr and str(aside) in server.command("doctor").stdout
        server.stop()
        server.restart()
    assert head(head_path(server))["closed"] is False, "a head of ours is kept meanwhile"
    aside.unlink()
    server.stop()
    server.restart()
    assert head_fault(server) == "" and server.command("audit", "verify").returncode == 0


async def test_a_head_that_is_put_in_the_place_of_ours_while_the_server_runs_is_set_aside(any_server: Server) -> None:
    server = any_server
    store(server, b"one")
    await eventually(lambda: head(head_path(server))["audit_seq"] == rows(server), 5)
    head_path(server).write_text(made_up(audit_seq=1, audit_hash="x"))
    store(server, b"two")
    await eventually(lambda: "audit.head_foreign" in actions(server), 5)
    await eventually(lambda: "foreign-" in head_fault(server), 10)
    await eventually(lambda: head_path(server).exists() and head(head_path(server))["audit_seq"] == rows(server), 5)
    aside, = head_path(server).parent.glob("audit-head.jws.foreign-*")
    aside.unlink()
    await eventually(lambda: head_fault(server) == "", 10)
    assert actions(server).count("audit.head_foreign") == 1 and "audit.head_missing" not in actions(server)


def test_an_older_head_of_ours_does_not_hide_what_was_cut_off(server: Server, tmp_path: Path) -> None:
    store(server, b"one")
    server.stop()
    server.restart()
    shutil.copy(head_path(server), tmp_path / "old.jws")
    for number in range(3):
        store(server, f"{number}".encode())
    asyncio.run(eventually(lambda: head(head_path(server))["audit_seq"] == rows(server), 5))
    last = rows(server)
    as_its_owner(server, lambda opened: cut_off(opened, 6))
    shutil.copy(tmp_path / "old.jws", head_path(server))
    asyncio.run(eventually(lambda: head(head_path(server))["audit_seq"] == last, 5))
    assert server.stop() == 0 and server.command("audit", "verify").returncode == 1


NESTED = base64.urlsafe_b64encode(b"[" * 40000).decode()


@pytest.mark.parametrize("garbled", [
    made_up(audit_seq=10**30, audit_hash="x"), made_up(audit_seq=float("inf"), audit_hash="x"),
    made_up(audit_seq=-5, audit_hash="x"), made_up(audit_seq="1", audit_hash=[]), "x.W10.y", f"x.{NESTED}.y",
    f"{NESTED}.x.y", "\udcff", "a" * 100_000, "a folder", "a pipe", "a link to nothing",
], ids=range(12))
def test_whatever_lies_in_the_place_of_the_head_the_server_stops_and_starts(server: Server, garbled: str) -> None:
    path = head_path(server)
    for running in (True, False):
        if not running:
            assert server.stop() == 0
        path.unlink()
        if garbled == "a folder":
            path.mkdir()
        elif garbled == "a pipe":
            os.mkfifo(path)
        elif garbled == "a link to nothing":
            path.symlink_to("nothing")
        else:
            path.write_bytes(garbled.encode(errors="surrogateescape"))
        if not running:
            told = server.command("audit", "verify")
            assert told.returncode == 1 and told.stderr and "Traceback" not in told.stderr
            told = server.command("doctor")
            assert told.returncode == 1 and "WRONG audit head" in told.stdout and "Traceback" not in told.stderr
            server.restart()
        else:
            server.api("POST", "/tokens/", {"role": "viewer"})
            asyncio.run(eventually(lambda: "audit.head_foreign" in actions(server), 5))
    assert actions(server).count("audit.head_foreign") == 2 and head(path)["audit_seq"] == rows(server)
    assert len(list(path.parent.glob("audit-head.jws.foreign-*"))) == 2
    assert "Traceback" not in (server.folder / "server.log").read_text()


async def test_a_trigger_that_keeps_rows_out_stops_what_would_leave_them_and_is_told(server: Server) -> None:
    before = len(server.api("GET", "/tokens/").json()["results"])
    with closing(sqlite3.connect(database(server))) as opened, opened:
        opened.execute("CREATE TRIGGER x BEFORE INSERT ON audit WHEN NEW.action = 'token.created' "
                       "BEGIN SELECT RAISE(IGNORE); END")
    assert server.api("POST", "/tokens/", {"role": "admin"}).status_code == 503
    assert len(server.api("GET", "/tokens/").json()["results"]) == before, "what leaves no row does not happen"

    def readyz() -> requests.Response:
        return requests.get(f"{server.url}/readyz", headers=server.auth, timeout=10)

    await eventually(lambda: readyz().status_code == 503 and "the trigger x is not ours" in readyz().text, 10)
    told = server.command("audit", "verify")
    assert told.returncode == 1 and "the trigger x is not ours" in told.stderr
    assert "WRONG triggers: the trigger x is not ours" in server.command("doctor").stdout
