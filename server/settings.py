"""Every setting: its name, its default, and what it may be by itself. Paths are relative to the file. Reads no file."""

import base64
import binascii
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.errors import ConfigurationError

AUDIT_HEAD = "audit-head.jws"
Port = Annotated[int, Field(ge=0, le=65535)]


def _ae_title(text: str) -> str:
    if not 1 <= len(text.strip()) <= 16 or not text.isascii() or not text.isprintable() or "\\" in text:
        raise ValueError("must be 1 to 16 printable ASCII characters without a backslash")
    return text


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://[^/\s]+", text):
        raise ValueError("must be http:// or https:// and a host, without a path, or *")
    return text


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError("must be an address or a network, such as 10.1.0.0/16") from error
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that cannot be
        is_usable = False
    if not is_usable or re.search(r"\s", text):
        raise ValueError("must be http:// or https:// and a host")
    return text


def _url_or_nothing(text: str) -> str:
    return _url(text) if text else text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return text


def _webhook_secret(text: str) -> str:
    if text.startswith("whsec_"):
        try:
            base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error as error:
            raise ValueError("after whsec_ comes base64") from error
    return text


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Host = Annotated[str, Field(min_length=1)]
Origin = Annotated[str, AfterValidator(_origin)]
Network = Annotated[str, AfterValidator(_network)]


class Section(BaseModel):
    """A table of the file; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Http(Section):
    """`[http]`: where clients come in."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    public_url: Annotated[str, AfterValidator(_url_or_nothing)] = ""
    trusted_proxies: list[Network] = []
    cors_origins: list[Origin] = []
    tls_cert: str = ""
    tls_key: str = ""
    metrics_allow: list[Network] = []


class DicomPeer(Section):
    """`[[dicom.peers]]`: who may call."""

    ae_title: AeTitle
    host: Host
    port: Port = 104
    allow_from: list[Network] = []


class Dicom(Section):
    """`[dicom]`: the DICOM listener."""

    enabled: bool = True
    host: Host = "127.0.0.1"
    port: Port = 11112
    ae_title: AeTitle = "PACKHORSE"
    check_called_ae_title: bool = False
    require_known_peers: bool | None = None
    peers: list[DicomPeer] = []


class Storage(Section):
    """`[storage]`: where facts and bytes are kept."""

    database: str = "sqlite:///data/packhorse.db"
    blobs: str = "file:data/blobs"
    keep: Literal["forever", "until-delivered"] = "forever"


