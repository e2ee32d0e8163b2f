"""`make bench-uploads`: every row on every server, interleaved, medians; prints the tables, writes docs/benchmarks.md.

SCALE=0.1 makes everything smaller, ROUNDS=5 takes more rounds, ROWS=HEAD,chunks chooses rows by a part of their name,
WORKERS=2 is what Packhorse runs with, OUT=- only prints.
"""

import os
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import rows, servers
from benchmarks.report import tables

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> int:
    """Measure and report; 0 when every row could be measured."""
    scale = float(os.environ.get("SCALE") or 1)
    rounds, workers = int(os.environ.get("ROUNDS") or 3), int(os.environ.get("WORKERS") or 2)
    wanted = [word.strip().lower() for word in os.environ.get("ROWS", "").split(",") if word.strip()]
    chosen = [row for row in rows.ROWS if not wanted or any(word in row.name.lower() for word in wanted)]
    names, media = servers.names(), {"disk": Path(os.environ.get("DISK") or tempfile.gettempdir())}
    if Path("/dev/shm").is_dir():
        media["tmpfs"] = Path("/dev/shm")
    found: dict[tuple[str, str, str], float] = {}
    for medium, root in media.items():
        with tempfile.TemporaryDirectory(dir=root) as folder:
            for row in chosen:
                if medium == "disk" or row.must_be_on_tmpfs is not None:
                    found |= _measure(row, medium, names, Path(folder), scale, rounds, workers)
    survived, full, fsyncs = {}, {}, None
    with tempfile.TemporaryDirectory(dir=media["disk"]) as folder:
        if not wanted or "survives" in wanted:
            survived = {
                (how, name): rows.broken(name, Path(folder), how, scale, workers)
                for how in rows.BREAKS
                for name in names
                if name != servers.CEILING
            }
            full = {
                name: rows.on_a_full_disk(name, Path(folder), workers) or "not tried"
                for name in names
                if name != servers.CEILING
            }
            fsyncs = rows.fsyncs_per_file(Path(folder), 1)
    text = tables(
        chosen,
        names,
        found,
        survived,
        full,
        fsyncs,
        media["disk"],
        scale=scale,
        rounds=rounds,
        workers=workers,
        moment=datetime.now(UTC),
    )
    print(text)
    if os.environ.get("OUT") != "-":
        DOCUMENT.write_text(text)
    return 0


def _measure(
    row: rows.Row, medium: str, names: list[str], folder: Path, scale: float, rounds: int, workers: int
) -> dict[tuple[str, str, str], float]:
    figures: dict[str, list[float]] = {name: [] for name in names if rows.measurable(name, row)}
    for turn in range(rounds):
        for name in list(figures):
            try:
                with servers.running(name, folder / f"{turn}", workers) as server:
                    rows.warm_up(server)
                    figures[name].append(row.measure(server, scale))
            except NotImplementedError:
                del figures[name]
            else:
                print(
                    f"{row.name} ({medium}), {name}: {figures[name][-1]:,.0f} {row.unit}", file=sys.stderr, flush=True
                )
    return {(row.name, medium, name): statistics.median(values) for name, values in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
