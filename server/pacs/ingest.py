"""The one door into the PACS: every way in walks through `Ingester` (server.filing.Files)."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from server import linking
from server.errors import DicomRejected, SessionFailure
from server.filing import Filed, Inspection, Origin
from server.pacs.dicom import SERIES_KEYWORDS, STUDY_KEYWORDS, Header, dataset_sha256, read_header
from server.pacs.healing import heal
from storage import audit, instances, jobs, orders, quarantine
from storage.blobs.base import BlobStore, LocalPath, sealed
from storage.errors import StorageError
from storage.records import AuditEntry, ImageRecord, OrderRecord, Sha256
from storage.store import Store

INSPECT_S = 60.0
SameContent = Callable[[Path, Path], Awaitable[bool]]
"""Tells whether two files hold one object in two encodings."""


class Ingester:
    """Files sealed bytes as rows; idempotent by SOP Instance UID and dataset digest (contract §6)."""

    def __init__(
        self, store: Store, same_content: SameContent, *, destinations: tuple[str, ...] = (), accept_other: bool = True,
        quarantines: bool = False,
    ) -> None:
        self._store = store
        self._blobs = store.blobs
        self._same_content = same_content
        self._destinations = destinations
        self._accept_other = accept_other
        self._quarantines = quarantines

    async def inspect(
        self, sha256: Sha256, size_bytes: int, origin: Origin, head: bytes | None = None
    ) -> Inspection:
        """Read the header and digest the data set; see Files."""
        if head is not None and not origin.claims_dicom and not _is_dicom(head):
            return self._other(sha256, size_bytes)  # told by its first bytes: the file need not be opened
        path = blob_path(self._blobs, origin.site, sha256)
        try:
            async with asyncio.timeout(INSPECT_S):
                read = await asyncio.to_thread(_read, path, origin.claims_dicom)
            if read is None:
                return self._other(sha256, size_bytes)
            header, digest = read
            same_as = await self._same_object(path, header, digest, origin.site)
        except TimeoutError as error:
            raise SessionFailure("INGEST_TIMEOUT") from error
        except (StorageError, OSError) as error:
            raise SessionFailure("STORAGE_IO") from error
        except (ValueError, IndexError, KeyError) as error:
            raise DicomRejected("the header cannot be read") from error
        return Inspection(sha256, size_bytes, header, digest, same_as)

    def _other(self, sha256: Sha256, size_bytes: int) -> Inspection:
        """What is no DICOM, and does not claim to be. SessionFailure where only DICOM is taken."""
        if not self._accept_other:
            raise SessionFailure("POLICY_REJECTED", "only DICOM is taken here")
        return Inspection(sha256, size_bytes, None)

    async def _same_object(self, path: Path, header: Header, digest: Sha256, site: str) -> int | None:
        """The image that this object is already, encoded otherwise (contract §6): compared decoded, lossless only."""
        known = await self._store.read(lambda tx: instances.by_sop_instance(tx, site, header.sop_instance_uid))
        if known is not None and known.dataset_sha256 == digest:
            await heal(self._store, known, path, header.dataset_offset)
            return None
        if known is None or known.study_instance_uid != header.study_instance_uid:
            return None
        other = blob_path(self._blobs, site, known.blob_sha256)
        return known.id if await self._same_content(path, other) else None

    def file(self, tx: Connection, inspection: Inspection, origin: Origin) -> Filed:
        """Rows, links, deliveries and audit; see Files."""
        header = inspection.header
        if header is None:
            filed = self._attachment(tx, inspection, origin)
            return self._filed(tx, inspection, filed, _named_order(tx, origin), origin)
        assert isinstance(header, Header), "inspect() made it"
        order = _order_of(tx, header, origin)
        known = instances.by_sop_instance(tx, origin.site, header.sop_instance_uid)
        failure = self._held(tx, inspection, header, known, order, origin)
        if failure is not None:
            return Filed(None, failure=failure)
        filed = Filed(known, deduplicated=True) if known else self._instance(tx, inspection, header, origin)
        return self._filed(tx, inspection, filed, order, origin)

    def accept(self, tx: Connection, inspection: Inspection, origin: Origin) -> Filed:
        """File what a person takes out of quarantine: an image of its own, which supersedes the live one of its UID.

        Without an order of its own it goes where that one went. What is live already is that image.
        """
        header = inspection.header
        assert isinstance(header, Header), "only DICOM is held"
        known = instances.by_sop_instance(tx, origin.site, header.sop_instance_uid)
        order = _order_of(tx, header, origin)
        if known is not None and known.dataset_sha256 == inspection.dataset_sha256:
            return self._filed(tx, inspection, Filed(known, deduplicated=True), order, origin)
        filed = self._filed(tx, inspection, self._instance(tx, inspection, header, origin, known), order, origin)
        assert filed.image is not None, "it was just made"
        if order is None and known is not None:
            for inherited in orders.of_image(tx, known.id):
                linking.link(tx, filed.image, inherited, linking.BY_OPERATOR, origin.actor, origin.peer)
        return filed

    def _filed(
        self, tx: Connection, inspection: Inspection, filed: Filed, order: OrderRecord | None, origin: Origin
    ) -> Filed:
        """What an image has in common, new or known: its link and its audit row."""
        assert filed.image is not None, "there is an image"
        if order is not None:
            named = origin.radiology_order_id is not None
            linking.link(tx, filed.image, order, linking.BY_SESSION if named else linking.BY_ACCESSION, origin.actor,
                         origin.peer)
        outcome = "deduplicated" if filed.deduplicated else "stored"
        _note(tx, origin, f"image.{outcome}", f"image/{filed.image.id}", inspection,
              sop_instance_uid=filed.image.sop_instance_uid)
        return filed

    def _attachment(self, tx: Connection, inspection: Inspection, origin: Origin) -> Filed:
        known = instances.attachment_of_blob(tx, origin.site, inspection.sha256)
        if known is not None:
            return Filed(known, deduplicated=True)
        return Filed(instances.add(
            tx, site=origin.site, kind="attachment", blob_sha256=inspection.sha256, size_bytes=inspection.size_bytes,
            file_name=origin.file_name, content_type=origin.content_type, flags="", door=origin.door))

    def _held(
        self, tx: Connection, inspection: Inspection, header: Header, known: ImageRecord | None,
        order: OrderRecord | None, origin: Origin,
    ) -> SessionFailure | None:
        """Why the object goes to quarantine, where it is now; None for what is filed."""
        if known is not None and inspection.same_as != known.id and known.dataset_sha256 != inspection.dataset_sha256:
            failure = SessionFailure(
                "SOP_INSTANCE_CONFLICT", f"image {known.id} has this SOP Instance UID and other content: "
                "the new file is held in quarantine")
        elif self._quarantines and order is not None and linking.contradictions(order, header) and (
                known is None or not orders.is_linked(tx, known.id, order.radiology_order_id)):
            failure = SessionFailure(
                "PATIENT_MISMATCH", f"it contradicts order {order.radiology_order_id}: it is held in quarantine")
        else:
            return None
        quarantine_id = quarantine.hold(
            tx, origin.site, blob_sha256=inspection.sha256, reason=failure.code,
            sop_instance_uid=header.sop_instance_uid, conflicts_with=known.id if known else None,
            session_id=origin.session_id, radiology_order_id=order.radiology_order_id if order else None,
            door=origin.door)
        _note(tx, origin, "image.quarantined", f"quarantine/{quarantine_id}", inspection, failure.code,
              sop_instance_uid=header.sop_instance_uid)
        return failure

    def _instance(
        self, tx: Connection, inspection: Inspection, header: Header, origin: Origin,
        supersedes: ImageRecord | None = None,
    ) -> Filed:
        attributes = header.attributes
        series_id = instances.ensure_series(
            tx, origin.site, header.study_instance_uid, header.series_instance_uid,
            {name: attributes[name] for name in STUDY_KEYWORDS if name in attributes},
            {name: attributes[name] for name in SERIES_KEYWORDS if name in attributes})
        frames = attributes.get("NumberOfFrames", "")
        add = instances.add if supersedes is None else partial(instances.take_the_place, of=supersedes)
        image = add(
            tx, site=origin.site, kind="dicom", series_id=series_id, sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid, study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid, transfer_syntax_uid=header.transfer_syntax_uid,
            blob_sha256=inspection.sha256, dataset_sha256=inspection.dataset_sha256, size_bytes=inspection.size_bytes,
            instance_number=attributes.get("InstanceNumber", "")[:16] or None,
            number_of_frames=int(frames) if frames.isdecimal() and len(frames) < 9 else None,
            file_name=origin.file_name, content_type="application/dicom", flags=",".join(header.flags),
            door=origin.door, patient_id=header.patient_id, issuer_of_patient_id=header.issuer_of_patient_id,
            accession_number=header.accession_number)
        for destination in self._destinations:
            jobs.add_delivery(tx, origin.site, image.id, destination, origin.priority)
        return Filed(image)


def _read(path: Path, claims_dicom: bool) -> tuple[Header, Sha256] | None:
    """The header and the digest of the data set; None for what is no DICOM and does not claim to be."""
    if not claims_dicom:
        with path.open("rb", buffering=0) as file:
            if not _is_dicom(file.read(132)):
                return None
    header = read_header(path)
    return header, dataset_sha256(path, header)


def _is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM (PS3.10 §7.1)."""
    return head[128:132] == b"DICM"


def _named_order(tx: Connection, origin: Origin) -> OrderRecord | None:
    if origin.radiology_order_id is None:
        return None
    return orders.find(tx, origin.site, origin.radiology_order_id)


def _order_of(tx: Connection, header: Header, origin: Origin) -> OrderRecord | None:
    if origin.radiology_order_id is not None:
        return _named_order(tx, origin)
    return linking.order_of_accession(tx, origin.site, header.accession_number)


def _note(
    tx: Connection, origin: Origin, action: str, subject: str, inspection: Inspection, outcome: str = "ok",
    **detail: str | None,
) -> None:
    audit.append(tx, AuditEntry(
        origin.site, action, actor=origin.actor, subject=subject, peer=origin.peer, outcome=outcome,
        detail={"sha256": inspection.sha256, "bytes": inspection.size_bytes, "door": origin.door,
                "session_id": origin.session_id, **origin.took, **detail}))


def blob_path(blobs: BlobStore, site: str, sha256: str) -> Path:
    """The local file of a sealed blob, to be read only."""
    assert isinstance(blobs, LocalPath), "the only store so far keeps files"
    return blobs.path(sealed(site, sha256))
