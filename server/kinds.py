"""What the processes of a server do."""

from enum import StrEnum


class Kind(StrEnum):
    """What a process of a server does."""

    HTTP = "http"
    DICOM = "dicom"
    JOBS = "jobs"


ALL = frozenset(Kind)
