"""The seam between whoever brings sealed bytes and the PACS: values and one Protocol, no behaviour."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection

from server.errors import SessionFailure
from storage.records import PRIORITIES, Door, ImageRecord, Sha256


@dataclass(frozen=True, slots=True)
class Origin:
    """Where sealed bytes came from, and what their sender said of them.

    `claims_dicom`: the sender calls them DICOM, so anything else is refused (contract §10). `began_s`: when they
    began to come, by time.monotonic(), where no row of a transfer tells how long that took.
    """

    site: str
    door: Door
    actor: str
    claims_dicom: bool
    radiology_order_id: str | None = None
    session_id: str | None = None
    file_name: str | None = None
    content_type: str | None = None
    peer: str | None = None
    priority: str = PRIORITIES[0]
    began_s: float | None = None

    @property
    def took(self) -> dict[str, float]:
        """How long the bytes took to come and to be stored, for the audit."""
        return {} if self.began_s is None else {"duration_s": round(time.monotonic() - self.began_s, 3)}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was read of sealed bytes before any row is written.

    `header` is None for what is no DICOM; otherwise the reader's value, opaque to everybody but the PACS.
    `same_as`: the image that holds the same object in another encoding.
    """

    sha256: Sha256
    size_bytes: int
    header: Any  # server.pacs.dicom.Header, which the features outside the PACS must not know
    dataset_sha256: Sha256 | None = None
    same_as: int | None = None


@dataclass(frozen=True, slots=True)
class Filed:
    """What filing came to: an image, new or known (`deduplicated`), or the reason why there is none."""

    image: ImageRecord | None
    deduplicated: bool = False
    failure: SessionFailure | None = None


class Files(Protocol):
    """Files sealed bytes as Study / Series / Image; idempotent by SOP Instance UID and dataset digest."""

    async def inspect(
        self, sha256: Sha256, size_bytes: int, origin: Origin, head: bytes | None = None
    ) -> Inspection:
        """Read the header within bounds. SessionFailure: NOT_DICOM, DICOM_REJECTED, POLICY_REJECTED,
        INGEST_TIMEOUT, INGEST_CRASH. The blob must be sealed; `head`, where it is at hand, is how it begins."""
        ...

    def file(self, tx: Connection, inspection: Inspection, origin: Origin) -> Filed:
        """A unit of work: rows of study, series, image, links, deliveries, audit; quarantine on conflict.

        Never raises for what the content is: that is `Filed.failure`. The blob's row must exist in `tx`.
        """
        ...
