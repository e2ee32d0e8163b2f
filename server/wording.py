"""What pydantic finds wrong with a value, in words for people: never its own texts, nor names of our classes."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails

WORDS: dict[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "there is no such {field}",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be {thing}",
    "model_type": "must be {thing}",
    "model_attributes_type": "must be {thing}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "is too short: the least is {min_length}",
    "string_too_long": "is too long: the most is {max_length}",
    "too_short": "is too short: the least is {min_length}",
    "too_long": "is too long: the most is {max_length}",
    "string_pattern_mismatch": "does not have the form that it must have",
    "value_error": "{error}",  # what one of our own validators says
}
IN_A_UNION = ("int", "str")
"""What pydantic adds to a place where a number or a text may stand."""


def first_fault(error: ValidationError, *, field: str, thing: str) -> tuple[str, str, str]:
    """(the place, with dots; pydantic's type; the sentence) of the first fault.

    `field` and `thing` are how the one who wrote it calls a key, and what holds keys.
    """
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"] if part not in IN_A_UNION)
    return place, fault["type"], _sentence(fault, field, thing)


def _sentence(fault: ErrorDetails, field: str, thing: str) -> str:
    if fault["loc"] and fault["loc"][-1] in IN_A_UNION:
        return "must be a whole number or text"
    context = {**fault.get("ctx", {}), "field": field, "thing": thing}
    return WORDS.get(fault["type"], "cannot be taken as it is").format_map(context)
