"""Tokens at the command line: made, listed without their secrets, revoked within a second, refused with a word."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.server import Server, packhorse
from tests.support import eventually


def made(folder: Path, *words: str) -> str:
    told = packhorse(folder, "token", "create", *words)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def test_the_list_tells_everything_but_the_secret(tmp_path: Path) -> None:
    plain = made(tmp_path, "--role", "viewer")
    full = made(
        tmp_path, "--role", "uploader", "--site", "north", "--visit", "77", "--expires", "12h", "--label", "tablet 7"
    )
    told = packhorse(tmp_path, "token", "list")
    lines = {line.split()[0]: line for line in told.stdout.splitlines()}
    assert told.returncode == 0 and len(lines) == 3
    for token in (plain, full):
        _, token_id, secret = token.split("_", 2)
        assert token_id in lines and secret not in told.stdout
    assert lines[full.split("_")[1]].split()[1:4] == ["uploader", "north", "77"]
    assert lines[full.split("_")[1]].endswith("tablet 7") and lines[plain.split("_")[1]].split()[8:] == ["-"] * 4


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_revoked_token_is_refused_within_a_second_and_audited(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    server = Server(tmp_path, arguments=arguments).start()
    try:
        token = made(tmp_path, "--role", "viewer")
        token_id = token.split("_")[1]
        for _ in range(8):
            assert server.api("GET", "/", token=token).status_code == 200
        told = packhorse(tmp_path, "token", "revoke", token_id, "--reason", "the tablet is lost")
        assert told.returncode == 0 and token_id in told.stdout
        await eventually(lambda: all(server.api("GET", "/", token=token).status_code == 401 for _ in range(8)), 1.5)
        again = packhorse(tmp_path, "token", "revoke", token, "--reason", "once more")
        assert again.returncode == 0 and "before" in again.stdout and token not in again.stdout
        assert packhorse(tmp_path, "audit", "verify").returncode == 0
        listed = packhorse(tmp_path, "token", "list").stdout
        assert token_id in listed and server.api("GET", "/").status_code == 200
    finally:
        assert server.stop() == 0
    log = (tmp_path / "server.log").read_text()
    assert "login.refused" in log and token.split("_", 2)[2] not in log
    with closing(sqlite3.connect(tmp_path / "data" / "packhorse.db")) as database:
        rows = database.execute("SELECT subject, detail FROM audit WHERE action = 'token.revoked'").fetchall()
    assert [subject for subject, _ in rows] == [f"token/{token_id}"] and "the tablet is lost" in rows[0][1]


def test_an_unknown_id_is_told_in_a_sentence(tmp_path: Path) -> None:
    made(tmp_path, "--role", "viewer")
    told = packhorse(tmp_path, "token", "revoke", "0123456789abcdef", "--reason", "lost")
    assert told.returncode == 1 and "no token 0123456789abcdef" in told.stderr and len(told.stderr.splitlines()) == 1


def test_who_revokes_a_token_or_rotates_the_keys_says_why_or_nothing_is_done(tmp_path: Path) -> None:
    token_id = made(tmp_path, "--role", "viewer").split("_")[1]
    for words in (("token", "revoke", token_id), ("keys", "rotate")):
        for reason in ((), ("--reason", " "), ("--reason", "x" * 501)):
            told = packhorse(tmp_path, *words, *reason)
            assert told.returncode == 2 and "--reason" in told.stderr and len(told.stderr.splitlines()) == 1
    with closing(sqlite3.connect(tmp_path / "data" / "packhorse.db")) as database:
        actions = {row[0] for row in database.execute("SELECT action FROM audit")}
    assert not actions & {"token.revoked", "key.rotated"} and not (tmp_path / "data" / "keys").exists()


@pytest.mark.parametrize("words", [("list",), ("revoke", "0123456789abcdef", "--reason", "lost")])
def test_in_a_wrong_folder_no_database_is_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    told = packhorse(tmp_path, "token", *words)
    assert told.returncode == 1 and "--config" in told.stderr and not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["0m", "00d", "999999999999d", "9" * 5000 + "h", "4000000d", "", "12", "-1h"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    told = packhorse(tmp_path, "token", "create", "--role", "viewer", f"--expires={text}")
    assert told.returncode == 2 and "--expires" in told.stderr and len(told.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_what_is_no_token_of_ours_is_told_apart_from_no_token(shared_server: Server) -> None:
    def detail(authorization: str | None) -> str:
        headers = {"Authorization": authorization} if authorization else {}
        answer = requests.get(f"{shared_server.url}/api/v1/", headers=headers, timeout=10)
        assert answer.status_code == 401
        return str(answer.json()["detail"])

    for given in (None, "Bearer", "Basic dTpw"):
        assert "send the header" in detail(given)
    for given in (shared_server.token.removeprefix("ph_"), "eyJhbGciOiJub25lIn0.e30.", "xx_a_b"):
        assert "not a Packhorse token" in detail(f"Bearer {given}")
