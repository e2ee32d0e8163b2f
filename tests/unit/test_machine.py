"""All 49 pairs of statuses, one by one, and the diagram that the docs draw."""

from itertools import product
from pathlib import Path

import pytest

from server.errors import SESSION_FAILURES, RequestError
from server.sessions import machine
from storage.records import Status

LEGAL = {
    ("QUEUED", "METADATA_UPLOADING"),
    ("METADATA_UPLOADING", "METADATA_UPLOADED"),
    ("METADATA_UPLOADED", "BINARY_UPLOADING"),
    ("BINARY_UPLOADING", "SYNCED"),
    ("SYNCED", "ACK_RECEIVED"),
    ("QUEUED", "FAILED"),
    ("METADATA_UPLOADING", "FAILED"),
    ("METADATA_UPLOADED", "FAILED"),
    ("BINARY_UPLOADING", "FAILED"),
    ("FAILED", "QUEUED"),
}


@pytest.mark.parametrize(("present", "wanted"), list(product(Status, Status)))
def test_a_pair_is_legal_or_refused(present: Status, wanted: Status) -> None:
    if (present.value, wanted.value) in LEGAL:
        machine.check(present, wanted)
    else:
        with pytest.raises(RequestError) as refusal:
            machine.check(present, wanted)
        assert (refusal.value.code, refusal.value.status) == ("invalid_transition", 409)


def test_ten_of_49_pairs_are_legal() -> None:
    assert sum(len(targets) for targets in machine.MOVES.values()) == len(LEGAL) == 10


def test_the_diagram_in_the_docs_is_drawn_from_the_table() -> None:
    assert machine.diagram() in Path("docs/sessions.md").read_text()


def test_only_a_mismatch_and_an_expiry_start_from_zero() -> None:
    from_zero = {code for code in SESSION_FAILURES if machine.is_retryable(code) and not machine.keeps_progress(code)}
    assert from_zero == {"CHECKSUM_MISMATCH", "UPLOAD_EXPIRED"}
