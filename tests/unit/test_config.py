"""Bad configuration: one clear message that names the key, exit 2, and nothing was started or made."""

import socket
from pathlib import Path

import pytest

from server import config
from server.errors import ConfigurationError
from tests.server import Server, packhorse

BAD = [
    ("[http]\nprot = 1", "http.prot"),
    ("[http]\nport = 70000", "http.port"),
    ("[http]\nport = 'x'", "http.port"),
    ("[nonsense]\na = 1", "nonsense"),
    ("[http]\ncors_origins = ['https://x/path']", "http.cors_origins"),
    ("[http]\ntrusted_proxies = ['the proxy']", "http.trusted_proxies"),
    ("[http]\ntls_cert = 'x'", "http.tls_cert"),
    ("[http]\npublic_url = 'example.org'", "http.public_url"),
    ("[storage]\ndatabase = 'postgresql://u@h/n'", "storage.database"),
    ("[storage]\nblobs = 's3://b'", "storage.blobs"),
    ("[storage]\nkeep = 'until-delivered'", "storage.keep"),
    ("[storage]\nkeep = 'never'", "storage.keep"),
    ("[auth]\nmode = 'none'\n[http]\nhost = '0.0.0.0'", "auth.mode"),
    ("[auth]\nmode = 'none'\n[dicom]\nhost = '0.0.0.0'", "auth.mode"),
    ("[auth]\nmode = 'open'", "auth.mode"),
    ("[auth.oidc]\nissuer = 'https://login.example'", "auth.oidc.audience"),
    ("[auth.oidc]\naudience = 'packhorse'", "auth.oidc.issuer"),
    ("[auth.oidc]\nissuer = 'http://login.example'\naudience = 'a'", "auth.oidc.issuer"),
    ("[auth.oidc]\nissuer = 'https://'\naudience = 'a'", "auth.oidc.issuer"),
    ("[auth.oidc]\nissuer = 'https://x'\naudience = 'a'\njwks_url = 'http://x/keys'", "auth.oidc.jwks_url"),
    ("[auth.oidc]\nissuer = 'https://x'\naudience = 'a'\nalgorithms = ['none']", "auth.oidc.algorithms"),
    ("[auth.oidc]\nissuer = 'https://x'\naudience = 'a'\nalgorithms = ['HS256']", "auth.oidc.algorithms"),
    ("[auth.oidc]\nissuer = 'https://x'\naudience = 'a'\nalgorithms = []", "auth.oidc.algorithms"),
    ("[auth.oidc]\nclock_skew_s = 3600", "auth.oidc.clock_skew_s"),
    ("[auth]\nmode = 'none'\n[auth.oidc]\nissuer = 'https://x'\naudience = 'a'", "auth.oidc.issuer"),
    ("[dicom]\nae_title = 'A TITLE THAT IS TOO LONG'", "dicom.ae_title"),
    ("[[dicom.peers]]\nae_title = 'A'\nhost = 'h'\nallow_from = ['x']", "dicom.peers.0.allow_from"),
    ("[[forward.rules]]\ndestination = 'x'", "forward.rules"),
    ("[[webhooks]]\nurl = 'https://x'", "webhooks.0.secret"),
    ("[[webhooks]]\nurl = 'ftp://x'\nsecret = 'a'", "webhooks.0.url"),
    ("[[webhooks]]\nurl = 'https://x'\nsecret = 'whsec_!'", "webhooks.0.secret"),
    ("[[webhooks]]\nurl = 'https://x'\nsecret = 'a'\nevents = ['image.seen']", "webhooks.0.events"),
    (
        "[[forward.destinations]]\nname = 'a'\nkind = 'stow'\nae_title = 'A'\nhost = 'h'\nport = 1",
        "forward.destinations",
    ),
    ("[uploads]\nmax_size_bytes = 0", "uploads.max_size_bytes"),
    ("not toml", "packhorse.toml"),
    ("[http]\nhost = ''", "http.host"),
    ("[http]\npublic_url = 'http://'", "http.public_url"),
    ("[storage]\ndatabase = 'sqlite:///'", "storage.database"),
    ("[storage]\ndatabase = 'sqlite:///:memory:'", "storage.database"),
    ("[storage]\nblobs = 'file:'", "storage.blobs"),
    ("[storage]\nblobs = 'file://data'", "storage.blobs"),
    ("[uploads]\nexpires_after_days = inf", "uploads.expires_after_days"),
    ("[forward]\nfirst_retry_s = inf", "forward.first_retry_s"),
]


@pytest.mark.parametrize(("text", "key"), BAD, ids=[key for _, key in BAD])
def test_a_bad_setting_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        config.load(path)
    assert key in refusal.value.detail and "\n" not in refusal.value.detail
    assert list(tmp_path.iterdir()) == [path]


def test_a_kind_of_destination_that_has_not_landed_is_said_so_whatever_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text("[[forward.destinations]]\nname = 'a'\nkind = 'stow'\nurl = 'https://x'")
    with pytest.raises(ConfigurationError, match=r"forward\.destinations\.0: kind .*not available in this version"):
        config.load(path)


