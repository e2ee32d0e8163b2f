"""Walks the audit chain of a database's file, long ones in several processes: each takes a part. Never writes.

Fact: rows that are there at the begin never change, so parts that are read on snapshots of their own fit together.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from storage import audit
from storage.chain import Anchor, ChainReport
from storage.database.sqlite import connect

ROWS_A_PROCESS = 50_000
"""Fewer are walked sooner than a process begins."""


def verify(path: Path, anchors: Sequence[Anchor] = (), end: Anchor | None = None) -> ChainReport:
    """See audit.verify. Forks: for a process without threads of its own."""
    with closing(connect(path, read_only=True)) as connection:
        last = audit.newest(connection).seq
    share = max(1, min(os.cpu_count() or 1, last // ROWS_A_PROCESS))
    bounds = [last * number // share for number in range(1, share)]
    # the last part knows no end: the chain may go on beyond what was there at the begin
    parts = list(zip([0, *bounds], [*bounds, None], strict=True))
    if len(parts) == 1:
        return _walk(path, anchors, end, (0, None))
    with ProcessPoolExecutor(share, get_context("fork")) as pool:
        reports = list(pool.map(partial(_walk, path, anchors, end), parts))
    return next((one for one in reports if one.fault), reports[-1])


def _walk(path: Path, anchors: Sequence[Anchor], end: Anchor | None, part: tuple[int, int | None]) -> ChainReport:
    with closing(connect(path, read_only=True)) as connection:
        return audit.verify(connection, anchors, end, part)
