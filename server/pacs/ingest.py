"""The one door into the PACS: every way in walks through `Ingester` (server.filing.Files)."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import Connection

from server.errors import DicomRejected, SessionFailure
from server.filing import Filed, Inspection, Origin
from server.pacs.dicom import SERIES_KEYWORDS, STUDY_KEYWORDS, Header, dataset_sha256, read_header
from server.pacs.healing import heal
from storage import audit, instances, jobs, orders
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
        self, store: Store, same_content: SameContent, *, destinations: tuple[str, ...] = (), accept_other: bool = True
    ) -> None:
        self._store = store
        self._blobs = store.blobs
        self._same_content = same_content
        self._destinations = destinations
        self._accept_other = accept_other

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
        else:
            assert isinstance(header, Header), "inspect() made it"
            filed = self._instance(tx, inspection, header, origin)
        if filed.image is None:
            return filed
        if origin.radiology_order_id is not None:
            orders.link(tx, origin.site, filed.image.id, origin.radiology_order_id, "session")
        elif header is not None:
            _link_by_accession(tx, filed.image, header, origin)
        outcome = "deduplicated" if filed.deduplicated else "stored"
        _note(tx, origin, f"image.{outcome}", str(filed.image.id), inspection,
              sop_instance_uid=filed.image.sop_instance_uid)
        return filed

    def _attachment(self, tx: Connection, inspection: Inspection, origin: Origin) -> Filed:
        known = instances.attachment_of_blob(tx, origin.site, inspection.sha256)
        if known is not None:
            return Filed(known, deduplicated=True)
        return Filed(instances.add(
            tx, site=origin.site, kind="attachment", blob_sha256=inspection.sha256, size_bytes=inspection.size_bytes,
            file_name=origin.file_name, content_type=origin.content_type, flags="", door=origin.door))

    def _instance(self, tx: Connection, inspection: Inspection, header: Header, origin: Origin) -> Filed:
        known = instances.by_sop_instance(tx, origin.site, header.sop_instance_uid)
        if known is not None and (known.dataset_sha256 == inspection.dataset_sha256 or inspection.same_as == known.id):
            return Filed(known, deduplicated=True)
        if known is not None:
            instances.add_quarantine(
                tx, site=origin.site, blob_sha256=inspection.sha256, reason="SOP_INSTANCE_CONFLICT",
                sop_instance_uid=header.sop_instance_uid, conflicts_with=known.id, session_id=origin.session_id)
            _note(tx, origin, "image.quarantined", str(known.id), inspection, sop_instance_uid=header.sop_instance_uid)
            return Filed(None, failure=SessionFailure(
                "SOP_INSTANCE_CONFLICT", f"image {known.id} has this SOP Instance UID and other content: "
                "the new file is held in quarantine"))
        attributes = header.attributes
        series_id = instances.ensure_series(
            tx, origin.site, header.study_instance_uid, header.series_instance_uid,
            {name: attributes[name] for name in STUDY_KEYWORDS if name in attributes},
            {name: attributes[name] for name in SERIES_KEYWORDS if name in attributes})
        flags = (*header.flags, *_contradictions(tx, header, origin))
        frames = attributes.get("NumberOfFrames", "")
        image = instances.add(
            tx, site=origin.site, kind="dicom", series_id=series_id, sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid, study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid, transfer_syntax_uid=header.transfer_syntax_uid,
            blob_sha256=inspection.sha256, dataset_sha256=inspection.dataset_sha256, size_bytes=inspection.size_bytes,
            instance_number=attributes.get("InstanceNumber", "")[:16] or None,
            number_of_frames=int(frames) if frames.isdecimal() and len(frames) < 9 else None,
            file_name=origin.file_name, content_type="application/dicom", flags=",".join(flags), door=origin.door)
        for destination in self._destinations:
            jobs.add_delivery(tx, origin.site, image.id, destination)
        return Filed(image, flags=flags)


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


def _order_of(tx: Connection, header: Header, origin: Origin) -> OrderRecord | None:
    if origin.radiology_order_id is not None:
        return orders.find(tx, origin.site, origin.radiology_order_id)
    accession = header.attributes.get("AccessionNumber")
    found = orders.by_accession(tx, origin.site, accession) if accession else []
    return found[0] if len(found) == 1 else None  # two orders of one number: a person must choose


def _link_by_accession(tx: Connection, image: ImageRecord, header: Header, origin: Origin) -> None:
    order = _order_of(tx, header, origin)
    if order is not None:
        orders.link(tx, origin.site, image.id, order.radiology_order_id, "accession")


def _contradictions(tx: Connection, header: Header, origin: Origin) -> tuple[str, ...]:
    """Where the object says another patient or accession than the order: flagged, never re-labelled (contract §10)."""
    order = _order_of(tx, header, origin)
    if order is None:
        return ()
    flags = []
    ordered = {"patient_mismatch": (order.attributes.get("patient_id"), "PatientID"),
               "accession_mismatch": (order.accession_number, "AccessionNumber")}
    for flag, (expected, keyword) in ordered.items():
        actual = header.attributes.get(keyword)
        if expected and actual and str(expected) != actual:
            flags.append(flag)
    return tuple(flags)


def _note(
    tx: Connection, origin: Origin, action: str, subject: str, inspection: Inspection, **detail: str | None
) -> None:
    audit.append(tx, AuditEntry(
        origin.site, action, actor=origin.actor, subject=f"image/{subject}", peer=origin.peer,
        detail={"sha256": inspection.sha256, "door": origin.door, "session_id": origin.session_id, **detail}))


def blob_path(blobs: BlobStore, site: str, sha256: str) -> Path:
    """The local file of a sealed blob, to be read only."""
    assert isinstance(blobs, LocalPath), "the only store so far keeps files"
    return blobs.path(sealed(site, sha256))
