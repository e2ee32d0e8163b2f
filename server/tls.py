"""The certificate that HTTPS is served with: read at the start, and again when told so; when it ends. Makes none."""

import ssl
import stat
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509

from server.errors import ConfigurationError
from server.settings import Settings
from storage.records import now

log = structlog.get_logger()
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2 only what keeps its secrets when the key is lost later (RFC 9325 §4.2); TLS 1.3 has no others."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO
ENDS_SOON = timedelta(days=30)
RENEW = "packhorse tls init renews one of its own making, for the same names; then send SIGHUP"


class Certificate:
    """`http.tls_cert` and `http.tls_key` as a context for connections to come; read by who serves them alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self.ends_at: datetime | None = None
        """Until when clients take the one that is served with; None where there is none."""

    def load(self) -> ssl.SSLContext | None:
        """Read the files; None where the settings name none. ConfigurationError where they cannot be used."""
        if self._settings.http.tls_cert:
            self._context = _loaded(self._settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self.ends_at = leaf(self._settings).not_valid_after_utc
        return self._context

    def warning(self) -> str | None:
        """What should be known of the end of the one that was loaded; None where that is far."""
        if self.ends_at is None or self.ends_at > now() + ENDS_SOON:
            return None
        ended = "ended" if self.ends_at <= now() else "ends"
        refused = ", and clients refuse it" if ended == "ended" else ""
        return f"http.tls_cert: the certificate {ended} on {self.ends_at:%Y-%m-%d %H:%M} UTC{refused}: {RENEW}"

    def reread(self) -> None:
        """Take what the files hold now for new connections; where that cannot be used, go on with what there is."""
        if self._context is None:
            return
        try:
            _loaded(self._settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            _loaded(self._settings, self._context)
            self.ends_at = leaf(self._settings).not_valid_after_utc
        except ConfigurationError as error:
            log.error("certificate.unusable", reason=error.detail, kept="the certificate from before")
        else:
            log.info("certificate.read", ends_at=str(self.ends_at))
            if (warning := self.warning()) is not None:
                log.warning("configuration.warning", detail=warning)


def _loaded(settings: Settings, context: ssl.SSLContext) -> ssl.SSLContext:
    certificate, key = settings.base_path / settings.http.tls_cert, settings.base_path / settings.http.tls_key
    _check_readable("http.tls_cert", certificate)
    _check_readable("http.tls_key", key)
    if key.stat().st_mode & OTHERS:
        raise ConfigurationError(f"http.tls_key: others on this machine may read {key}: chmod 600 it")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # without a word of its own OpenSSL would ask for a passphrase at the terminal
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"http.tls_cert: {certificate} and {key} are no certificate and its key, both in PEM, without a passphrase"
        ) from error
    return context


def leaf(settings: Settings) -> x509.Certificate:
    """The server's own certificate in the file, which is its first. ConfigurationError."""
    path = settings.base_path / settings.http.tls_cert
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"http.tls_cert: {path} cannot be read as a certificate") from error


def _check_readable(setting: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror}") from error
