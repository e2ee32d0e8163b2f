"""Units of work on studies, series, images and arrivals: the PACS as rows."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from storage.database.prepared import Prepared, inserting
from storage.records import ImageRecord, timestamp
from storage.tables import arrival, image, series, study

_COLUMNS = [image.c[field.name] for field in fields(ImageRecord)]
_NAMES = [column.name for column in image.c if column.name != "id"]
_ADD = inserting(image, without=("id",))
_BY_SOP_INSTANCE = Prepared(select(*_COLUMNS).where(
    image.c.site == bindparam("wanted_site"), image.c.sop_instance_uid == bindparam("wanted"),
    image.c.superseded_by.is_(None)))
_ATTACHMENT = Prepared(select(*_COLUMNS).where(
    image.c.site == bindparam("wanted_site"), image.c.blob_sha256 == bindparam("wanted"),
    image.c.kind == "attachment"))


def _image(row: Row[Any]) -> ImageRecord:  # a row of the image table
    return ImageRecord(**row._mapping)


def find(tx: Connection, site: str, image_id: int) -> ImageRecord | None:
    """The image of that id in `site`."""
    row = tx.execute(select(*_COLUMNS).where(image.c.site == site, image.c.id == image_id)).first()
    return _image(row) if row else None


def by_sop_instance(tx: Connection, site: str, sop_instance_uid: str) -> ImageRecord | None:
    """The image of that SOP Instance UID that is not superseded."""
    row = _BY_SOP_INSTANCE.first(tx, wanted_site=site, wanted=sop_instance_uid)
    return ImageRecord(*row) if row else None


def attachment_of_blob(tx: Connection, site: str, sha256: str) -> ImageRecord | None:
    """The image of kind `attachment` with these bytes."""
    row = _ATTACHMENT.first(tx, wanted_site=site, wanted=sha256)
    return ImageRecord(*row) if row else None


def ensure_series(
    tx: Connection, site: str, study_instance_uid: str, series_instance_uid: str,
    study_attributes: dict[str, str], series_attributes: dict[str, str],
) -> int:
    """The id of the series row; it and its study are made from their first image's attributes."""
    found = select(study.c.id).where(study.c.site == site, study.c.study_instance_uid == study_instance_uid)
    study_id = tx.execute(found).scalar()
    if study_id is None:
        tx.execute(insert(study).values(
            site=site, study_instance_uid=study_instance_uid, attributes=study_attributes, created_at=timestamp()))
        study_id = tx.execute(found).scalar_one()
    found = select(series.c.id).where(
        series.c.study_id == study_id, series.c.series_instance_uid == series_instance_uid)
    series_id = tx.execute(found).scalar()
    if series_id is None:
        tx.execute(insert(series).values(
            site=site, study_id=study_id, series_instance_uid=series_instance_uid, attributes=series_attributes,
            created_at=timestamp()))
        series_id = tx.execute(found).scalar_one()
    return int(series_id)


def add(tx: Connection, **values: Any) -> ImageRecord:  # the columns of the image table but id, stored_at
    """Insert an image; Refused when a live image has its SOP Instance UID."""
    row = {**dict.fromkeys(_NAMES), "stored_at": timestamp(), **values}
    return ImageRecord(id=_ADD.insert(tx, **row), **row)


def add_arrival(tx: Connection, **values: Any) -> int:  # the columns of the arrival table but id, arrived_at
    """Note one object that came by a door without sessions; gives its id."""
    done = tx.execute(insert(arrival).values(arrived_at=timestamp(), **values))
    assert done.inserted_primary_key is not None, "the table has a primary key"
    return int(done.inserted_primary_key[0])


def has_arrival(tx: Connection, site: str, sha256: str) -> bool:
    """Whether these bytes came by a door without sessions."""
    return tx.execute(select(arrival.c.id).where(
        arrival.c.site == site, arrival.c.blob_sha256 == sha256).limit(1)).first() is not None


