"""Tells of a study, once, that no image came to it for a while: a row of the audit, written by whoever reads it on.

Fact: the place up to which the chain was read is a row, moved in the transaction that notes what was read; so each
image counts once, also over a crash, and a study is told once for each time that it falls quiet.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from storage import audit, instances, watches
from storage.records import AuditEntry, now, timestamp
from storage.store import Store

READER = "studies"
PAGE_ROWS = 500
FAR_ROWS = 5000
"""Behind the newest row without an image in between: then the place is moved all the same."""


class Studies:
    """The sweep over studies that wait."""

    def __init__(self, store: Store, stable_after: timedelta) -> None:
        self._store = store
        self._stable_after = stable_after

    async def begin(self) -> None:
        """Before anything happens: images count from here, unless they did since an earlier start."""
        await self._store.write(lambda tx: audit.place(tx, READER))

    async def sweep(self) -> None:
        """Note the images that came, and tell of the studies that are quiet by now."""
        while await self._read_on():
            pass
        before = timestamp(now() - self._stable_after)
        while (waiting := await self._store.read(lambda tx: watches.quiet(tx, before, PAGE_ROWS))):
            await self._store.write(lambda tx: _tell(tx, before))
            if len(waiting) < PAGE_ROWS:
                return

    async def _read_on(self) -> bool:
        """Whether there may be more."""

        def look(tx: Connection) -> tuple[int, int, list[dict[str, Any]]]:
            seq, last = audit.place(tx, READER), audit.newest(tx).seq
            rows = audit.after(tx, seq, PAGE_ROWS, ("image.stored",))
            return seq, rows[-1]["seq"] if len(rows) == PAGE_ROWS else last, rows

        seq, last, rows = await self._store.read(look)
        if not rows and last - seq < FAR_ROWS:
            return False

        def note(tx: Connection) -> None:
            audit.advance(tx, READER, seq, last)
            for row in rows:
                image = instances.find(tx, row["site"], int(row["subject"].removeprefix("image/")))
                if image is not None and image.study_instance_uid is not None:
                    watches.note_image(tx, image.site, image.study_instance_uid, row["at"])

        await self._store.write(note)
        return len(rows) == PAGE_ROWS


def _tell(tx: Connection, before: str) -> None:
    """A unit of work: asks again what is quiet, for an image may have come since."""
    for site, uid in watches.quiet(tx, before, PAGE_ROWS):
        images = watches.count_images(tx, site, uid)
        audit.append(tx, AuditEntry(site, "study.stable", subject=uid, detail={"images": images}))
        watches.note_told(tx, site, uid)