class Oidc(Section):
    """`[auth.oidc]`: whose JWTs are taken as bearers (OpenID Connect Core, RFC 7519)."""

    issuer: str = ""
    audience: str = ""
    jwks_url: str = ""
    algorithms: Annotated[list[Literal[
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"]],
        Field(min_length=1)] = ["RS256", "ES256"]
    clock_skew_s: Annotated[float, Field(ge=0, le=300)] = 60.0
    role_claim: Annotated[str, Field(min_length=1)] = "packhorse_role"
    site_claim: str = ""
    site: Annotated[str, AfterValidator(_name)] = "default"
    visit_claim: str = ""
    order_claim: str = ""
    user_claim: str = ""


class Auth(Section):
    """`[auth]`: who may come in."""

    mode: Literal["token", "none"] = "token"
    oidc: Oidc = Oidc()


class Audit(Section):
    """`[audit]`: the audit chain."""

    head: str = ""


class Uploads(Section):
    """`[uploads]`: limits of what comes in."""

    max_size_bytes: Annotated[int, Field(gt=0)] = 107_374_182_400
    expires_after_days: Annotated[float, Field(gt=0, le=36_500)] = 30
    accept_other: Literal["keep", "refuse"] = "keep"
    reserve_bytes: Annotated[int, Field(ge=0)] = 268_435_456
    max_open_per_principal: Annotated[int, Field(gt=0)] = 10_000
    max_staged_bytes_per_principal: Annotated[int, Field(gt=0)] = 1_099_511_627_776
    header_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    progress_floor_bytes_per_s: Annotated[int, Field(ge=0)] = 256
    progress_window_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    sync_wait_s: Annotated[float, Field(gt=0, le=60)] = 5.0


class Integrity(Section):
    """`[integrity]`: how often stored bytes are read again, and how fast."""

    scrub_every_days: Annotated[float, Field(ge=0, le=36_500)] = 30.0
    scrub_mib_per_s: Annotated[float, Field(gt=0, le=1_000_000)] = 20.0


class Orders(Section):
    """`[orders]`: what becomes of images whose patient or accession contradicts their order."""

    on_contradiction: Literal["flag", "quarantine"] = "flag"


class ForwardDestination(Section):
    """`[[forward.destinations]]`: a node that images are sent on to."""

    kind: str = "dicom"  # first, so that its refusal is told before that of another kind's fields
    name: Annotated[str, AfterValidator(_name)]
    ae_title: AeTitle
    host: Host
    port: Annotated[int, Field(ge=1, le=65535)]

    @model_validator(mode="before")
    @classmethod
    def _available(cls, values: Any) -> Any:  # what TOML gave, not yet checked
        kind = values.get("kind", "dicom") if isinstance(values, dict) else "dicom"
        if kind in ("stow", "packhorse"):
            raise ValueError(f"kind {kind} is not available in this version")
        if kind != "dicom":
            raise ValueError(f"kind {kind} does not exist: it is dicom, stow or packhorse")
        return values


class ForwardRule(Section):
    """`[[forward.rules]]`: without conditions, everything."""

    destination: str


class Forward(Section):
    """`[forward]`."""

    first_retry_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    destinations: list[ForwardDestination] = []
    rules: list[ForwardRule] = []


class Log(Section):
    """`[log]`: how the log is written."""

    format: Literal["json", "text"] = "json"


class Events(Section):
    """`[events]`: what is told to those who listen."""

    study_stable_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    max_streams: Annotated[int, Field(gt=0, le=100_000)] = 200
    max_streams_per_principal: Annotated[int, Field(gt=0, le=100_000)] = 20


class Webhook(Section):
    """`[[webhooks]]`: who is told what happens."""

    url: Annotated[str, Field(max_length=2000), AfterValidator(_url)]
    secret: Annotated[str, Field(repr=False), AfterValidator(_webhook_secret)]  # empty: calls go unsigned
    events: list[Literal[
        "*", "session.synced", "session.failed", "image.stored", "study.stable", "order.complete", "forward.delivered",
        "forward.parked", "integrity.alarm"]] = ["*"]


class Settings(BaseSettings):
    """All of it. `config.load` is the way to make one."""

    model_config = SettingsConfigDict(
        env_prefix="PACKHORSE__", env_nested_delimiter="__", extra="forbid", frozen=True)
    http: Http = Http()
    dicom: Dicom = Dicom()
    storage: Storage = Storage()
    auth: Auth = Auth()
    audit: Audit = Audit()
    uploads: Uploads = Uploads()
    integrity: Integrity = Integrity()
    orders: Orders = Orders()
    forward: Forward = Forward()
    log: Log = Log()
    events: Events = Events()
    webhooks: list[Webhook] = []
    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file."""
        return env_settings, init_settings

    def place(self, folder: Path) -> None:
        """Paths are relative to `folder` from now on; told by whoever made the settings, before a path is asked for."""
        self._base = folder

    @property
    def base_path(self) -> Path:
        """The folder that paths are relative to."""
        return self._base

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return self._base / self.storage.database.removeprefix("sqlite:///")

    @property
    def blobs_path(self) -> Path:
        """The folder of the blobs."""
        return self._base / self.storage.blobs.removeprefix("file:").removeprefix("//")

    @property
    def data_path(self) -> Path:
        """The folder of everything else: the admin token, the signing key, the spool."""
        return self.database_path.parent

    @property
    def audit_head_path(self) -> Path:
        """The file of the audit chain's signed head."""
        return self._base / self.audit.head if self.audit.head else self.data_path / AUDIT_HEAD

    @property
    def require_known_peers(self) -> bool:
        """On loopback any AE title may call, elsewhere only listed peers (contract §12)."""
        wanted = self.dicom.require_known_peers
        return not is_loopback(self.dicom.host) if wanted is None else wanted


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def peer_networks(peer: DicomPeer) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """The networks that a peer may call from: `allow_from`, else its host. ConfigurationError."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in peer.allow_from or [peer.host])
    except ValueError as error:
        raise ConfigurationError(
            f"dicom.peers: {peer.ae_title} needs allow_from, for its host is a name, not an address") from error
