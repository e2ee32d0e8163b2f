"""Reading of stored bytes: what is known to be damaged is not given out, and who reads which image is audited."""

from sqlalchemy import Connection

from server.auth import Principal
from server.errors import RequestError
from server.seldom import Seldom
from storage import blob_rows
from storage.records import AuditEntry, ImageRecord

DAMAGED_S = 60


def check_sound(tx: Connection, site: str, sha256: str) -> None:
    """RequestError `bytes_damaged` while an integrity alarm is open: whoever looks at an image relies on it."""
    if blob_rows.is_doubted(tx, site, sha256):
        raise RequestError("bytes_damaged", retry_after_s=DAMAGED_S)


def check_verified(tx: Connection, site: str, sha256: str) -> None:
    """RequestError `readback_failed` while an integrity alarm is open, however lately the bytes were read back."""
    if blob_rows.is_doubted(tx, site, sha256):
        raise RequestError("readback_failed", "an integrity alarm is open on these bytes", retry_after_s=DAMAGED_S)


class Reads:
    """One row per principal, study and minute (contract §9)."""

    def __init__(self, seldom: Seldom) -> None:
        self._seldom = seldom

    async def note(self, who: Principal, subject: str, peer: str | None) -> None:
        """`who` reads `subject`, as `subject_of` names it; or a Study Instance UID."""
        await self._seldom.note(AuditEntry(who.site, "image.read", who.name, subject, peer))


def subject_of(image: ImageRecord) -> str:
    """What is read with an image: its study; the image itself where it has none."""
    return image.study_instance_uid or f"image/{image.id}"
