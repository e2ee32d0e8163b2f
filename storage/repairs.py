"""Units of work that mend what does not hang together, each only while it is still so. Touch no bytes."""

from sqlalchemy import Connection, delete, insert, select, update

from storage import blob_rows, integrity, inventory
from storage.inventory import KeptBlob, LooseImage
from storage.moments import moment
from storage.records import timestamp
from storage.tables import blob, image, series, study


def disown(tx: Connection, site: str, sha256: str) -> bool:
    """Forget the row of a blob that nobody owns, so that clean-up frees its bytes; False when somebody does by now."""
    if (site, sha256) not in blob_rows.without_owner(tx):
        return False
    return tx.execute(delete(blob).where(blob.c.site == site, blob.c.sha256 == sha256)).rowcount == 1


def tell_of(tx: Connection, found: KeptBlob) -> bool:
    """Make the row of a blob that has lost it; False when there is one by now."""
    if blob_rows.find(tx, found.site, found.sha256) is not None:
        return False
    blob_rows.add(tx, found.site, found.sha256, found.size_bytes)
    return True


def hang(
    tx: Connection, loose: LooseImage, study_attributes: dict[str, str], series_attributes: dict[str, str]
) -> bool:
    """Make the series row, and its study's, that an image names by its UIDs; False when that is not possible."""
    if loose.series_id is None or loose not in inventory.images_without_series(tx):
        return False
    found = select(study.c.id).where(
        study.c.site == loose.site, study.c.study_instance_uid == loose.study_instance_uid)
    study_id = tx.execute(found).scalar()
    if study_id is None:
        tx.execute(insert(study).values(
            site=loose.site, study_instance_uid=loose.study_instance_uid, attributes=study_attributes,
            created_at=timestamp()))
        study_id = tx.execute(found).scalar_one()
    known = tx.execute(select(series.c.id).where(
        series.c.study_id == study_id, series.c.series_instance_uid == loose.series_instance_uid)).scalar()
    if known is None:
        tx.execute(insert(series).values(
            id=loose.series_id, site=loose.site, study_id=study_id, series_instance_uid=loose.series_instance_uid,
            attributes=series_attributes, created_at=timestamp()))
        return True
    return tx.execute(update(image).where(image.c.id == loose.image_id).values(series_id=known)).rowcount == 1


def doubt(tx: Connection, found: KeptBlob, why: str) -> bool:
    """Raise the integrity alarm on a blob whose bytes are not there, with its row if that was lost too.

    False when it is raised already.
    """
    known = blob_rows.find(tx, found.site, found.sha256)
    if known is None:
        blob_rows.add(tx, found.site, found.sha256, found.size_bytes)
    elif known.alarm is not None:
        return False
    integrity.note_read(tx, found.site, found.sha256, moment(), why, "fsck")
    return True
