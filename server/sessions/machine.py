"""THE table of a session's legal moves (contract §3), pure. docs/sessions.md draws its diagram from it."""

from server.errors import RETRYABLE_FROM_ZERO, SESSION_FAILURES, RequestError
from storage.records import Status

MOVES: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.METADATA_UPLOADING, Status.FAILED}),
    Status.METADATA_UPLOADING: frozenset({Status.METADATA_UPLOADED, Status.FAILED}),
    Status.METADATA_UPLOADED: frozenset({Status.BINARY_UPLOADING, Status.FAILED}),
    Status.BINARY_UPLOADING: frozenset({Status.SYNCED, Status.FAILED}),
    Status.SYNCED: frozenset({Status.ACK_RECEIVED}),
    Status.ACK_RECEIVED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
}

FOR_PEOPLE: dict[Status, str] = {
    Status.QUEUED: "waiting",
    Status.METADATA_UPLOADING: "waiting",
    Status.METADATA_UPLOADED: "details sent",
    Status.BINARY_UPLOADING: "sending",
    Status.SYNCED: "at the server, keep your copy",
    Status.ACK_RECEIVED: "safe to delete",
    Status.FAILED: "needs attention",
}

ACTIVE = (Status.QUEUED, Status.METADATA_UPLOADING, Status.METADATA_UPLOADED, Status.BINARY_UPLOADING)
STORED = (Status.SYNCED, Status.ACK_RECEIVED)


def check(present: Status, wanted: Status) -> None:
    """RequestError `invalid_transition` unless the table has the move."""
    if wanted not in MOVES[present]:
        raise RequestError("invalid_transition", f"a session that is {present} cannot become {wanted}",
                           from_status=present, to_status=wanted)


def is_retryable(error_code: str | None) -> bool:
    """Whether a session that failed with this code may be retried (contract §7)."""
    return error_code is not None and SESSION_FAILURES[error_code].retryable


def keeps_progress(error_code: str | None) -> bool:
    """Whether a retry goes on from the bytes that are there (contract §7)."""
    return is_retryable(error_code) and error_code not in RETRYABLE_FROM_ZERO


def keeps_upload(error_code: str) -> bool:
    """Whether the upload's URL lives on after this failure, to be used again after a retry (contract §2)."""
    return keeps_progress(error_code) and error_code != "STAGING_LOST"


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> QUEUED"]
    lines += [f"    {source} --> {target}" for source in Status for target in sorted(MOVES[source])]
    return "\n".join([*lines, "    ACK_RECEIVED --> [*]"])
