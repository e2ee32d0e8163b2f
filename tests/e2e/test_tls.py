"""HTTPS with a certificate of `packhorse tls init`: uploads, takeovers, renewal at SIGHUP, and what is refused."""

import io
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tusclient.client import TusClient
from urllib3.exceptions import InsecureRequestWarning

from server.authority import host_of
from server.errors import ConfigurationError
from tests.server import Server, create, packhorse, patch, sha256, upload_metadata, upload_url
from tests.support import eventually, free_port

MIB = 1024 * 1024


def secured(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Server:
    """A server that speaks HTTPS, whose authority this process trusts."""
    folder.mkdir(parents=True)
    (folder / "packhorse.toml").write_text("")
    made = packhorse(folder, "tls", "init", "--host", "images.clinic.example", "--config", "packhorse.toml")
    assert made.returncode == 0, made.stderr
    pasted = re.search(r'\[http\]\n(tls_cert = "\S+"\ntls_key = "\S+"\n)', made.stdout)
    assert pasted, made.stdout
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "data" / "tls" / "authority.crt"))
    return Server(folder, http=pasted[1], arguments=arguments).start()


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = secured(tmp_path / "server", monkeypatch, *request.param)
    yield running
    assert running.stop() == 0
    assert "Traceback" not in (running.folder / "server.log").read_text()


def connection(server: Server, **options: ssl.TLSVersion) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(server.folder / "data" / "tls" / "authority.crt"))
    for name, value in options.items():
        setattr(context, name, value)
    plain = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=10)
    return context.wrap_socket(plain, server_hostname="images.clinic.example")


def serial(server: Server) -> int:
    with connection(server) as secure:
        found = secure.getpeercert(binary_form=True)
        assert found is not None
        return x509.load_der_x509_certificate(found).serial_number


def test_a_stock_tus_client_uploads_over_https(server: Server) -> None:
    assert server.url.startswith("https://")
    content = os.urandom(5 * MIB + 7)
    client = TusClient(f"{server.url}/files", headers=server.auth)
    uploader = client.uploader(file_stream=io.BytesIO(content), chunk_size=2 * MIB, metadata={"filename": "a.bin"})
    uploader.upload()
    assert uploader.url.startswith("https://")
    found = requests.get(uploader.url, headers=server.auth, timeout=30)
    assert sha256(found.content) == sha256(content)


