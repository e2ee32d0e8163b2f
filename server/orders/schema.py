"""What the order calls take and give: the fields of an order (contract §4), and orders as JSON."""

import re
from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from server.bodies import Body, Reason, Text
from server.identifiers import shown
from storage.records import OrderRecord

DAY = re.compile(r"\d{4}-?\d{2}-?\d{2}")


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("must be a time, such as 2026-11-22T10:02:40Z") from error  # without what was sent
    return text


def _day(text: str) -> str:
    try:
        if not DAY.fullmatch(text):
            raise ValueError("weeks and days of the year are ISO 8601 too")
        date.fromisoformat(text)
    except ValueError as error:
        raise ValueError("must be a day, such as 1970-01-31") from error
    return text


Short = Annotated[Text, Field(max_length=64)]
AeTitle = Annotated[Text, Field(max_length=16)]


class OrderBody(Body):
    """What an EMR announces (contract §4). `status` is the EMR's own word, kept as it came."""

    visit_id: int | str | None = None
    patient_id: Short | None = None
    issuer_of_patient_id: Short | None = None
    patient_name: Annotated[Text, Field(max_length=324)] | None = None
    patient_birth_date: Annotated[str, AfterValidator(_day)] | None = None
    patient_sex: Literal["M", "F", "O"] | None = None
    accession_number: Annotated[Text, Field(max_length=16)] | None = None
    modality: Annotated[Text, Field(max_length=16)] | None = None
    requested_procedure_description: Short | None = None
    study_instance_uid: Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")] | None = None
    scheduled_at: Annotated[Text, Field(max_length=40), AfterValidator(_moment)] | None = None
    scheduled_station_ae_title: AeTitle | None = None
    priority: Literal["STAT", "URGENT", "ROUTINE"] = "ROUTINE"
    status: Short | None = None
    expected_images: Annotated[int, Field(ge=0, le=1_000_000)] | None = None


FIELDS = tuple(name for name in OrderBody.model_fields if name != "visit_id")
OF_THE_PATIENT = frozenset({"patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex",
                            "accession_number"})
"""What tells whose order it is, or leads to it."""


class Link(Body):
    """`link/` and `unlink/`: which order, and why."""

    radiology_order_id: int | str
    reason: Reason


def attributes_of(body: OrderBody) -> dict[str, Any]:
    """What is kept of an announcement beside the columns of its own."""
    return body.model_dump(exclude={"visit_id"})


def order_json(record: OrderRecord, *, images: list[int], base_url: str, sign: Callable[[str], str]) -> dict[str, Any]:
    """An order as contract §4 has it; `verified` once the EMR announced it, `images` are ids of what is shown.

    `sign` makes a path one that proves by itself, for minutes, who may read it.
    """
    root = f"{base_url}/api/v1/orders/{record.radiology_order_id}"
    known = {name: record.attributes.get(name, OrderBody.model_fields[name].default) for name in FIELDS}
    return {
        "radiology_order_id": shown(record, "radiology_order_id"),
        "visit_id": shown(record, "visit_id"), **known, "verified": record.verified,
        "images": images, "created_at": record.created_at, "updated_at": record.updated_at,
        "links": {"self": f"{root}/", "status": f"{root}/status/", "images": f"{root}/images/",
                  "events": base_url + sign(f"/api/v1/events?radiology_order_id={record.radiology_order_id}")}}
