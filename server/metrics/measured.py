"""The door into the PACS with a clock beside it: how long reading and filing takes, by door. Changes nothing else."""

import time

from sqlalchemy import Connection

from server.filing import Filed, Files, Inspection, Origin
from server.metrics.counts import INGEST_S, Counts
from storage.records import Sha256


class MeasuredFiles:
    """`files`, its two steps measured."""

    def __init__(self, files: Files, counts: Counts) -> None:
        self._files = files
        self._counts = counts

    async def inspect(
        self, sha256: Sha256, size_bytes: int, origin: Origin, head: bytes | None = None
    ) -> Inspection:
        """See Files."""
        began = time.perf_counter()
        try:
            return await self._files.inspect(sha256, size_bytes, origin, head)
        finally:
            self._counts.took(INGEST_S, (origin.door, "read"), time.perf_counter() - began)

    def file(self, tx: Connection, inspection: Inspection, origin: Origin) -> Filed:
        """See Files."""
        began = time.perf_counter()
        try:
            return self._files.file(tx, inspection, origin)
        finally:
            self._counts.took(INGEST_S, (origin.door, "file"), time.perf_counter() - began)
