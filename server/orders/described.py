"""The order calls as `/openapi.json` tells them."""

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from server.describing import UNREADABLE, Answer, Described, answered
from server.orders.service import OrderBody


class Order(TypedDict):
    """What is known of an order, and its images; beside these the fields that it was announced with."""

    radiology_order_id: int | str
    visit_id: int | str | None
    verified: bool
    images: list[Any]
    created_at: str
    updated_at: str


DESCRIBED = {
    "put": Described(
        {201: Answer("The order is new", Order), 200: Answer("It was known: replaced", Order)}, OrderBody,
        refusals=("order_visit_mismatch", "order_conflict", *UNREADABLE)),
    "get": Described(answered(Order, "The order"), refusals=("not_found", "invalid_field")),
}
