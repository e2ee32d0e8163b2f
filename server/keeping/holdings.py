"""What a doctor finds in the store: database, triggers, clock, keys, alarms, jobs, callers refused. Changes nothing."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from sqlalchemy import Connection

from server.keeping.findings import SEND_AGAIN_OR_PUT_BACK, Finding, fine, warning, wrong
from server.keeping.manifest import KEYS
from server.settings import Settings
from storage import clock, figures, integrity, inventory, tokens
from storage.errors import StorageError
from storage.moments import boot_id
from storage.records import now, timestamp
from storage.triggers import missing_triggers, said_of

LARGE_LOG_BYTES = 256 * 1024 * 1024
JUMP = timedelta(hours=1)
"""How far the clock may be ahead of the last sweep before expiry pauses."""
OLD_KEY = timedelta(days=730)
LATELY = timedelta(days=7)
ALARMS_SHOWN = 20
STUCK_S = 300.0
"""How long a job may be due before it is told, in seconds; /readyz tells it then too."""


def database(tx: Connection, settings: Settings, present: str, newest: str) -> Iterator[Finding]:
    """Whether SQLite finds its pages whole, which revision it is of, and how long its log is."""
    began = time.monotonic()
    faults = inventory.page_faults(tx)
    took_s = time.monotonic() - began
    if not faults:
        yield fine("database", f"its pages are whole (looked at for {took_s:.1f} s)")
    else:
        yield wrong("database", f"its pages are damaged: {faults[0]}",
                    "stop the server, keep a copy of the data folder, and restore a backup")
    if present == newest:
        yield fine("database revision", f"{present}, the newest")
    else:
        yield warning("database revision", f"{present}, the newest is {newest}",
                      "packhorse migrate, or the next start, brings it there after a copy")
    log = settings.database_path.with_name(settings.database_path.name + "-wal")
    size_bytes = log.stat().st_size if log.exists() else 0
    if size_bytes > LARGE_LOG_BYTES:
        yield warning("database log", f"{size_bytes / 2**20:.0f} MiB wait in {log.name}",
                      "something reads the database for long: end it, or restart the server")
    else:
        yield fine("database log", f"{size_bytes / 2**20:.1f} MiB")


def triggers(tx: Connection) -> Iterator[Finding]:
    """Whether all that keep history as it was are there."""
    dropped = missing_triggers(tx)
    for name in dropped:
        yield wrong("triggers", f"{said_of(name)}: somebody opened the lock",
                    "run packhorse audit verify with receipts from outside, and find out who it was; then "
                    "packhorse fsck --repair makes it anew, or restore a backup from before")
    if not dropped:
        yield fine("triggers", "all are there")


def audit_head(why: str | None) -> Finding:
    """Whether the chain goes on from the row that its signed head names."""
    if why is None:
        return fine("audit head", "the chain goes on from the row that it names")
    return wrong("audit head", why, "run packhorse audit verify with receipts from outside, and find out who it was")


def clocks(tx: Connection, serving: bool) -> Iterator[Finding]:
    """The machine's clock beside the latest moment that the expiry of uploads believed in."""
    yield fine("clock", f"{timestamp()}, boot {boot_id()}")
    known = clock.believed(tx)
    if known is None:
        return
    ahead = now() - datetime.fromisoformat(known)
    if ahead < timedelta(0):
        yield wrong("clock", f"it is {-ahead} behind what it was ({known}): no upload expires until it has caught up",
                    "set the clock; receipts and audit rows tell the server's time")
    elif serving and ahead > JUMP:
        yield warning("clock", f"it is {ahead} ahead of the last sweep ({known}): expiry pauses for an hour",
                      "nothing, if the clock is right now; else set it")
    else:
        yield fine("clock", f"the last sweep believed in {known}")


def keys(tx: Connection, settings: Settings) -> Iterator[Finding]:
    """The private keys of receipts beside the public ones that the database tells everybody."""
    folder = settings.data_path / KEYS
    public = {str(jwk["kid"]) for jwk in tokens.keys(tx)}
    private = set()
    for path in sorted(folder.glob("*.json")):
        kid = _kid(path)
        status = path.stat()
        age = now() - datetime.fromtimestamp(status.st_mtime, UTC)
        if kid is None:
            yield wrong("keys", f"{path} is no private key", "restore it from a backup, or move it away")
            continue
        private.add(kid)
        if status.st_mode & 0o077:
            yield wrong("keys", f"{path} may be read by others: anybody could sign receipts with it",
                        f"chmod 600 {path}, and have a new key made")
        elif kid not in public:
            yield warning("keys", f"the database does not know {kid}", "the next start publishes it")
        elif age > OLD_KEY:
            yield warning("keys", f"{kid} is {age.days} days old", "have a new key made; receipts of before stay valid")
        else:
            yield fine("keys", f"{kid}, {age.days} days old")
    if public and not private:
        yield wrong("keys", f"{folder} holds no private key, though receipts were signed",
                    "restore it from a backup; else the next start makes a new one, and receipts of before stay valid")


def _kid(path: Path) -> str | None:
    """The thumbprint of a private key (RFC 7638); None for what is none."""
    try:
        key = OKPKey.import_key(json.loads(path.read_text()))
        return key.thumbprint() if key.is_private else None
    except (OSError, ValueError, TypeError, JoseError):
        return None


def alarms(tx: Connection) -> Iterator[Finding]:
    """The blobs that are known to be damaged, each with who can send it again: the oldest alarms by name."""
    found = integrity.alarms(tx)
    for one in found[:ALARMS_SHOWN]:
        yield wrong("integrity alarms", f"blob {one.sha256} of site {one.site}, since {one.alarm_at}: {one.alarm} "
                    f"({integrity.owners(tx, one.site, one.sha256)})",
                    f"nobody is told that a copy of it may be deleted; {SEND_AGAIN_OR_PUT_BACK}")
    if len(found) > ALARMS_SHOWN:
        yield wrong("integrity alarms", f"{len(found) - ALARMS_SHOWN} more",
                    "packhorse scrub --list names all of them; look at the disk")
    if not found:
        yield fine("integrity alarms", "none is open")


def waiting_jobs(tx: Connection, serving: bool) -> Iterator[Finding]:
    """Whether anybody takes the jobs that are due."""
    stuck = {kind: queue for kind, queue in figures.queues(tx).items() if queue.oldest_s >= STUCK_S}
    for kind, queue in stuck.items():
        what = f"{queue.waiting + queue.running} of kind {kind}, the oldest due for {queue.oldest_s:.0f} s"
        if serving:
            yield wrong("jobs", what, "does a process that does jobs run (--only)? The log tells what it is at")
        else:
            yield warning("jobs", what, "start the server, which does them")
    if not stuck:
        yield fine("jobs", f"none has been due for {STUCK_S:.0f} s")


def refused_callers(tx: Connection) -> Iterator[Finding]:
    """Who was refused by the DICOM listener lately, with the block that would let them in (contract §12)."""
    for title, address, at in inventory.refused_associations(tx, timestamp(now() - LATELY)):
        block = f'[[dicom.peers]]\nae_title = "{title}"\nhost = "{address}"\nport = 104'
        yield warning("dicom.peers", f"{title} at {address} was refused, last at {at}",
                      f"if it may send, paste this into the configuration and restart:\n{block}")


def unreadable(error: StorageError, path: Path) -> Finding:
    """The database cannot even be looked at."""
    return wrong("database", str(error), f"stop the server, keep a copy of {path}, and restore a backup")