WORDS = [
    ("[[webhooks]]\nurl = 'emr'\nsecret = 'a'", "webhooks.0.url: must be http:// or https:// and a host"),
    ("[[webhooks]]\nurl = 'http://h:99999/'\nsecret = 'a'", "webhooks.0.url: must be http:// or https:// and a host"),
    ("[http]\nport = 'x'", "http.port: must be a whole number"),
    ("[http]\nport = 70000", "http.port: must be at most 65535"),
    ("[http]\nhost = ''", "http.host: is too short: the least is 1"),
    ("http = 1", "http: must be a table"),
    ("webhooks = 1", "webhooks: must be a list"),
    ("[auth]\nmode = 'open'", "auth.mode: must be 'token' or 'none'"),
    (
        "[http]\ntrusted_proxies = ['the proxy']",
        "http.trusted_proxies.0: must be an address or a network, such as 10.1.0.0/16",
    ),
    ("[http]\ntls_cert = 'x'", "http.tls_key: goes with http.tls_cert"),
    (
        "[[forward.destinations]]\nname = 'a b'\nae_title = 'A'\nhost = 'h'\nport = 1",
        "forward.destinations.0.name: must be 1 to 64 of A-Z a-z 0-9 . _ -",
    ),
    ("[[webhooks]]\nurl = 'https://x'", "webhooks.0.secret: is missing"),
]


@pytest.mark.parametrize(("text", "words"), WORDS, ids=[words.split(":")[0] for _, words in WORDS])
def test_a_bad_setting_is_told_in_words_for_people(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        config.load(path)
    assert refusal.value.detail == words


def test_why_a_file_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    (tmp_path / "no.toml").write_text("not toml")
    (tmp_path / "folder").mkdir()
    for name, why in (("folder", "folder"), ("latin.toml", "not UTF-8"), ("no.toml", "not TOML"), ("no", "no file")):
        with pytest.raises(ConfigurationError, match=why) as refusal:
            config.load(tmp_path / name)
        assert str(tmp_path / name) in refusal.value.detail


@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ("[http]\nhost = '0.0.0.0'", True),
        ("[http]\nhost = '0.0.0.0'\ntrusted_proxies = ['10.0.0.1']", False),
        ("", False),
    ],
)
def test_tokens_in_clear_text_beyond_loopback_are_warned_of(tmp_path: Path, text: str, is_warned: bool) -> None:
    (tmp_path / "packhorse.toml").write_text(text)
    told = packhorse(tmp_path, "config", "check")
    assert told.returncode == 0 and ("unencrypted" in told.stderr) is is_warned


def test_a_variable_that_is_one_underscore_short_is_warned_of(tmp_path: Path) -> None:
    told = packhorse(tmp_path, "config", "check", PACKHORSE_HTTP_PORT="9", PACKHORSE_EDGE_TOKEN="x")
    assert told.returncode == 0 and "PACKHORSE_HTTP_PORT" in told.stderr and "EDGE" not in told.stderr
    assert ":8080" in told.stdout


def test_without_auth_a_listener_that_is_off_is_not_asked_for_its_address(tmp_path: Path) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text("[auth]\nmode = 'none'\n[dicom]\nenabled = false\nhost = '0.0.0.0'")
    assert config.load(path).auth.mode == "none"


def test_paths_are_relative_to_the_file_or_absolute(tmp_path: Path) -> None:
    path = tmp_path / "packhorse.toml"
    path.write_text("\ufeff[storage]\ndatabase = 'sqlite:///a/b.db'\nblobs = 'file:///srv/blobs'")  # with a BOM
    settings = config.load(path)
    assert settings.database_path == tmp_path / "a/b.db" and settings.data_path == tmp_path / "a"
    assert settings.blobs_path == Path("/srv/blobs")


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("PACKHORSE__HTP__PORT", "1", "PACKHORSE__HTP__PORT"),
        ("PACKHORSE__HTTP__PROT", "1", "http.prot"),
        ("PACKHORSE__HTTP__PORT", "", "http.port"),
        ("PACKHORSE__HTTP__CORS_ORIGINS", "https://x", "PACKHORSE__HTTP__CORS_ORIGINS"),
    ],
)
def test_a_bad_variable_of_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refusal:
        config.load()
    assert key in refusal.value.detail and "\n" not in refusal.value.detail


def test_the_command_exits_2_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "packhorse.toml").write_text("[http]\nprot = 1")
    answer = packhorse(tmp_path, "serve")
    assert (answer.returncode, answer.stderr.strip()) == (2, "configuration: http.prot: there is no such setting")
    assert not (tmp_path / "data").exists()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    answer = packhorse(tmp_path, "config", "check", PACKHORSE__HTTP__PORT="9123")
    assert "127.0.0.1:9123" in answer.stdout
    assert packhorse(tmp_path, "config", "check", PACKHORSE__HTTP__PORT="x").returncode == 2
    misspelt = packhorse(tmp_path, "config", "check", PACKHORSE__HTP__PORT="9123")
    assert misspelt.returncode == 2 and "PACKHORSE__HTP__PORT" in misspelt.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    answer = packhorse(tmp_path, "serve", "--config", "nowhere.toml")
    assert answer.returncode == 2 and "nowhere.toml" in answer.stderr


@pytest.mark.parametrize("key", ["http.port", "dicom.port"])
def test_a_busy_port_exits_1_naming_it(tmp_path: Path, key: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        ports = {"http.port": "0", "dicom.port": "0", key: str(busy.getsockname()[1])}
        (tmp_path / "packhorse.toml").write_text(
            f"[http]\nport = {ports['http.port']}\n[dicom]\nport = {ports['dicom.port']}\n"
        )
        answer = packhorse(tmp_path, "serve")
        assert answer.returncode == 1 and key in answer.stderr and ports[key] in answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_second_server_on_the_same_data_is_refused(server: Server) -> None:
    answer = server.command("serve")
    assert answer.returncode == 1 and "another server" in answer.stderr
