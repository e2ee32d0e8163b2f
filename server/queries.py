"""Numbers in a URL or a header, parsed once at the edge. Knows no feature's fields.

Fact: int() refuses texts of thousands of digits with an error of its own, and SQLite what is beyond 64 bits; so the
length is looked at first.
"""

from aiohttp import web

from server.errors import RequestError

LARGEST = 2**53
"""What every reader of JSON can hold (RFC 8259 §6)."""
MOST_DIGITS = len(str(LARGEST))
LIMIT = 500


def number(text: str, field: str, least: int = 0, most: int = LARGEST) -> int:
    """`text` as a number within bounds; RequestError `invalid_field` naming `field`."""
    if not (text.isascii() and text.isdecimal()) or len(text) > MOST_DIGITS or not least <= int(text) <= most:
        bounds = f"at least {least}" if most == LARGEST else f"from {least} to {most}"
        raise RequestError("invalid_field", f"{field} must be a number, {bounds}", field=field)
    return int(text)


def limit_of(request: web.Request) -> int:
    """How many the caller wants on one page: `limit`, 100 where it does not say."""
    return number(request.query.get("limit", "100"), "limit", 1, LIMIT)
