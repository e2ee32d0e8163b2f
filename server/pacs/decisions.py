"""What the calls of operators take, and how `/openapi.json` tells them."""

from typing import Literal

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.bodies import Body, Reason
from server.describing import UNREADABLE, Described, Parameter, answered, cached_answer


class Reject(Body):
    """`reject/`: why in words, and as one of the codes of IHE IOCM (server.pacs.rejection.CODES)."""

    reason: Reason
    code: Literal["113001", "113037", "113038", "113039"]


class Decide(Body):
    """`restore/`, and a decision on what is held."""

    reason: Reason


class Rejected(TypedDict):
    """Which images are rejected with which code now, null where they are shown; how many this call changed."""

    rejection_code: str | None
    meaning: str | None
    images: list[int]
    changed: int


class Held(TypedDict):
    """Bytes that were held; `image_id`: what they became when they were accepted."""

    id: int
    why_held: str
    state: str
    sop_instance_uid: str | None
    conflicts_with: int | None
    image_id: int | None
    radiology_order_id: int | str | None
    session_id: str | None
    door: str
    file_sha256: str
    size: int | None
    created_at: str
    decided_at: str | None


class HeldList(TypedDict):
    """A page of what is, or was, held."""

    results: list[Held]
    next_cursor: str | None


REPEATED = Parameter("Idempotency-Key", "The same again gets the answer of then, `replayed`", place="header")
REFUSALS = ("not_found", "invalid_header", "idempotency_key_reused", *UNREADABLE)
FAILURES = ("INGEST_TIMEOUT", "INGEST_CRASH", "STORAGE_IO", "DICOM_REJECTED", "NOT_DICOM")
"""Why bytes that are accepted cannot be read again."""
_REJECTION = Described(answered(Rejected), Reject, (REPEATED,), REFUSALS)
_RESTORATION = Described(answered(Rejected), Decide, (REPEATED,), REFUSALS)

DESCRIBED = {
    "reject_image": _REJECTION, "reject_study": _REJECTION,
    "restore_image": _RESTORATION, "restore_study": _RESTORATION,
    "quarantine": Described(cached_answer(HeldList), parameters=(
        Parameter("state", "held, accepted, rejected or all"),
        Parameter("limit", "At most so many, up to 500", {"type": "integer", "minimum": 1, "maximum": 500}),
        Parameter("cursor", "The page after, as `next_cursor` said")), refusals=("invalid_field",)),
    "accept": Described(answered(Held), Decide, (REPEATED,), (
        *REFUSALS, "readback_failed", "readback_running", *FAILURES)),
    "reject_held": Described(answered(Held), Decide, (REPEATED,), (*REFUSALS, "already_accepted")),
}
