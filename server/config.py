"""Reads the settings from TOML and the environment, and refuses what they cannot mean together.

Environment: `PACKHORSE__HTTP__PORT=8080` overrides `port` in `[http]`. Makes nothing on disk.
"""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import SettingsError

from server.errors import ConfigurationError
from server.safety import refuse_unsafe, refuse_unsafe_file, refuse_unsafe_places
from server.settings import Oidc, Section, Settings, is_loopback, peer_networks
from server.wording import first_fault

DEFAULT_FILE = Path("packhorse.toml")


def load(config_file: Path | None = None) -> Settings:
    """The settings of `config_file`, else of ./packhorse.toml, else the embedded default.

    ConfigurationError names the key that is wrong.
    """
    _check_environment()
    path = config_file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    values = _read(path) if path is not None else {}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        key, _, why = first_fault(error, field="setting", thing="a table")
        raise ConfigurationError(f"{key}: {why}") from error
    except SettingsError as error:
        raise ConfigurationError(f"environment: {_unreadable_variable()} must be written as JSON") from error
    settings.place(path.resolve().parent if path is not None else Path.cwd())
    _check(settings)
    refuse_unsafe(settings)
    return settings


def restored(values: dict[str, Any], base_path: Path, *, http_port: int) -> Settings:
    """The settings of a parent process, which it has checked; `http_port` is the one that it keeps for its children."""
    settings = Settings(**values)
    settings = settings.model_copy(update={"http": settings.http.model_copy(update={"port": http_port})})
    settings.place(base_path)
    return settings


def warnings_of(settings: Settings) -> list[str]:
    """What is usable, and should be known."""
    found = [f"webhooks: {one.url} has no secret, so its calls go unsigned: anybody could make them up"
             for one in settings.webhooks if not one.secret]
    http = settings.http
    if not is_loopback(http.host) and not http.trusted_proxies and not http.tls_cert:
        found.append(f"http.host: on {http.host} tokens and images go over the net unencrypted: listen on loopback "
                     "behind a proxy that speaks TLS and name it in http.trusted_proxies, or run packhorse tls init")
    dicom = settings.dicom
    if dicom.enabled and not is_loopback(dicom.host):
        if not settings.require_known_peers:
            found.append(f"dicom.require_known_peers: on {dicom.host} anybody who can reach it may send images, under "
                         "any AE title: list the senders in [[dicom.peers]] and leave this setting out")
        elif not dicom.peers:
            found.append(f"dicom.peers: on {dicom.host} only listed peers may call, and none is listed, so all are "
                         "refused")
    if settings.auth.mode == "none" and http.public_url and not is_loopback(urlsplit(http.public_url).hostname or ""):
        found.append("auth.mode: \"none\" lets everybody in whom the proxy of http.public_url lets through: use "
                     "\"token\" unless it asks them who they are")
    found += [f"environment: {name} is not read: a setting has two underscores, as in PACKHORSE__HTTP__PORT"
              for name in sorted(os.environ) if _is_one_underscore_short(name.upper())]
    return found


def _is_one_underscore_short(name: str) -> bool:
    return name.startswith("PACKHORSE_") and not name.startswith(("PACKHORSE__", "PACKHORSE_EDGE_"))


def check_places(settings: Settings) -> None:
    """Whether data can be kept where the settings say, as far as can be told without making anything.

    ConfigurationError.
    """
    places = {"storage.database": settings.data_path, "storage.blobs": settings.blobs_path,
              "audit.head": settings.audit_head_path.parent}
    for key, wanted in places.items():
        folder = next((one for one in (wanted, *wanted.parents) if _is_there(one)), Path("/"))
        if not folder.is_dir():
            raise ConfigurationError(f"{key}: {folder} is a file, where a folder is needed")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(f"{key}: this user may not write into {folder}")
    database = settings.database_path
    if database.is_dir():
        raise ConfigurationError(f"storage.database: {database} is a folder, where a file is needed")
    if database.exists() and not os.access(database, os.R_OK | os.W_OK):
        raise ConfigurationError(f"storage.database: this user may not read and write {database}")
    refuse_unsafe_places(settings)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above may not be looked into
        return False


