"""The event call as `/openapi.json` tells it: what it takes and answers."""

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.describing import Answer, Described, Parameter

MOST = 500


class Happened(TypedDict):
    """One event; docs/events.md lists the kinds and what `data` holds."""

    type: str
    timestamp: str
    data: dict[str, Any]  # differs by kind


class HappenedList(TypedDict):
    """In order; go on with `?after=` and `next_after`."""

    results: list[Happened]
    next_after: int
    more: bool


DESCRIBED = {
    "events": Described(
        {200: Answer("A stream that goes on, or what happened so far", HappenedList, also={"text/event-stream": {}})},
        parameters=(
            Parameter("after", "The seq of the last event that is known", {"type": "integer", "minimum": 0}),
            Parameter("Last-Event-ID", "The same, as a browser sends it", {"type": "integer"}, place="header"),
            Parameter("session_id", "Of this session"), Parameter("radiology_order_id", "Of this order"),
            Parameter("study_instance_uid", "Of this study"),
            Parameter("limit", "At most so many, as JSON", {"type": "integer", "minimum": 1, "maximum": MOST})),
        refusals=("invalid_field", "too_many_streams")),
}
