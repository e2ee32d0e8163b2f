"""A local authority, and server certificates that it signs, for clinics that have no other. Keys are 0600.

Facts: browsers take no server certificate that is valid for more than 398 days, and look for names among the
alternative ones only. P-256 is what every client of the last ten years knows.
"""

import ipaddress
import re
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.errors import AppError, ConfigurationError
from server.private_files import replace_durably
from storage.records import now

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
BACKDATED = timedelta(hours=1)
"""Clocks of clients may be a little behind."""
Key = ec.EllipticCurvePrivateKey
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""Of a host name (RFC 1123 §2.1)."""
NAME_LENGTH = 253


def host_of(text: str) -> str:
    """A host name, with `*.` before it or not, or an address, as certificates hold it. ConfigurationError."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if "://" in text or re.fullmatch(r"[^:]+:\d+", text):
        raise ConfigurationError(f"--host: {text} is more than a name: give the name only, without https:// and port")
    try:
        name = text.encode("idna").decode().lower()
    except ValueError:
        name = ""
    labels = name.removeprefix("*.").split(".")
    is_number = labels[-1].isdecimal()  # no domain ends so: it is meant to be an address
    if len(name) > NAME_LENGTH or is_number or not all(LABEL.fullmatch(one) for one in labels):
        raise ConfigurationError(f"--host: {text} is neither the name of a host nor an address")
    return name


class Authority:
    """The authority in `folder`: `authority.crt` is to be trusted, `authority.key` to be kept from everybody."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate_path = folder / "authority.crt"
        self._key_path = folder / "authority.key"

    def make(self, name: str) -> bool:
        """Make it, unless it is there: then clients trust it already. Whether it is new."""
        if self.certificate_path.exists() and self._key_path.exists():
            return False
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(f"Packhorse authority of {name}"[:64])
        certificate = (
            _certificate(subject, subject, key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256()))
        replace_durably(self._key_path, _pem(key))
        replace_durably(self.certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
        return True

    def hosts(self) -> list[str]:
        """The names and addresses of the server certificate that is there; none where there is none. AppError."""
        path = self._folder / "server.crt"
        if not path.exists():
            return []
        try:
            there = x509.load_pem_x509_certificate(path.read_bytes())
            names = there.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound) as error:
            raise AppError(f"{path} is no certificate whose names could be kept: name them with --host") from error
        return [str(one.value) for one in names if isinstance(one, x509.DNSName | x509.IPAddress)]

    def issue(self, hosts: list[str]) -> tuple[Path, Path]:
        """A new server certificate for these, each of `host_of`: (certificate, key), in place of those from before."""
        try:
            authority = x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
            signer = serialization.load_pem_private_key(self._key_path.read_bytes(), None)
        except ValueError as error:
            raise AppError(f"the authority in {self._folder} cannot be read: move it away to make another") from error
        if not isinstance(signer, Key):
            raise AppError(f"the authority in {self._folder} is not of our making")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _certificate(_named(hosts[0][:64]), authority.subject, key, SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256()))
        paths = self._folder / "server.crt", self._folder / "server.key"
        replace_durably(paths[1], _pem(key))
        replace_durably(paths[0], certificate.public_bytes(serialization.Encoding.PEM))
        return paths


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(subject: x509.Name, issuer: x509.Name, key: Key, days: int) -> x509.CertificateBuilder:
    moment = now()
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(moment - BACKDATED)
            .not_valid_after(moment + timedelta(days=days) - BACKDATED))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates, encipher_only=False,
        decipher_only=False)


def _pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
