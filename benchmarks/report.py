"""The tables, in Markdown. Measures nothing."""

import subprocess
from datetime import datetime
from pathlib import Path

from benchmarks import servers
from benchmarks.rows import BREAKS, Row, Survived


def tables(
    rows: list[Row],
    names: list[str],
    found: dict[tuple[str, str, str], float],
    survived: dict[tuple[str, str], Survived],
    full: dict[str, str],
    fsyncs: float | None,
    disk: Path,
    *,
    scale: float,
    rounds: int,
    workers: int,
    moment: datetime,
) -> str:
    """Everything that was found."""
    versions = servers.versions()
    head = " | ".join(f"{name} {versions.get(name, '')}".strip() for name in names)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench-uploads`. Every row runs on every server in turn, with the same client, on one",
        f"machine; each figure is the median of {rounds} rounds. × is Packhorse's share of {servers.REFERENCE}'s",
        "figure there. Each server is warm: it has begun with all of its processes, and has taken 240 small files.",
        "Packhorse verifies SHA-256, writes its rows and flushes to the medium before it answers; no peer does",
        "any of these.",
        "",
        f"{moment:%Y-%m-%d %H:%M} UTC · {servers.machine()} · {_file_system(disk)} · "
        f"aiohttp {versions['aiohttp']}, "
        f"Python {versions['python']}, Node {servers.node_version()} · "
        f"Packhorse with {workers} workers · scale {scale:g}",
        "",
        f"| | {head} | × | must be |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for row in rows:
        for medium in ("disk", "tmpfs"):
            figures = {name: found.get((row.name, medium, name)) for name in names}
            if any(figure is not None for figure in figures.values()):
                lines.append(_row(row, medium, names, figures))
    if fsyncs is not None:
        lines += [
            "",
            f"Packhorse calls fsync or fdatasync {fsyncs:.1f} times per 64 KiB file that is sent alone;",
            "files that come together share the commits of the database.",
        ]
    if survived:
        peers = [name for name in names if name != servers.CEILING]
        lines += [
            "",
            "## What survives",
            "300 MiB of a 1 GiB PATCH are sent, then …: how much HEAD tells, and after how long.",
            "",
            f"| | {' | '.join(peers)} |",
            "|---|" + "---|" * len(peers),
        ]
        lines += [
            f"| {title} | {' | '.join(_survived(survived[how, name]) for name in peers)} |"
            for how, title in BREAKS.items()
        ]
        lines += [
            f"| disk full midway | {' | '.join(full[name] for name in peers)} |",
            "",
            "The last row: 48 MiB for a file system that has room for 16 of them and is then given room again.",
        ]
    return "\n".join(lines) + "\n"


def _row(row: Row, medium: str, names: list[str], figures: dict[str, float | None]) -> str:
    ours, theirs = figures[servers.PACKHORSE], figures.get(servers.REFERENCE)
    ratio = f"{ours / theirs:.2f}" if ours and theirs else "–"
    cells = " | ".join("–" if figures[name] is None else f"{figures[name]:,.0f}" for name in names)
    must_be = row.must_be if medium == "disk" else row.must_be_on_tmpfs
    must = f"{must_be:g} ×" if must_be else "≤ 120"
    return f"| {row.name}, {row.unit}{'' if medium == 'disk' else ', tmpfs'} | {cells} | {ratio} | {must} |"


def _survived(found: Survived) -> str:
    return f"{found.percent:.2f} %, {found.seconds:.2f} s" + (f" ({found.note})" if found.note else "")


def _file_system(path: Path) -> str:
    told = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True).stdout.strip()
    return told or "unknown file system"
