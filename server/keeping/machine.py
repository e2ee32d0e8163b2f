"""What a doctor finds around the store: the disk, who may read the data, who listens, with which certificate.

Leaves nothing behind.
"""

import errno
import fcntl
import os
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from server.errors import ConfigurationError
from server.keeping.findings import Finding, fine, warning, wrong
from server.settings import Settings
from server.tls import ENDS_SOON, RENEW, Certificate, leaf
from storage.records import now

TRIED_BYTES = 8 * 1024 * 1024
TRIED_FLUSHES = 10
SLOW_FLUSH_S = 0.05
"""A disk that takes longer than this to confirm a small write holds every upload up."""
MEMORY = frozenset({"tmpfs", "ramfs"})
OVER_A_NET = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"})
GIB = 1 << 30
HANDSHAKE_S = 5.0


def disk(settings: Settings) -> Iterator[Finding]:
    """Room, reserve, the kind of the file system, and how fast it confirms what is written."""
    for name, folder in {"database": settings.data_path, "blobs": settings.blobs_path}.items():
        there = next(one for one in (folder, *folder.parents) if one.is_dir())
        yield _room(f"disk of the {name}", there, settings.uploads.reserve_bytes)
        kind = _file_system(there)
        if kind in MEMORY:
            yield warning(f"disk of the {name}", f"{there} lies in memory ({kind}): a reboot loses it",
                          f"choose a folder on a disk: storage.{name}")
        elif kind in OVER_A_NET and name == "database":
            yield wrong("disk of the database", f"{there} lies on another machine ({kind}): SQLite is not safe there",
                        "keep the database on a disk of this machine: storage.database")
    if os.access(settings.data_path, os.W_OK):
        yield from _speed(settings.data_path)


def _room(check: str, folder: Path, reserve_bytes: int) -> Finding:
    found = os.statvfs(folder)
    free_bytes, size_bytes = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    what = f"{free_bytes / GIB:.1f} of {size_bytes / GIB:.1f} GiB are left, {reserve_bytes / GIB:.2f} are in reserve"
    remedy = "free room on this disk, or move the data to a larger one; stored images are never deleted to make room"
    if free_bytes <= reserve_bytes:
        return wrong(check, f"{what}: nothing more is taken", remedy)
    if free_bytes < 2 * reserve_bytes or free_bytes < size_bytes / 20:
        return warning(check, what, remedy)
    return fine(check, what)


def _file_system(folder: Path) -> str:
    """The kind of the file system that `folder` lies on, as the kernel calls it."""
    wanted, best, kind = str(folder.resolve()), "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split()
        if (wanted == place or wanted.startswith(place.rstrip("/") + "/")) and len(place) >= len(best):
            best, kind = place, name
    return kind


def _speed(folder: Path) -> Iterator[Finding]:
    path = folder / f".doctor-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        path.unlink()  # it is gone whatever happens
        began = time.monotonic()
        os.write(descriptor, os.urandom(TRIED_BYTES))
        os.fsync(descriptor)
        mib_per_s = TRIED_BYTES / 2**20 / (time.monotonic() - began)
        flushes = [_flush_s(descriptor) for _ in range(TRIED_FLUSHES)]
    except OSError as error:
        yield wrong("disk speed", f"writing to {folder} failed: {error.strerror}", "look after this disk")
        return
    finally:
        os.close(descriptor)
    flush_s = statistics.median(flushes)
    what = f"{mib_per_s:.0f} MiB/s written and confirmed; a small write is confirmed in {flush_s * 1000:.1f} ms"
    if flush_s > SLOW_FLUSH_S:
        yield warning("disk speed", what, "every stored image waits for the disk: a faster one, or less beside it")
    else:
        yield fine("disk speed", what)


def _flush_s(descriptor: int) -> float:
    began = time.monotonic()
    os.write(descriptor, b"x")
    os.fsync(descriptor)
    return time.monotonic() - began


