"""What is unsafe is refused at start, by the real command: exit 2, a line that names the key and why, nothing made."""

import shutil
from pathlib import Path

import pytest

from tests.server import packhorse

DESTINATION = "[[forward.destinations]]\nname = 'a'\nae_title = 'A'\nhost = '127.0.0.1'\nport = 11112\n"
PEER = "[[dicom.peers]]\nae_title = 'CT1'\nhost = '10.0.0.7'\n"
WIDE = "[dicom]\nhost = '0.0.0.0'\n"
HOOK = "[[webhooks]]\nurl = 'https://emr.example'\nsecret = "

UNSAFE = [
    # everybody is let in
    ("auth.mode", "lets everybody in", "[auth]\nmode = 'none'\n[http]\nhost = '0.0.0.0'"),
    ("auth.mode", "lets everybody in", "[auth]\nmode = 'none'\n[http]\nhost = '::'"),
    ("auth.mode", "lets everybody in", "[auth]\nmode = 'none'\n[http]\nhost = 'pacs.example'"),
    ("auth.mode", "dicom.host", "[auth]\nmode = 'none'\n[dicom]\nhost = '10.0.0.1'"),
    ("auth.mode", "whom a proxy lets through", "[auth]\nmode = 'none'\n[http]\ntrusted_proxies = ['10.0.0.1']"),
    ("auth.mode", "every page of the web", "[auth]\nmode = 'none'\n[http]\ncors_origins = ['*']"),
    # everybody is believed
    ("http.trusted_proxies", "every address", "[http]\ntrusted_proxies = ['0.0.0.0/0']"),
    ("http.trusted_proxies", "every address", "[http]\ntrusted_proxies = ['10.0.0.1', '::/0']"),
    ("dicom.peers.0.allow_from", "every address", f"{PEER}allow_from = ['0.0.0.0/0']"),
    ("dicom.peers", "needs allow_from, for its host is a name", f"{WIDE}{PEER.replace('10.0.0.7', 'ct1')}"),
    ("dicom.peers", "CT1 is given twice", PEER + PEER.replace("10.0.0.7", "10.0.0.8")),
    # secrets that are none
    ("webhooks.0.url", "shown, stored and logged", "[[webhooks]]\nurl = 'https://me:secret@emr.example'\nsecret = ''"),
    ("http.public_url", "shown, stored and logged", "[http]\npublic_url = 'https://me:secret@pacs.example'"),
    ("webhooks.0.secret", "guessed", f"{HOOK}'hunter2'"),
    ("webhooks.0.secret", "guessed", f"{HOOK}'whsec_c2hvcnQ='"),
    # images that are lost, or go where nobody meant
    ("storage.database", "the path of a file", "[storage]\ndatabase = 'sqlite:///:memory:'"),
    ("storage.blobs", "the server's spool", "[storage]\nblobs = 'file:data/spool'"),
    ("storage.blobs", "the server's keys", "[storage]\nblobs = 'file:data/keys/blobs'"),
    ("storage.keep", "not available", "[storage]\nkeep = 'until-delivered'"),
    ("uploads.reserve_bytes", "whole disk", f"[uploads]\nreserve_bytes = {2**62}"),
    ("uploads.expires_after_days", "at most 36500", "[uploads]\nexpires_after_days = inf"),
    ("forward.destinations.0", "this server itself", DESTINATION),
    ("forward.destinations.0", "this server itself", f"{WIDE}{DESTINATION}"),
    ("dicom.port", "http.port too", "[dicom]\nport = 8080"),
    # what is not read is not kept to
    ("dicom.require_know_peers", "no such setting", "[dicom]\nrequire_know_peers = true"),
]