def _live(rejected: bool) -> tuple[Any, ...]:  # conditions on images
    """Images that are not superseded: those that are shown, or the `rejected` ones."""
    return image.c.superseded_by.is_(None), image.c.rejected_at.is_not(None) if rejected else (
        image.c.rejected_at.is_(None))


def studies(
    tx: Connection, site: str, limit: int, after_id: int = 0, *, rejected: bool = False
) -> list[dict[str, Any]]:
    """Studies of a site in order of coming, each with its counts of series and images; see `tree` for `rejected`."""
    images = (
        select(image.c.study_instance_uid, func.count().label("images"),
               func.count(func.distinct(image.c.series_instance_uid)).label("series"))
        .where(image.c.site == site, *_live(rejected))
        .group_by(image.c.study_instance_uid).subquery()
    )
    rows = tx.execute(
        select(study, images.c.images, images.c.series)
        .join(images, images.c.study_instance_uid == study.c.study_instance_uid)
        .where(study.c.site == site, study.c.id > after_id).order_by(study.c.id).limit(limit))
    return [dict(row._mapping) for row in rows]


def tree(
    tx: Connection, site: str, study_instance_uid: str, *, rejected: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """A study and its series, each with its `images` (ImageRecords): those that are shown, or the `rejected` ones."""
    found = tx.execute(select(study).where(
        study.c.site == site, study.c.study_instance_uid == study_instance_uid)).first()
    if found is None:
        return None
    rows = tx.execute(select(series).where(series.c.study_id == found.id).order_by(series.c.id)).all()
    images = [_image(row) for row in tx.execute(
        select(*_COLUMNS).where(image.c.site == site, image.c.study_instance_uid == study_instance_uid,
                                *_live(rejected)).order_by(image.c.id))]
    return dict(found._mapping), [
        {**row._mapping, "images": [one for one in images if one.series_id == row.id]} for row in rows]


def dicom_without_series(tx: Connection) -> int:
    """Orphans (contract §6): DICOM images that hang in no series."""
    there = select(series.c.id).where(series.c.id == image.c.series_id)
    return int(tx.execute(select(func.count()).select_from(image).where(
        image.c.kind == "dicom", ~there.exists())).scalar_one())


def live_twins(tx: Connection) -> int:
    """Orphans (contract §6): SOP Instance UIDs that more than one live image has."""
    twins = (
        select(image.c.sop_instance_uid).where(
            image.c.superseded_by.is_(None), image.c.sop_instance_uid.is_not(None))
        .group_by(image.c.site, image.c.sop_instance_uid).having(func.count() > 1).subquery())
    return int(tx.execute(select(func.count()).select_from(twins)).scalar_one())


def take_the_place(tx: Connection, of: ImageRecord, **values: Any) -> ImageRecord:  # as `add` takes them
    """Insert an image that supersedes `of`, which gives up its SOP Instance UID first: one of them is live.

    The id is the next one: images are never deleted, and units of work run one after another.
    """
    image_id = int(tx.execute(select(func.max(image.c.id))).scalar_one()) + 1
    supersede(tx, of.id, image_id)
    row = {**dict.fromkeys(_NAMES), "stored_at": timestamp(), **values}
    tx.execute(insert(image).values(id=image_id, **row))
    return ImageRecord(id=image_id, **row)


def supersede(tx: Connection, image_id: int, by: int) -> None:
    """Let `by`, which is there, take the place of `image_id`."""
    tx.execute(update(image).where(image.c.id == image_id).values(superseded_by=by))


def live_of_study(tx: Connection, site: str, study_instance_uid: str) -> list[ImageRecord]:
    """The images of a study that are not superseded, shown or rejected."""
    return [_image(row) for row in tx.execute(select(*_COLUMNS).where(
        image.c.site == site, image.c.study_instance_uid == study_instance_uid, image.c.superseded_by.is_(None))
        .order_by(image.c.id))]


def reject(tx: Connection, image_id: int, code: str | None) -> None:
    """Hide an image from now on, for the reason that the code says; None shows it again."""
    tx.execute(update(image).where(image.c.id == image_id).values(
        rejection_code=code, rejected_at=timestamp() if code else None))
