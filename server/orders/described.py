"""The order calls, the inbox and links as `/openapi.json` tells them."""

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.describing import UNREADABLE, Answer, Described, Parameter, answered, cached_answer
from server.orders.schema import Link, OrderBody


class Order(TypedDict):
    """What is known of an order, and the ids of its images; beside these the fields that it was announced with."""

    radiology_order_id: int | str
    visit_id: int | str | None
    verified: bool
    images: list[int]
    created_at: str
    updated_at: str
    links: dict[str, str]


class OrderList(TypedDict):
    """A page of orders."""

    results: list[Order]
    next_cursor: str | None


class OrderStatus(TypedDict):
    """How far an order's images are: sizes in bytes; `state` is expected, on_its_way or there."""

    radiology_order_id: int | str
    state: str
    percent: int
    expected_images: int | None
    images: int
    sessions: dict[str, int]
    bytes_received: int
    bytes_announced: int
    bytes_per_s: int
    estimated_left_s: int | None
    estimated_at: str | None


class OrderImages(TypedDict):
    """The images of an order."""

    results: list[dict[str, Any]]


class InboxPage(TypedDict):
    """What belongs to no order yet."""

    images: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    next_cursor: str | None


class Linked(TypedDict):
    """Where an image belongs now, and whether this call changed it."""

    image_id: int
    changed: bool
    orders: list[int | str]


PAGE = (Parameter("limit", "At most so many, up to 500", {"type": "integer", "minimum": 1, "maximum": 500}),
        Parameter("cursor", "The page after, as `next_cursor` said"))
REPEATED = Parameter("Idempotency-Key", "The same again gets the answer of then, `replayed`", place="header")
LINKS = ("not_found", "order_visit_mismatch", "invalid_header", "idempotency_key_reused", *UNREADABLE)

DESCRIBED = {
    "put": Described(
        {201: Answer("The order is new", Order), 200: Answer("It was known: replaced", Order)}, OrderBody,
        refusals=("not_found", "order_visit_mismatch", *UNREADABLE)),
    "get": Described(cached_answer(Order, "The order"), refusals=("not_found", "invalid_field")),
    "listing": Described(cached_answer(OrderList), parameters=(
        Parameter("visit_id", "Those of a visit"), Parameter("accession_number", "Those of that number"),
        Parameter("patient_id", "Those of a patient"), *PAGE), refusals=("invalid_field",)),
    "status": Described(cached_answer(OrderStatus), refusals=("not_found", "invalid_field")),
    "images": Described(cached_answer(OrderImages), refusals=("not_found", "invalid_field")),
    "inbox": Described(cached_answer(InboxPage), parameters=PAGE, refusals=("invalid_field",)),
    "link": Described(answered(Linked), Link, (REPEATED,), LINKS),
    "unlink": Described(answered(Linked), Link, (REPEATED,), LINKS),
}