def _check_environment() -> None:
    """A misspelt override must not be passed over in silence."""
    prefix = Settings.model_config["env_prefix"]
    for name in os.environ:
        if name.upper().startswith(prefix) and name[len(prefix):].split("__")[0].lower() not in Settings.model_fields:
            raise ConfigurationError(f"environment: {name} names no table of the configuration")


def _unreadable_variable() -> str:
    """The variable that holds a list or a table and is no JSON."""
    prefix = Settings.model_config["env_prefix"]
    for name, value in os.environ.items():
        section, _, key = name[len(prefix):].lower().partition("__")
        if not name.upper().startswith(prefix) or section not in Settings.model_fields:
            continue
        model = Settings.model_fields[section].annotation
        fields = model.model_fields if isinstance(model, type) and issubclass(model, Section) else {}
        if key and (key not in fields or get_origin(fields[key].annotation) is not list):
            continue
        try:
            json.loads(value)
        except ValueError:
            return name
    return "a list or a table"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
        refuse_unsafe_file(path)
        return values
    except FileNotFoundError as error:
        raise ConfigurationError(f"--config: there is no file {path}") from error
    except IsADirectoryError as error:
        raise ConfigurationError(f"--config: {path} is a folder, where a file is needed") from error
    except OSError as error:
        raise ConfigurationError(f"--config: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--config: {path} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"--config: {path} is not TOML: {error}") from error


def _check(settings: Settings) -> None:
    """What no single field can tell. A value whose engine is not there yet is refused (contract §12)."""
    http, storage = settings.http, settings.storage
    unavailable = {
        "storage.keep": storage.keep != "forever",
        "storage.database": storage.database.startswith("postgresql"), "storage.blobs": storage.blobs.startswith("s3:"),
    }
    for key, is_used in unavailable.items():
        if is_used:
            raise ConfigurationError(f"{key}: this value is not available in this version")
    for key, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(http, key) and not getattr(http, other):
            raise ConfigurationError(f"http.{other}: goes with http.{key}")
    if not re.fullmatch(r"sqlite:///[^:?#]+", storage.database):
        raise ConfigurationError("storage.database: must be sqlite:/// and the path of a file")
    if not re.fullmatch(r"file:(///|(?!//)).+", storage.blobs):
        raise ConfigurationError("storage.blobs: must be file: and the path of a folder")
    _check_issuer(settings.auth.mode, settings.auth.oidc)
    urls = [one.url for one in settings.webhooks]
    if len(set(urls)) < len(urls):
        raise ConfigurationError("webhooks: a url is given twice")
    names = [one.name for one in settings.forward.destinations]
    if len(set(names)) < len(names):
        raise ConfigurationError("forward.destinations: a name is given twice")
    for rule in settings.forward.rules:
        if rule.destination not in names:
            raise ConfigurationError(f"forward.rules: there is no destination {rule.destination}")
    if settings.require_known_peers:
        for peer in settings.dicom.peers:
            peer_networks(peer)


def _check_issuer(mode: str, oidc: Oidc) -> None:
    """Whose JWTs are taken: keys that come over an open line could be anybody's."""
    if not oidc.issuer:
        if oidc.audience or oidc.jwks_url:
            raise ConfigurationError("auth.oidc.issuer: is needed where audience or jwks_url is given")
        return
    if mode == "none":
        raise ConfigurationError('auth.oidc.issuer: means nothing where auth.mode = "none" lets everybody in')
    if not oidc.audience:
        raise ConfigurationError(
            "auth.oidc.audience: is needed, else JWTs that the issuer made for other services would be taken")
    for key, url in (("issuer", oidc.issuer), ("jwks_url", oidc.jwks_url)):
        if url and not _is_safe_url(url):
            raise ConfigurationError(f"auth.oidc.{key}: must be https:// and a host (http:// on loopback only)")


def _is_safe_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    is_whole = bool(host) and not parts.query and not parts.fragment and not re.search(r"\s", url)
    return is_whole and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))
