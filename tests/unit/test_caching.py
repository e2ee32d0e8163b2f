"""Which answers a client has already (RFC 9110 §13.1.2)."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from server.caching import cached


@pytest.mark.parametrize(
    ("known", "status"),
    [
        (None, 200),
        ('"v1"', 304),
        ('W/"v1"', 304),
        ('"v0", "v1"', 304),
        ("*", 304),
        ('"v0"', 200),
        ('"v11"', 200),
        ('"v0 \\"v1\\""', 200),
        ("v1", 200),
    ],
)
def test_304_is_for_those_who_name_the_version(known: str | None, status: int) -> None:
    request = make_mocked_request("GET", "/", headers={"If-None-Match": known} if known is not None else {})
    answer = cached(request, web.Response(), "v1")
    assert (answer.status, answer.headers["ETag"]) == (status, '"v1"')
