"""`packhorse tls init`: makes a local authority and a server certificate, and says how to trust and use them."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from server import config
from server.authority import SERVER_DAYS, Authority
from server.commands.terminal import ConfigOption, make_private, out
from server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Certificates for HTTPS.")
ALWAYS = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared only


@app.command("init")
def init(
    config_file: ConfigOption = None,
    host: Annotated[list[str] | None, typer.Option(help="A name or address that clients use; again for more.")] = None,
) -> None:
    """Make an authority, unless there is one, and a new server certificate. Run it again to renew the latter."""
    settings = config.load(config_file)
    make_private(settings)
    authority = Authority(settings.data_path / "tls")
    hosts = list(dict.fromkeys([*(host or _own_names(settings)), *ALWAYS]))
    is_new = authority.make(hosts[0])
    certificate, key = authority.issue(hosts)
    out.print(f"A certificate for {', '.join(hosts)}, valid for {SERVER_DAYS} days: {certificate}")
    if is_new:
        out.print(_trust(authority.certificate_path))
    else:
        out.print("It is signed by the authority from before, so clients trust it already.")
    out.print(_use(_relative(certificate, settings), _relative(key, settings)))


def _own_names(settings: Settings) -> list[str]:
    listening = settings.http.host
    return [socket.gethostname(), *([] if listening in EVERYWHERE else [listening])]


def _relative(path: Path, settings: Settings) -> str:
    return os.path.relpath(path.resolve(), settings.base_path.resolve())


def _use(certificate: str, key: str) -> str:
    return f"""
Use it, in the configuration of the server:

[http]
tls_cert = "{certificate}"
tls_key = "{key}"

then start the server again; one that serves with it already takes the new one at SIGHUP."""


def _trust(path: Path) -> str:
    return f"""
Clients must trust its authority, once: give them this file, which is no secret:
  {path}
  Debian, Ubuntu   cp authority.crt /usr/local/share/ca-certificates/packhorse.crt && update-ca-certificates
  Windows          certutil -addstore -f Root authority.crt          (as administrator)
  macOS            security add-trusted-cert -d -k /Library/Keychains/System.keychain authority.crt
  Firefox          Settings, Privacy & Security, View Certificates, Authorities, Import
  Chrome, Edge     use the system's; on Linux: Settings, Privacy and security, Manage certificates, Import
  Python           REQUESTS_CA_BUNDLE=/path/to/authority.crt         (tuspy, requests)
  curl             curl --cacert /path/to/authority.crt
Whoever has authority.key beside it could pretend to be any server to them: keep it here, or off-line."""