def permissions(settings: Settings) -> Iterator[Finding]:
    """Whether others of this machine may look at the data."""
    folder = settings.data_path
    if not folder.is_dir():
        return
    told = 0
    for path in sorted({folder, *folder.iterdir(), settings.blobs_path}):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if status.st_uid != os.geteuid():
            told += 1
            yield warning("permissions", f"{path} belongs to another user ({status.st_uid})",
                          "run the server and these commands as one user of their own")
        elif status.st_mode & 0o077 and not path.is_symlink():
            told += 1
            yield wrong("permissions", f"{path} may be read or written by others (mode {status.st_mode & 0o7777:o})",
                        f"chmod go= {path}")
    if not told:
        yield fine("permissions", f"{folder} and what is in it are for their user alone")


def is_serving(settings: Settings) -> bool:
    """Whether a server works on this data folder."""
    try:
        descriptor = os.open(settings.data_path / "serve.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def certificate(settings: Settings) -> Iterator[Finding]:
    """Whether the certificate of HTTPS fits its key, how long it is good for, and whether the server gives this one."""
    if not settings.http.tls_cert:
        return
    check = "certificate"
    try:
        Certificate(settings).load()
        there = leaf(settings)
    except ConfigurationError as error:
        yield wrong(check, error.detail, "put the certificate and its key in place; the server would not start")
        return
    begins_at, ends_at = there.not_valid_before_utc, there.not_valid_after_utc
    left = ends_at - now()
    until = f"{ends_at:%Y-%m-%d %H:%M} UTC"
    if begins_at > now():
        yield wrong(check, f"it is good from {begins_at:%Y-%m-%d %H:%M} UTC on only: clients refuse it until then",
                    "set the clock, or put one in place that is good now")
    elif left.total_seconds() <= 0:
        yield wrong(check, f"it ended on {until}: clients refuse it", RENEW)
    elif left <= ENDS_SOON:
        yield warning(check, f"it ends on {until}, in {left.days} days", RENEW)
    else:
        yield fine(check, f"it is good until {until}, for {left.days} days")
    given = _given_certificate(settings) if is_serving(settings) else None
    if given is not None and given != there:
        until = f"{given.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        yield warning(check, f"the server still gives another, which ends on {until}",
                      "send it SIGHUP, so that it takes the one of the file")


def _given_certificate(settings: Settings) -> x509.Certificate | None:
    """What who listens on the port of HTTP gives to clients; None where that cannot be told."""
    host, port = settings.http.host, settings.http.port
    if port == 0:
        return None
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    try:
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((asked, port), timeout=HANDSHAKE_S).encode())
    except (OSError, ValueError):
        return None


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether the ports are free, or this server's."""
    serving = is_serving(settings)
    wanted = {"http": (settings.http.host, settings.http.port)}
    if settings.dicom.enabled:
        wanted["dicom"] = settings.dicom.host, settings.dicom.port
    for name, (host, port) in wanted.items():
        yield _port(f"{name}.port", host, port, serving)


def _port(check: str, host: str, port: int, serving: bool) -> Finding:
    where = f"{host}:{port}"
    if port == 0:
        return fine(check, "any free port, told at the start")
    fault = _bind_fault(host, port)
    if fault is None and serving:
        return warning(check, f"a server runs on this data, and does not listen on {where}",
                       "it may do only a part (--only), or be of another configuration: restart it")
    if fault is None:
        return fine(check, f"{where} is free")
    if fault == errno.EADDRINUSE and serving:
        return fine(check, f"{where} is this server's")
    if fault == errno.EADDRINUSE:
        return wrong(check, f"another program listens on {where}, and no server runs on this data",
                     f"end that program (ss -ltnp shows it), or choose another {check}")
    return wrong(check, f"{where} cannot be listened on: {os.strerror(fault)}",
                 f"choose an address of this machine, and a port from 1024 on: {check} and the host beside it")


def _bind_fault(host: str, port: int) -> int | None:
    """Why that address cannot be listened on, as the system's number; None where it can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return None
