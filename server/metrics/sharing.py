"""What each process of a server counted, in a file of its own; all of them together are the server.

Facts: any process may be asked, and must tell of all; a number that goes down is a restart to Prometheus, and makes a
peak. So who is asked writes its own file first, and then adds up the files as everybody else would. What a process had
counted stays when it dies, but for its last moments.
"""

import asyncio
import json
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from server.metrics.counts import Counted, Counts, Took

SHARED_S = 2.0
"""How often a process that nobody asks writes its file."""
Told = tuple[Counted, Took]


class Shared:
    """The files in `folder`, one of which is this process's."""

    def __init__(self, folder: Path, counts: Counts) -> None:
        self._path = folder / f"{uuid.uuid4()}.json"
        self._counts = counts
        self._lock = asyncio.Lock()
        self._written = ""

    def begin(self) -> None:
        """A server starts: what the processes of the one before counted is over."""
        folder = self._path.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            path.unlink(missing_ok=True)

    async def share(self) -> bool:
        """Write this process's file, if there is news. False where the disk does not take it."""
        async with self._lock:  # an older account must not take the place of a newer one
            text = _as_json(self._counts.told())
            if text == self._written:
                return True
            try:
                await asyncio.to_thread(_replace, self._path, text)
            except OSError:
                return False
            self._written = text
            return True

    async def all(self) -> Told:
        """What the whole server counted."""
        is_written = await self.share()
        found = await asyncio.to_thread(lambda: list(_read(self._path.parent, None if is_written else self._path)))
        return added(found if is_written else [*found, self._counts.told()])


def added(found: Iterable[Told]) -> Told:
    """The sum of several processes."""
    counted: Counted = {}
    took: Took = {}
    for its_counted, its_took in found:
        for metric, values in its_counted.items():
            for labels, value in values.items():
                into = counted.setdefault(metric, {})
                into[labels] = into.get(labels, 0) + value
        for metric, durations in its_took.items():
            for labels, (places, sum_s) in durations.items():
                known, known_s = took.setdefault(metric, {}).get(labels, ([0] * len(places), 0.0))
                took[metric][labels] = [one + other for one, other in zip(known, places, strict=True)], known_s + sum_s
    return counted, took


def _as_json(told: Told) -> str:
    return json.dumps([[[metric, list(values.items())] for metric, values in part.items()] for part in told])


def _replace(path: Path, text: str) -> None:
    """Nobody reads half a file. Not flushed: after a power cut nobody counts on."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _read(folder: Path, but: Path | None) -> Iterable[Told]:
    for path in sorted(folder.glob("*.json")):
        if path != but:
            with suppress(OSError, ValueError):
                counted, took = json.loads(path.read_text())
                yield ({metric: {tuple(labels): value for labels, value in values} for metric, values in counted},
                       {metric: {tuple(labels): (places, sum_s) for labels, (places, sum_s) in values}
                        for metric, values in took})
