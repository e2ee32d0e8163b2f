"""Tokens, and who calls, as `/openapi.json` tells them."""

from typing import (
    Any,
    NotRequired,  # pydantic needs this one before Python 3.12
)

from typing_extensions import TypedDict

from server.describing import UNREADABLE, Answer, Described, Parameter, answered, cached_answer
from server.entrance.service import Mint, Revoke


class Token(TypedDict):
    """A token without its secret."""

    token_id: str
    role: str
    site: str
    visit_id: int | str | None
    radiology_order_id: int | str | None
    created_by_id: int | str | None
    label: str | None
    maker: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    links: dict[str, str]


class MintedToken(Token):
    """A token, its secret told once."""

    token: str
    replayed: bool


class TokenList(TypedDict):
    """A page of tokens."""

    results: list[Token]
    next_cursor: str | None


class LoginCode(TypedDict):
    """A one-time code, and where a browser opens it."""

    code: str
    expires_at: str
    url: str


class Caller(TypedDict):
    """Who calls, and within what; `csrf_token` goes with a cookie."""

    token_id: str
    role: str
    site: str
    visit_id: str | None
    radiology_order_id: str | None
    created_by_id: str | None
    expires_at: str | None
    csrf_token: NotRequired[str]


LIMIT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 500}
ONCE = Parameter("Idempotency-Key", "Makes the same request the same", place="header")

DESCRIBED = {
    "mint": Described(
        {201: Answer("It is made", MintedToken), 200: Answer("The same again", MintedToken)}, body=Mint,
        parameters=(ONCE,), refusals=(*UNREADABLE, "invalid_header", "idempotency_key_reused")),
    "listing": Described(cached_answer(TokenList), parameters=(
        Parameter("limit", "At most so many", LIMIT), Parameter("include_ended", "true: also those that have ended"),
        Parameter("cursor", "The page after, as `next_cursor` said")), refusals=("invalid_field",)),
    "show": Described(answered(Token), refusals=("not_found",)),
    "revoke": Described(answered(Token), body=Revoke, refusals=(*UNREADABLE, "not_found", "invalid_header")),
    "code": Described(answered(LoginCode, status=201), refusals=("not_found", "invalid_header")),
}
