"""Units of work on studies that wait to be told stable: no image came for a while."""

from sqlalchemy import Connection, func, insert, select, update

from storage.tables import image, study_watch


def note_image(tx: Connection, site: str, study_instance_uid: str, at: str) -> None:
    """An image came: the study is not quiet."""
    mine = study_watch.c.site == site, study_watch.c.study_instance_uid == study_instance_uid
    if tx.execute(update(study_watch).where(*mine).values(last_image_at=at, told=False)).rowcount == 0:
        tx.execute(insert(study_watch).values(
            site=site, study_instance_uid=study_instance_uid, last_image_at=at, told=False))


def quiet(tx: Connection, before: str, limit: int) -> list[tuple[str, str]]:
    """(site, study) of those whose last image came before that time, and of which that was not told."""
    rows = tx.execute(select(study_watch.c.site, study_watch.c.study_instance_uid).where(
        study_watch.c.told.is_(False), study_watch.c.last_image_at <= before).limit(limit))
    return [(row[0], row[1]) for row in rows]


def note_told(tx: Connection, site: str, study_instance_uid: str) -> None:
    """It was told: not again until another image came."""
    tx.execute(update(study_watch).where(
        study_watch.c.site == site, study_watch.c.study_instance_uid == study_instance_uid).values(told=True))


def count_images(tx: Connection, site: str, study_instance_uid: str) -> int:
    """The live images of a study."""
    return int(tx.execute(select(func.count()).select_from(image).where(
        image.c.site == site, image.c.study_instance_uid == study_instance_uid,
        image.c.superseded_by.is_(None), image.c.rejection_code.is_(None))).scalar_one())
