"""`packhorse tls init`: makes a local authority and a server certificate, and says how to trust and use them."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from server import config
from server.authority import SERVER_DAYS, Authority, host_of
from server.commands.terminal import ConfigOption, make_private, out
from server.errors import AppError, ConfigurationError
from server.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Certificates for HTTPS.")
ALWAYS = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared only


@app.command("init")
def init(
    config_file: ConfigOption = None,
    host: Annotated[list[str] | None, typer.Option(help="A name or address that clients use; again for more.")] = None,
) -> None:
    """Make an authority, unless there is one, and a new server certificate. Run it again to renew the latter: without
    --host for the names of before.
    """
    settings = config.load(config_file)
    wanted = [host_of(one) for one in host or []]
    make_private(settings)
    authority = Authority(settings.data_path / "tls")
    before = authority.hosts() if not wanted else _hosts_if_told(authority)
    hosts = list(dict.fromkeys([*(wanted or before or _own_names(settings)), *ALWAYS]))
    is_new = authority.make(hosts[0])
    certificate, key = authority.issue(hosts)
    out.print(f"A certificate for {', '.join(hosts)}, valid for {SERVER_DAYS} days: {certificate}")
    gone = [one for one in before if one not in hosts]
    if gone:
        out.print(f"No longer in it: {', '.join(gone)}. Clients that use these names refuse the server from then on; "
                  "to keep them, run this again and name them too.")
    if is_new:
        out.print(_trust(authority.certificate_path))
    else:
        out.print("It is signed by the authority from before, so clients trust it already.")
    out.print(_use(_relative(certificate, settings), _relative(key, settings)))


def _hosts_if_told(authority: Authority) -> list[str]:
    """The names of before; none where they cannot be told, for there are new ones."""
    try:
        return authority.hosts()
    except AppError:
        return []


def _own_names(settings: Settings) -> list[str]:
    """The machine's own name, and the address that is listened on, where a certificate can hold them."""
    listening, found = settings.http.host, list[str]()
    for name in (socket.gethostname(), *([] if listening in EVERYWHERE else [listening])):
        with suppress(ConfigurationError):
            found.append(host_of(name))
    return found


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
