"""JSON bodies, parsed once at the edge into models that cannot be wrong. Knows no feature's fields."""

import json
import math
import zlib
from typing import Annotated, NoReturn, TypeVar

from aiohttp import hdrs, web
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from server.errors import RequestError
from server.wording import first_fault

NO_JSON = frozenset({"text/plain", "multipart/form-data"})
"""What any page can send without being asked (Fetch §2.2.2); the third such type is what `curl -d` says by itself."""


class Body(BaseModel):
    """Unknown fields are refused: a typo in what can never be mended must be told (contract §4)."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _no_control(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must not hold control characters")
    return text


Text = Annotated[str, AfterValidator(_no_control)]
Reason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(_no_control)]
"""Why an operator acts: every such call says it, in more than spaces, and it is audited (contract §4)."""

Parsed = TypeVar("Parsed", bound=Body)


def parse(model: type[Parsed], value: object) -> Parsed:
    """`value` as `model`; RequestError `invalid_field` or `checksum_required` naming the first field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        place, kind, why = first_fault(error, field="field", thing="an object")
        field = place or "body"
        if field == "checksum_sha256" and kind == "missing":
            raise RequestError("checksum_required", "declare checksum_sha256, the SHA-256 of the whole file",
                               field=field) from error
        raise RequestError("invalid_field", f"{field}: {why}", field=field) from error


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal content gives equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


async def json_body(request: web.Request) -> object:
    """The body as JSON, {} when there is none.

    RequestError `invalid_json`, also for what UTF-8 cannot hold; `unsupported_media_type` for what is surely none.
    """
    raw = await request.read()
    if not raw:
        return {}
    if request.content_type in NO_JSON:
        raise RequestError("unsupported_media_type", "the body must be application/json")
    if request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower() == "gzip":
        raw = _gunzip(raw, request.client_max_size)
    try:
        value = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could be neither stored nor hashed
    except (ValueError, RecursionError) as error:
        raise RequestError("invalid_json", "the body is not JSON") from error
    return value


def _gunzip(raw: bytes, limit_bytes: int) -> bytes:
    # aiohttp's own decompression is off: it would undo the representations that uploads are made of
    decoder = zlib.decompressobj(wbits=31)
    try:
        content = decoder.decompress(raw, limit_bytes + 1)
    except zlib.error as error:
        raise RequestError("invalid_json", "the body is not gzip") from error
    if len(content) > limit_bytes:
        raise RequestError("body_too_large")
    if not decoder.eof:
        raise RequestError("invalid_json", "the gzip body is cut short")
    return content


def _finite(text: str) -> float:
    """1e999 is JSON, but as a float it is infinite, which no answer could tell."""
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")  # RFC 8259 §6
