"""Ids from outside: opaque text that answers in the form first received (contract §1)."""

import re
from dataclasses import dataclass
from typing import Protocol

from server.errors import RequestError

PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
CANONICAL_INTEGER = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class OutsideId:
    """An id as text; `numeric` when JSON shows it as a number. 123 and "123" are one id."""

    text: str
    numeric: bool


def parse_id(value: object, field: str) -> OutsideId:
    """A JSON number or string as an id; RequestError `invalid_field` naming `field` for anything else."""
    numeric = isinstance(value, int) and not isinstance(value, bool)
    text = str(value)
    if not (numeric or isinstance(value, str)) or not PATTERN.fullmatch(text) or (text.startswith("-") and numeric):
        raise RequestError("invalid_field", f"{field} must be 1 to 64 of A-Z a-z 0-9 . _ -", field=field)
    return OutsideId(text, numeric)


def parse_text_id(text: str, field: str) -> OutsideId:
    """An id from a URL or a header, where numbers have no form of their own: 123 counts as a number."""
    return OutsideId(parse_id(text, field).text, CANONICAL_INTEGER.fullmatch(text) is not None)


class KeepsForms(Protocol):
    """A row of which `numeric_ids` names the ids that first came as numbers."""

    @property
    def numeric_ids(self) -> str:
        """Names of columns, with commas."""


def shown(row: KeepsForms, name: str) -> int | str | None:
    """The id of that name as JSON shows it: in the form first received (contract §1)."""
    text: str | None = getattr(row, name)
    return present(text, name in row.numeric_ids.split(","))


def present(text: str | None, numeric: bool) -> int | str | None:
    """The id as JSON shows it."""
    return int(text) if text is not None and numeric else text
