"""The audit's call as `/openapi.json` tells it: what it takes and answers."""

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.describing import Answer, Described, Parameter

MOST = 1000


class AuditRow(TypedDict):
    """One row of the chain, as `packhorse audit export` gives it out; docs/audit.md says how its hash is made."""

    seq: int
    site: str
    at: str
    action: str
    actor: str
    subject: str | None
    peer: str | None
    outcome: str
    detail: dict[str, Any]  # differs by action
    previous_hash: str
    row_hash: str


class AuditRows(TypedDict):
    """In order; go on with `?after=` and `next_after` while there is `more`."""

    results: list[AuditRow]
    next_after: int
    more: bool


DESCRIBED = {
    "rows": Described(
        {200: Answer("Rows of the caller's site", AuditRows)},
        parameters=(
            Parameter("after", "The seq of the last row that is known", {"type": "integer", "minimum": 0}),
            Parameter("limit", "At most so many rows", {"type": "integer", "minimum": 1, "maximum": MOST})),
        refusals=("invalid_field",)),
}
