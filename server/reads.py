"""Reading of stored bytes: what is known to be damaged is not given out, and who reads which image is audited."""

import time

from sqlalchemy import Connection

from server.auth import Principal
from server.errors import RequestError
from storage import audit, blob_rows
from storage.records import AuditEntry
from storage.store import Store

NOTED_S = 60.0
DAMAGED_S = 60
MOST_KNOWN = 10_000


def check_sound(tx: Connection, site: str, sha256: str) -> None:
    """RequestError `bytes_damaged` while an integrity alarm is open: whoever looks at an image relies on it."""
    if blob_rows.is_doubted(tx, site, sha256):
        raise RequestError("bytes_damaged", retry_after_s=DAMAGED_S)


def check_verified(tx: Connection, site: str, sha256: str) -> None:
    """RequestError `readback_failed` while an integrity alarm is open, however lately the bytes were read back."""
    if blob_rows.is_doubted(tx, site, sha256):
        raise RequestError("readback_failed", "an integrity alarm is open on these bytes", retry_after_s=DAMAGED_S)


class Reads:
    """One row per principal, subject and minute (contract §9); remembers, in this process, what it noted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[tuple[str, str], float] = {}

    async def note(self, who: Principal, subject: str, peer: str | None) -> None:
        """`who` reads `subject`: a Study Instance UID, or an id of ours."""
        key, moment = (who.name, subject), time.monotonic()
        if moment - self._noted.get(key, -NOTED_S) < NOTED_S:
            return
        if len(self._noted) > MOST_KNOWN:
            self._noted.clear()  # forgetting means at most one row more than needed
        self._noted[key] = moment
        entry = AuditEntry(who.site, "image.read", who.name, subject, peer)
        await self._store.write(lambda tx: audit.append(tx, entry))