@pytest.mark.parametrize(("key", "why", "text"), UNSAFE, ids=[f"{key} {why}" for key, why, _ in UNSAFE])
def test_an_unsafe_setting_is_refused_at_start(tmp_path: Path, key: str, why: str, text: str) -> None:
    (tmp_path / "packhorse.toml").write_text(text)
    refused(tmp_path, key, why, commands=(("serve",),))
    assert list(tmp_path.iterdir()) == [tmp_path / "packhorse.toml"]


BOTH = (("serve",), ("config", "check"))


def refused(
    folder: Path, key: str, why: str, *words: str, commands: tuple[tuple[str, ...], ...] = BOTH
) -> None:
    """`serve`, and `config check` too, end with 2 and say why in a line."""
    for command in commands:
        told = packhorse(folder, *command, *words)
        assert told.returncode == 2 and not told.stdout, told.stderr
        assert told.stderr.startswith(f"configuration: {key}: ") and why in told.stderr, told.stderr
        assert len(told.stderr.splitlines()) == 1


PLACES = [
    ("storage.database", "data", 0o777, ""),
    ("storage.database", "data", 0o1777, ""),
    ("storage.blobs", "blobs", 0o777, "[storage]\nblobs = 'file:blobs'"),
    ("storage.database", "above", 0o777, "[storage]\ndatabase = 'sqlite:///above/data/p.db'"),
    ("storage.blobs", "above", 0o777, "[storage]\nblobs = 'file:above/blobs'"),
]


@pytest.mark.parametrize(("key", "folder", "mode", "text"), PLACES, ids=[f"{place[:3]}" for place in PLACES])
def test_a_place_where_others_may_write_is_refused_at_start(
    tmp_path: Path, key: str, folder: str, mode: int, text: str
) -> None:
    (tmp_path / "packhorse.toml").write_text(text)
    (tmp_path / folder).mkdir()
    (tmp_path / folder).chmod(mode)
    refused(tmp_path, key, f"every user of this machine may write into {tmp_path / folder}")
    (tmp_path / folder).chmod(0o700)
    assert packhorse(tmp_path, "config", "check").returncode == 0


def test_a_shared_folder_above_where_only_owners_may_rename_is_taken(tmp_path: Path) -> None:
    (tmp_path / "packhorse.toml").write_text("[storage]\ndatabase = 'sqlite:///above/data/p.db'")
    (tmp_path / "above").mkdir()
    (tmp_path / "above").chmod(0o1777)
    assert packhorse(tmp_path, "config", "check").returncode == 0


def test_a_configuration_that_others_may_write_is_refused_at_start(tmp_path: Path) -> None:
    config = tmp_path / "packhorse.toml"
    config.write_text("[http]\nport = 0")
    config.chmod(0o666)
    refused(tmp_path, "--config", "every user of this machine may write")
    config.chmod(0o644)
    assert packhorse(tmp_path, "config", "check").returncode == 0
    shutil.copy(config, tmp_path / "other.toml")
    (tmp_path / "other.toml").chmod(0o602)
    refused(tmp_path, "--config", "other.toml", "--config", "other.toml")


def test_a_misspelt_variable_is_refused_at_start(tmp_path: Path) -> None:
    told = packhorse(tmp_path, "serve", PACKHORSE__AUHT__MODE="token")
    assert told.returncode == 2 and "PACKHORSE__AUHT__MODE" in told.stderr


def test_at_least_twenty_of_them_are_known() -> None:
    assert len(UNSAFE) + len(PLACES) >= 20


def test_what_is_only_unwise_is_warned_of(tmp_path: Path) -> None:
    for text, words in (
        ("[dicom]\nhost = '0.0.0.0'\nrequire_known_peers = false", "under any AE title"),
        ("[dicom]\nhost = '0.0.0.0'", "none is listed"),
        ("[auth]\nmode = 'none'\n[http]\npublic_url = 'https://pacs.example'", "asks them who they are"),
    ):
        (tmp_path / "packhorse.toml").write_text(text)
        told = packhorse(tmp_path, "config", "check")
        assert told.returncode == 0 and words in told.stderr, told.stderr
