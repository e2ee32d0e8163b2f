"""What `packhorse fsck` says of each thing that does not hang together, and does with `--repair`."""

from pathlib import Path

from server.commands.terminal import out
from server.errors import AppError
from server.keeping.repair import Attributes, Case, Repairer
from server.pacs.dicom import SERIES_KEYWORDS, STUDY_KEYWORDS, read_header
from server.pacs.ingest import blob_path
from storage.store import Store

SHOWN = 100


async def tell_remedies(store: Store, *, mend: bool) -> int:
    """Name each case with its remedy; `mend` does it where that is safe. Gives how many orphans are left."""
    repairer = Repairer(store, lambda key: blob_path(store.blobs, key.site, key.name), _attributes)
    count = left = 0
    async for case in repairer.cases():
        count += 1
        done = case.mend is not None and mend and await case.mend()
        left += case.is_orphan
        if count <= SHOWN:
            out.print(_told(case, mended=mend, done=done))
    if count > SHOWN:
        out.print(f"and {count - SHOWN} more")
    return sum([case.is_orphan async for case in repairer.cases()]) if mend else left


def _told(case: Case, *, mended: bool, done: bool) -> str:
    what = f"{case.kind}: {case.subject}: {case.remedy}"
    if case.mend is None or not mended:
        return what if case.mend is None else f"{what} (with --repair)"
    return f"{what}: {'done' if done else 'not done, for it is no longer so, or cannot be'}"


def _attributes(path: Path) -> Attributes:
    try:
        header = read_header(path)
    except AppError as error:
        raise ValueError(error.detail) from error
    shown = header.attributes
    return (header.study_instance_uid, header.series_instance_uid,
            {name: shown[name] for name in STUDY_KEYWORDS if name in shown},
            {name: shown[name] for name in SERIES_KEYWORDS if name in shown})
