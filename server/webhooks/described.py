"""The webhook calls as `/openapi.json` tells them: what they take and answer."""


from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.bodies import Body, Reason
from server.describing import UNREADABLE, Described, Parameter, answered, cached_answer

MOST = 500


class Resend(Body):
    """`resend/`: every operator action says why."""

    reason: Reason


class Told(TypedDict):
    """One event on its way to one receiver."""

    id: int
    webhook: str
    event_id: str
    event: str
    status: str
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: str
    updated_at: str
    delivered_at: str | None


class ToldList(TypedDict):
    """The newest first."""

    results: list[Told]


DESCRIBED = {
    "listing": Described(cached_answer(ToldList), parameters=(
        Parameter("status", "waiting, delivered or parked"), Parameter("webhook", "To this URL"),
        Parameter("limit", "At most so many", {"type": "integer", "minimum": 1, "maximum": MOST})),
        refusals=("invalid_field",)),
    "resend": Described(answered(Told), Resend, refusals=("not_found", "invalid_transition", *UNREADABLE)),
}
