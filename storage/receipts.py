"""Units of work on receipts of images that no session brought. A receipt is signed once, and stays."""

from sqlalchemy import Connection, insert, select

from storage.records import timestamp
from storage.tables import image_receipt


def find(tx: Connection, image_id: int) -> str | None:
    """The receipt of that image."""
    return tx.execute(select(image_receipt.c.receipt).where(image_receipt.c.image_id == image_id)).scalar()


def add(tx: Connection, site: str, image_id: int, receipt: str) -> None:
    """Keep an image's receipt. Refused when it has one."""
    tx.execute(insert(image_receipt).values(image_id=image_id, site=site, receipt=receipt, signed_at=timestamp()))
