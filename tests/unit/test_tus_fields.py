"""Reading tus headers: every value round-trips, every other text is a clear refusal."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RequestError
from server.tus import tus_fields

KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1, max_size=40)


@given(st.dictionaries(KEYS, st.binary(max_size=100), max_size=20))
def test_metadata_round_trips(pairs: dict[str, bytes]) -> None:
    assert tus_fields.parse_metadata(tus_fields.format_metadata(pairs)) == pairs


@given(st.text(max_size=200))
def test_any_text_is_metadata_or_refused(text: str) -> None:
    try:
        tus_fields.parse_metadata(text)
    except RequestError as refusal:
        assert refusal.code == "invalid_metadata"


@pytest.mark.parametrize("text", ["-1", "+1", "1.0", "", " 1", "1 ", "0x1", "９", "1" * 19, None])
def test_what_is_no_plain_number_is_refused(text: str | None) -> None:
    with pytest.raises(RequestError, match="non-negative integer"):
        tus_fields.parse_number("Upload-Offset", text)


def test_a_key_without_a_value_is_legal() -> None:
    assert tus_fields.parse_metadata("is_confidential,filename YQ==") == {"is_confidential": b"", "filename": b"a"}


@pytest.mark.parametrize("text", ["sha1 !!", "sha1", "sha1 YQ==", "crc32 AAAA", ""])
def test_a_claim_that_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        tus_fields.parse_checksum(text)


def test_a_claim_is_read() -> None:
    digest = bytes(range(20))
    claim = tus_fields.parse_checksum(f"sha1 {base64.b64encode(digest).decode()}")
    assert (claim.algorithm, claim.digest) == ("sha1", digest)
