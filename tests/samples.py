"""The DICOM files of pydicom's wheel, and the table of what is expected of each."""

import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pydicom

from server.pacs.dicom import read_header

BASE = Path(pydicom.__file__).parent / "data"
TABLE = Path(__file__).with_name("samples.toml")


@dataclass(frozen=True)
class Sample:
    """One row: `expect` is `stored` or the code of the refusal; `dcmtk` why storescu cannot send it."""

    path: Path
    expect: str
    why: str = ""
    flags: str = ""
    dcmtk: str = ""
    picture: str = ""


def files() -> dict[str, Path]:
    """Every DICOM file by its name under pydicom's data folder."""
    found = {}
    for path in sorted(BASE.rglob("*")):
        if path.is_file() and (
            path.suffix == ".dcm" or path.name.startswith("DICOMDIR") or path.read_bytes()[128:132] == b"DICM"
        ):
            found[path.relative_to(BASE).as_posix()] = path
    return found


def table() -> dict[str, Sample]:
    """The rows by name."""
    return {name: Sample(BASE / name, **row) for name, row in tomllib.loads(TABLE.read_text()).items()}


def rounds(samples: dict[str, Path]) -> list[list[str]]:
    """Names of sound samples in rounds in which no SOP Instance UID comes twice.

    Some samples are one object in many encodings.
    """
    seen: dict[str, int] = defaultdict(int)
    result: dict[int, list[str]] = defaultdict(list)
    for name, path in samples.items():
        uid = read_header(path).sop_instance_uid
        result[seen[uid]].append(name)
        seen[uid] += 1
    return [result[number] for number in sorted(result)]
