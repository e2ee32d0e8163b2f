"""The receipt of an image, whatever door it came by (contract §8): its session's, else one that is signed now."""

from sqlalchemy import Connection

from server.auth import Principal
from server.reads import check_verified
from server.sessions.creation import may_see
from server.sessions.receipts import Signer, image_claims
from server.sessions.service import ReadsBack
from storage import audit, blob_rows, receipts, sessions
from storage.records import AuditEntry, ImageRecord, timestamp
from storage.store import Store


class ImageReceipts:
    """Finds or signs receipts of images; whoever asks may see the image."""

    def __init__(self, store: Store, signer: Signer, readback: ReadsBack) -> None:
        self._store = store
        self._signer = signer
        self._readback = readback

    async def receipt(self, image: ImageRecord, who: Principal, peer: str | None) -> str:
        """The receipt of a session that `who` may see; else the image's own, for which its blob is read back first.

        So it is while an alarm is open: whoever gets a receipt of an image may take it for word that the image is here.
        RequestError `readback_failed`, `readback_running`.
        """
        def look(tx: Connection) -> tuple[str | None, bool]:
            known = _of_session(tx, image, who) or receipts.find(tx, image.id)
            return known, blob_rows.is_doubted(tx, image.site, image.blob_sha256)

        known, doubted = await self._store.read(look)
        if known is not None and not doubted:
            return known
        await self._readback.verify(image.site, image.blob_sha256, f"image/{image.id}", "receipt")
        verified_at = timestamp()

        def unit(tx: Connection) -> str:
            check_verified(tx, image.site, image.blob_sha256)
            signed = known or receipts.find(tx, image.id)
            if signed is None:
                position = audit.append(tx, AuditEntry(
                    image.site, "image.receipt", who.name, f"image/{image.id}", peer,
                    detail={"sha256": image.blob_sha256}))
                signed = self._signer.sign(image_claims(image, verified_at, position))
                receipts.add(tx, image.site, image.id, signed)
            return signed

        return await self._store.write(unit)


def _of_session(tx: Connection, image: ImageRecord, who: Principal) -> str | None:
    """The receipt of the first session that brought the image's own file; one of the asker's comes before others'."""
    found = [one for one in sessions.of_blob(tx, image.site, image.blob_sha256)
             if one.server_image_id == image.id and one.receipt is not None and may_see(tx, one, who)]
    first = min(found, key=lambda one: (one.principal != who.name, one.synced_at or "", one.session_id), default=None)
    return first.receipt if first is not None else None