def test_a_newcomer_takes_over_what_a_connection_holds(server: Server) -> None:
    content = os.urandom(8 * MIB)
    session = create(server, content, file_name="a.bin")
    url = upload_url(server, session["session_id"])
    head = (
        f"PATCH {url.removeprefix(server.url)} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Type: application/offset+octet-stream\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with connection(server) as holder:
        holder.sendall(head.encode() + content[: 3 * MIB])
        # what has been read of the stream when the newcomer comes is kept, whatever lay in buffers on the way
        offset = int(server.tus("HEAD", url).headers["Upload-Offset"])
    while offset < len(content):
        answer = patch(server, url, content[offset : offset + 3 * MIB], offset)
        assert answer.status_code == 204, answer.text
        offset = int(answer.headers["Upload-Offset"])
    assert answer.headers["Packhorse-Status"] == "SYNCED"


async def test_a_hangup_takes_the_new_certificate_and_keeps_the_old_where_that_is_none(server: Server) -> None:
    before, log = serial(server), server.folder / "server.log"
    assert server.process is not None
    made = server.command("tls", "init", "--host", "images.clinic.example")
    assert made.returncode == 0 and "clients trust it already" in made.stdout
    assert serial(server) == before
    server.process.send_signal(signal.SIGHUP)
    await eventually(lambda: all(serial(server) != before for _ in range(8)))
    renewed = serial(server)
    (server.folder / "data" / "tls" / "server.crt").write_text("no certificate")
    server.process.send_signal(signal.SIGHUP)
    await eventually(partial(_told, log, "certificate.unusable"))
    assert {serial(server) for _ in range(8)} == {renewed}


def _told(log: Path, words: str) -> bool:
    return words in log.read_text()


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = secured(tmp_path / "server", monkeypatch)
    yield running
    running.stop()


def test_old_versions_plain_http_and_strangers_are_refused(one: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with connection(one) as secure:
        assert secure.version() == "TLSv1.3"
    with connection(one, maximum_version=ssl.TLSVersion.TLSv1_2) as secure:
        assert secure.version() == "TLSv1.2" and str(secure.cipher()).count("ECDHE") == 1
    with pytest.warns(DeprecationWarning), pytest.raises((ssl.SSLError, ConnectionError)):
        connection(one, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1).close()
    with pytest.raises(requests.ConnectionError):
        requests.get(one.url.replace("https:", "http:"), timeout=5)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{one.url}/healthz", timeout=5)


def test_what_clients_are_told_is_https_and_creation_with_upload_works(one: Server) -> None:
    headers = {
        "Upload-Length": "5",
        "Upload-Metadata": upload_metadata(filename="a.bin"),
        "Content-Type": "application/offset+octet-stream",
    }
    made = one.tus("POST", "/files", b"12345", **{name.replace("-", "_"): value for name, value in headers.items()})
    assert made.status_code == 201 and made.headers["Location"].startswith(one.url + "/files/")
    assert made.headers["Packhorse-Status"] == "SYNCED"


def test_keys_are_private_and_names_are_in_the_certificate(one: Server) -> None:
    folder = one.folder / "data" / "tls"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    made = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["images.clinic.example", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days <= 398


def test_openssl_finds_the_chain_in_order(one: Server) -> None:
    folder = one.folder / "data" / "tls"
    words = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    told = subprocess.run([*words, folder / "authority.crt", folder / "server.crt"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("absent", "http.tls_cert: "),
        ("loose", "http.tls_key: others on this machine may read"),
        ("swapped", "are no certificate and its key"),
        ("half", "http.tls_key: goes with http.tls_cert"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_told_with_exit_2(tmp_path: Path, change: str, told: str) -> None:
    config = tmp_path / "packhorse.toml"
    config.write_text("")
    assert packhorse(tmp_path, "tls", "init").returncode == 0
    certificate, key = "data/tls/server.crt", "data/tls/server.key"
    if change == "absent":
        (tmp_path / certificate).unlink()
    elif change == "loose":
        (tmp_path / key).chmod(0o644)
    elif change == "swapped":
        certificate = "data/tls/authority.crt"
    line = f'tls_key = "{key}"\n' if change != "half" else ""
    config.write_text(f'[http]\ntls_cert = "{certificate}"\n{line}')
    for words in (("config", "check"), ("serve",)):
        refused = packhorse(tmp_path, *words)
        assert refused.returncode == 2 and told in refused.stderr, refused.stderr


# --- when it ends -------------------------------------------------------------------------------------------


def ending(folder: Path, days: float) -> datetime:
    """In the place of the server's certificate, one that ends in so many days; gives when."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images.clinic.example")])
    ends_at = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(ends_at - timedelta(days=100))
            .not_valid_after(ends_at).sign(key, hashes.SHA256()))
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "data" / "tls" / "server.crt").write_bytes(made.public_bytes(pem))
    (folder / "data" / "tls" / "server.key").write_bytes(secret)
    return ends_at


def found_by_doctor(server: Server) -> list[dict[str, str]]:
    told = server.command("doctor", "--json")
    return [one for one in json.loads(told.stdout)["findings"] if one["check"] == "certificate"]


def metric(server: Server) -> float:
    # the new certificate is of no authority: whoever measures it is told not to mind
    (found,) = re.findall(
        r"^packhorse_certificate_expires_timestamp_seconds (\S+)",
        requests.get(f"{server.url}/metrics", headers=server.auth, timeout=5, verify=False).text, re.MULTILINE)
    return float(found)


async def test_the_end_of_a_certificate_is_told_before_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = secured(tmp_path / "server", monkeypatch)
    running.stop()
    running.start(free_port())
    try:
        assert [one["verdict"] for one in found_by_doctor(running)] == ["fine"]
        assert "ends on" not in running.command("config", "check").stderr
        ends_at = ending(running.folder, 29)
        soon, other = found_by_doctor(running)
        assert soon["verdict"] == "warning" and f"it ends on {ends_at:%Y-%m-%d %H:%M}" in soon["what"]
        assert "in 28 days" in soon["what"] and "packhorse tls init" in soon["remedy"]
        assert other["verdict"] == "warning" and "SIGHUP" in other["remedy"]
        checked = running.command("config", "check")
        assert checked.returncode == 0 and "the certificate ends on" in checked.stderr
        assert running.process is not None
        running.process.send_signal(signal.SIGHUP)
        await eventually(partial(_told, running.folder / "server.log", "the certificate ends on"))
        with pytest.warns(InsecureRequestWarning):
            assert metric(running) == ends_at.timestamp()
        assert [one["verdict"] for one in found_by_doctor(running)] == ["warning"]
    finally:
        running.stop()


def test_a_certificate_that_has_ended_or_does_not_fit_is_wrong(tmp_path: Path) -> None:
    server = Server(tmp_path)
    (tmp_path / "packhorse.toml").write_text("")
    assert server.command("tls", "init").returncode == 0
    lines = 'tls_cert = "data/tls/server.crt"\ntls_key = "data/tls/server.key"\n'
    (tmp_path / "packhorse.toml").write_text(f"[http]\n{lines}")
    ending(tmp_path, -1)
    (ended,) = found_by_doctor(server)
    assert ended["verdict"] == "wrong" and "it ended on" in ended["what"] and "tls init" in ended["remedy"]
    assert "the certificate ended on" in server.command("config", "check").stderr
    certificate = (tmp_path / "data" / "tls" / "server.crt").read_bytes()
    ending(tmp_path, 90)
    (tmp_path / "data" / "tls" / "server.crt").write_bytes(certificate)
    (misfit,) = found_by_doctor(server)
    assert misfit["verdict"] == "wrong" and "no certificate and its key" in misfit["what"] and misfit["remedy"]


# --- what is refused ----------------------------------------------------------------------------------------

NO_HOSTS = {
    "neither the name": ["a" * 70 + ".example", "bad host!", "", "*", "a..b", "-a.example", "a_b", "10.1.2.300",
                         "a.*.example", "a" * 50 + (".a" * 110), "images.clinic.example/", "host."],
    "the name only": ["https://images.clinic.example", "images.clinic.example:8443"],
}


def test_a_host_that_is_none_is_told_and_the_good_certificate_stays(tmp_path: Path) -> None:
    assert packhorse(tmp_path, "tls", "init", "--host", "*.Clinic.example", "--host", "2001:db8::1").returncode == 0
    before = (tmp_path / "data" / "tls" / "server.crt").read_bytes()
    names = x509.load_pem_x509_certificate(before).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["*.clinic.example", "localhost"]
    for words, texts in NO_HOSTS.items():
        refused = packhorse(tmp_path, "tls", "init", f"--host={texts[0]}")
        assert refused.returncode == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1
        for text in texts:
            with pytest.raises(ConfigurationError, match=words):
                host_of(text)
    assert (tmp_path / "data" / "tls" / "server.crt").read_bytes() == before


def test_where_nothing_is_yet_a_host_that_is_none_makes_nothing(tmp_path: Path) -> None:
    assert packhorse(tmp_path, "tls", "init", "--host", "bad host!").returncode == 2
    assert list(tmp_path.iterdir()) == []


async def test_a_renewal_without_names_keeps_those_of_before(one: Server) -> None:
    before = serial(one)
    renewed = one.command("tls", "init")
    assert renewed.returncode == 0 and "images.clinic.example" in renewed.stdout, renewed.stdout
    assert "No longer in it" not in renewed.stdout and one.process is not None
    one.process.send_signal(signal.SIGHUP)
    await eventually(lambda: serial(one) != before)  # for images.clinic.example, or the handshake would fail
    dropped = one.command("tls", "init", "--host", "pictures.clinic.example")
    assert "No longer in it: images.clinic.example." in dropped.stdout
    one.process.send_signal(signal.SIGHUP)
    await eventually(partial(_told, one.folder / "server.log", "certificate.read"))
    await eventually(partial(_is_refused, one))
    (one.folder / "data" / "tls" / "server.crt").write_text("no certificate")
    refused = one.command("tls", "init")
    assert refused.returncode == 1 and "name them with --host" in refused.stderr
    assert one.command("tls", "init", "--host", "images.clinic.example").returncode == 0


def _is_refused(server: Server) -> bool:
    try:
        connection(server).close()
    except ssl.SSLCertVerificationError as error:
        return "Hostname mismatch" in str(error)
    return False
