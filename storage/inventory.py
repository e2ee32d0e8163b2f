"""Units of work that tell what the store should hold, and what does not hang together. Change no row.

The counts of `fsck` are beside each table; here the same orphans are named, so that something can be done about them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, String, cast, func, select, text

from storage.records import DEFAULT_SITE, Status
from storage.tables import audit, blob, image, series, session, signing_key

AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class KeptBlob:
    """Sealed bytes that a row names."""

    site: str
    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        """How people are told of it."""
        return f"{self.site}/{self.sha256}"


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session that was said to be stored, whose image or blob has no row; `size_bytes` where it is known."""

    session_id: str
    site: str
    blob_sha256: str | None
    size_bytes: int | None
    has_image: bool


@dataclass(frozen=True, slots=True)
class LooseImage:
    """A DICOM image that hangs in no series."""

    image_id: int
    site: str
    series_id: int | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    blob_sha256: str


@dataclass(frozen=True, slots=True)
class Twins:
    """Live images of one SOP Instance UID: (id, dataset digest) of each, the oldest first."""

    site: str
    sop_instance_uid: str
    images: tuple[tuple[int, str | None], ...]


def sealed_blobs(tx: Connection) -> Iterator[KeptBlob]:
    """Every blob that has a row, in the order of its address."""
    rows = tx.execute(select(blob.c.site, blob.c.sha256, blob.c.size_bytes).order_by(blob.c.site, blob.c.sha256)
                      .execution_options(yield_per=AT_ONCE))
    for row in rows:
        yield KeptBlob(row.site, row.sha256, row.size_bytes)


def born_at(tx: Connection) -> str | None:
    """When this database began: its first key or its first audit row; None before either."""
    first = [tx.execute(select(func.min(signing_key.c.created_at))).scalar(),
             tx.execute(select(audit.c.at).where(audit.c.seq == 1)).scalar()]
    return min((moment for moment in first if moment is not None), default=None)


def audit_head(tx: Connection) -> tuple[int, str | None]:
    """The last row of the audit chain: its `seq` and hash."""
    row = tx.execute(select(audit.c.seq, audit.c.row_hash).order_by(audit.c.seq.desc()).limit(1)).first()
    return (row.seq, row.row_hash) if row else (0, None)


def page_faults(tx: Connection) -> list[str]:
    """What SQLite finds wrong with its own pages, at most ten things; it reads all of them."""
    found = [str(row[0]) for row in tx.execute(text("PRAGMA quick_check(10)"))]
    return [] if found == ["ok"] else found


def holds_sessions(tx: Connection) -> bool:
    """Whether any session was ever made here."""
    return tx.execute(select(session.c.session_id).limit(1)).first() is not None


def stored_sessions_without_rows(tx: Connection) -> list[StoredSession]:
    """Orphans (contract §6): sessions said to be stored whose image or blob no row tells of."""
    rows = tx.execute(
        select(session.c.session_id, session.c.site, session.c.blob_sha256, session.c.file_size,
               image.c.id.is_not(None).label("has_image"))
        .select_from(session.outerjoin(image, session.c.server_image_id == image.c.id).outerjoin(
            blob, (blob.c.sha256 == session.c.blob_sha256) & (blob.c.site == session.c.site)))
        .where(session.c.status.in_([Status.SYNCED, Status.ACK_RECEIVED]))
        .where(image.c.id.is_(None) | blob.c.sha256.is_(None)))
    return [StoredSession(row.session_id, row.site, row.blob_sha256, row.file_size, row.has_image) for row in rows]


def told_of_and_gone(tx: Connection) -> list[str]:
    """Sessions and images, `image/{id}`, that the audit tells of and that have no row: neither is ever deleted."""
    made = select(audit.c.subject).distinct()
    sessions = made.where(audit.c.action == "session.created", ~select(session.c.session_id).where(
        session.c.session_id == audit.c.subject).exists())
    images = made.where(audit.c.action == "image.stored", audit.c.subject.not_in(
        select("image/" + cast(image.c.id, String))))
    return [str(subject) for query in (sessions, images) for subject in sorted(tx.execute(query).scalars())]


def images_without_series(tx: Connection) -> list[LooseImage]:
    """Orphans (contract §6): DICOM images that hang in no series."""
    there = select(series.c.id).where(series.c.id == image.c.series_id)
    rows = tx.execute(select(image).where(image.c.kind == "dicom", ~there.exists()).order_by(image.c.id))
    return [LooseImage(row.id, row.site, row.series_id, row.study_instance_uid, row.series_instance_uid,
                       row.blob_sha256) for row in rows]


def live_twins(tx: Connection) -> list[Twins]:
    """Orphans (contract §6): SOP Instance UIDs that more than one live image has."""
    live = (image.c.superseded_by.is_(None), image.c.sop_instance_uid.is_not(None))
    twice = tx.execute(select(image.c.site, image.c.sop_instance_uid).where(*live)
                       .group_by(image.c.site, image.c.sop_instance_uid).having(func.count() > 1)).all()
    found = []
    for site, uid in twice:
        images = tx.execute(select(image.c.id, image.c.dataset_sha256).where(
            image.c.site == site, image.c.sop_instance_uid == uid, *live).order_by(image.c.id))
        found.append(Twins(site, uid, tuple((row.id, row.dataset_sha256) for row in images)))
    return found


def refused_associations(tx: Connection, since: str, limit: int = 20) -> list[tuple[str, str, str]]:
    """(AE title, address, time) of callers that were refused since then, the last first, each once."""
    rows = tx.execute(
        select(audit.c.actor, audit.c.peer, func.max(audit.c.at).label("at"))
        .where(audit.c.action == "association.refused", audit.c.site == DEFAULT_SITE, audit.c.at >= since)
        .group_by(audit.c.actor, audit.c.peer).order_by(func.max(audit.c.at).desc()).limit(limit))
    return [(row.actor.removeprefix("ae:"), row.peer or "", row.at) for row in rows]
