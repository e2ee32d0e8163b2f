"""Everything that is refused: status, code, and that the upload still tells the offset of before."""

import base64
import gzip
import hashlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import builders
from tests.server import Server, create, patch, sha256, upload_url

HALF = 20_000


@dataclass
class Case:
    """A session whose upload holds the first bytes of a CT, and the means to make it worse."""

    server: Server
    content: bytes
    session: dict[str, Any]
    url: str

    @property
    def root(self) -> str:
        return f"/visits/77/radiology/upload-sessions/{self.session['session_id']}"

    def call(self, name: str, body: Any = None) -> Any:
        return self.server.api("POST", f"{self.root}/{name}/", body)

    def finish(self) -> Any:
        answer = patch(self.server, self.url, self.content[HALF:], HALF)
        assert answer.headers.get("Packhorse-Status") == "SYNCED", answer.text
        return self.server.api("GET", f"{self.root}/").json()

    def fail(self, code: str = "LOCAL_READ_ERROR") -> None:
        assert self.call("report_failure", {"error_code": code}).status_code == 200


@pytest.fixture
def case(shared_server: Server, ct: bytes) -> Case:
    content = uuid.uuid4().bytes + ct  # every case its own bytes: nothing is a duplicate, and no DICOM
    session = create(shared_server, content, max_retries=1, file_name="image.bin")
    url = upload_url(shared_server, session["session_id"])
    assert patch(shared_server, url, content[:HALF]).status_code == 204
    return Case(shared_server, content, session, url)


def wrong_checksum(case: Case) -> Any:
    bad = case.content[HALF:-1] + bytes([case.content[-1] ^ 1])
    return patch(case.server, case.url, bad, HALF)


def wrong_chunk_checksum(case: Case) -> Any:
    claim = "sha1 " + base64.b64encode(hashlib.sha1(b"other").digest()).decode()
    return patch(case.server, case.url, case.content[HALF:], HALF, Upload_Checksum=claim)


def ack_before_synced(case: Case) -> Any:
    return case.call("acknowledge", {"server_image_id": 1})


def ack_with_the_wrong_image(case: Case) -> Any:
    return case.call("acknowledge", {"server_image_id": case.finish()["server_image_id"] + 1})


def ack_with_the_wrong_checksum(case: Case) -> Any:
    return case.call("acknowledge", {"server_image_id": case.finish()["server_image_id"], "checksum_sha256": "0" * 64})


def retries_exhausted(case: Case) -> Any:
    case.fail()
    assert case.call("retry").status_code == 200
    case.fail()
    return case.call("retry")


def cancel_after_synced(case: Case) -> Any:
    case.finish()
    return case.call("cancel", {"reason": "wrong file"})


def not_retryable(case: Case) -> Any:
    assert case.call("cancel", {"reason": "wrong file"}).status_code == 200
    return case.call("retry")


def conflicting_session(case: Case) -> Any:
    body = {
        "session_id": case.session["session_id"],
        "file_name": "other.dcm",
        "file_size": len(case.content),
        "checksum_sha256": sha256(case.content),
        "radiology_order_id": 123,
    }
    return case.server.api("POST", "/visits/77/radiology/upload-sessions/create_session/", body)


def create_with(**fields: Any) -> Callable[[Case], Any]:
    def call(case: Case) -> Any:
        body = {"file_name": "a.dcm", "file_size": 5, "checksum_sha256": "1" * 64, "radiology_order_id": 123, **fields}
        body = {key: value for key, value in body.items() if value is not None}
        return case.server.api("POST", "/visits/77/radiology/upload-sessions/create_session/", body)

    return call


def tus_post(**headers: str) -> Callable[[Case], Any]:
    return lambda case: case.server.tus("POST", "/files", **headers)


def at(offset: int, content: bytes = b"x", **headers: str) -> Callable[[Case], Any]:
    return lambda case: patch(case.server, case.url, content, offset, **headers)


SAME, GONE = "same", "gone"
REFUSALS: list[tuple[str, Callable[[Case], Any], int, str, str]] = [
    ("wrong checksum of the whole", wrong_checksum, 460, "CHECKSUM_MISMATCH", GONE),
    ("wrong checksum of a chunk", wrong_chunk_checksum, 460, "chunk_checksum_mismatch", SAME),
    (
        "an unknown checksum algorithm",
        at(HALF, Upload_Checksum="crc7 AAAA"),
        400,
        "unsupported_checksum_algorithm",
        SAME,
    ),
    ("a checksum in bad base64", at(HALF, Upload_Checksum="sha1 !!"), 400, "invalid_header", SAME),
    ("an offset below", at(5), 409, "offset_mismatch", SAME),
    ("an offset above", at(HALF + 5), 409, "offset_mismatch", SAME),
    ("an offset beyond the length", at(10**9), 409, "offset_mismatch", SAME),
    ("a negative offset", at(-1), 400, "invalid_header", SAME),
    ("wrong version", at(HALF, Tus_Resumable="0.2.2"), 412, "unsupported_version", SAME),
    (
        "another content type",
        lambda case: case.server.tus("PATCH", case.url, b"x", Upload_Offset=str(HALF), Content_Type="text/plain"),
        415,
        "unsupported_media_type",
        SAME,
    ),
    (
        "too long",
        lambda case: patch(case.server, case.url, case.content[HALF:] + b"more", HALF),
        413,
        "upload_size_exceeded",
        SAME,
    ),
    ("a trailer", at(HALF, Trailer="Upload-Checksum"), 400, "invalid_header", SAME),
    ("a compressed body", at(HALF, Content_Encoding="gzip"), 415, "unsupported_media_type", SAME),
    ("negative length", tus_post(Upload_Length="-5"), 400, "invalid_header", SAME),
    ("no length", tus_post(), 400, "invalid_header", SAME),
    ("a length deferred otherwise than by 1", tus_post(Upload_Defer_Length="2"), 400, "invalid_header", SAME),
    ("bad base64", tus_post(Upload_Length="5", Upload_Metadata="filename !!!"), 400, "invalid_metadata", SAME),
    ("a key given twice", tus_post(Upload_Length="5", Upload_Metadata="a YQ==,a YQ=="), 400, "invalid_metadata", SAME),
    ("a file too large by tus", tus_post(Upload_Length=str(2**47)), 413, "file_too_large", SAME),
    ("unknown upload", lambda case: case.server.tus("HEAD", f"/files/{uuid.uuid4()}"), 404, "", SAME),
    ("a path for an upload", lambda case: case.server.tus("HEAD", "/files/..%2f..%2fetc%2fpasswd"), 404, "", SAME),
    (
        "unknown session",
        lambda case: case.server.api("GET", f"/upload-sessions/{uuid.uuid4()}/"),
        404,
        "not_found",
        SAME,
    ),
    (
        "wrong visit",
        lambda case: case.server.api("GET", case.root.replace("/77/", "/78/") + "/"),
        404,
        "not_found",
        SAME,
    ),
    (
        "metadata twice",
        lambda case: case.call("upload_metadata", {"metadata": {"view": "AP"}}),
        409,
        "metadata_immutable",
        SAME,
    ),
    (
        "an order of another visit",
        lambda case: case.server.api(
            "POST",
            "/visits/78/radiology/upload-sessions/create_session/",
            {"file_name": "a", "file_size": 1, "checksum_sha256": "2" * 64, "radiology_order_id": 123},
        ),
        409,
        "order_visit_mismatch",
        SAME,
    ),
    ("ACK before SYNCED", ack_before_synced, 409, "not_synced", SAME),
    ("ACK with the wrong image", ack_with_the_wrong_image, 409, "image_mismatch", "full"),
    ("ACK with the wrong checksum", ack_with_the_wrong_checksum, 409, "checksum_mismatch", "full"),
    ("retry while uploading", lambda case: case.call("retry"), 409, "invalid_transition", SAME),
    ("retries exhausted", retries_exhausted, 409, "retries_exhausted", GONE),
    ("retry of what cannot be retried", not_retryable, 409, "not_retryable", GONE),
    ("cancel after SYNCED", cancel_after_synced, 409, "invalid_transition", "full"),
    ("unknown field", create_with(colour="red"), 422, "invalid_field", SAME),
    ("no checksum", create_with(checksum_sha256=None), 422, "checksum_required", SAME),
    ("a bad checksum", create_with(checksum_sha256="xyz"), 422, "invalid_field", SAME),
    ("a negative size", create_with(file_size=-1), 422, "invalid_field", SAME),
    ("no order under a visit", create_with(radiology_order_id=None), 422, "invalid_field", SAME),
    ("a bad id", create_with(radiology_order_id="../x"), 422, "invalid_field", SAME),
    ("a file too large", create_with(file_size=2**47), 413, "file_too_large", SAME),
    ("another session of that id", conflicting_session, 409, "session_conflict", SAME),
]


@pytest.mark.parametrize(("name", "refused", "status", "code", "then"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_request_that_breaks_a_rule_is_refused(
    case: Case, name: str, refused: Callable[[Case], Any], status: int, code: str, then: str
) -> None:
    answer = refused(case)
    assert answer.status_code == status, answer.text
    if answer.content:
        body = answer.json()
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert (body["code"], body["status"], body["type"]) == (code, status, f"/problems/{code}")
        assert answer.headers["X-Request-Id"]
    head = case.server.tus("HEAD", case.url)
    if then == GONE:
        assert head.status_code == 410
    else:
        expected = HALF if then == SAME else len(case.content)
        assert (head.status_code, head.headers["Upload-Offset"]) == (200, str(expected))


def test_without_a_token_nothing_is_told(case: Case) -> None:
    for path in ("/files/" + "0" * 36, "/api/v1/upload-sessions/", "/api/v1/images/1/"):
        answer = case.server.tus("GET", path, token="ph_0_0")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_100_identical_creations_at_once_make_one_row(shared_server: Server) -> None:
    body = {
        "file_name": "a.dcm",
        "file_size": 5,
        "checksum_sha256": sha256(uuid.uuid4().bytes),
        "radiology_order_id": "many",
    }

    def one(_: int) -> tuple[int, str]:
        answer = shared_server.api("POST", "/upload-sessions/create_session/", body)
        return answer.status_code, answer.json()["session_id"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(100)))
    assert sorted({status for status, _ in answers}) == [200, 201]
    assert [status for status, _ in answers].count(201) == 1
    assert len({session_id for _, session_id in answers}) == 1
    listed = shared_server.api("GET", "/upload-sessions/?radiology_order_id=many").json()
    assert len(listed["results"]) == 1


@pytest.mark.parametrize(
    "raw", [b"{", b"[" * 100_000, b'{"file_size": NaN}', b'{"metadata": {"x": 1e999}}', b'[-1e999]',
b'{"file_name": "\\ud800"}', b"\xff\xfe"], ids=str
)
def test_what_is_no_json_is_refused(shared_server: Server, raw: bytes) -> None:
    answer = requests.post(
        f"{shared_server.url}/api/v1/upload-sessions/create_session/", data=raw, headers=shared_server.auth, timeout=30
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")


def test_a_body_that_inflates_beyond_the_limit_is_refused(shared_server: Server) -> None:
    answer = requests.post(
        f"{shared_server.url}/api/v1/upload-sessions/create_session/",
        data=gzip.compress(b" " * 50_000_000),
        headers={**shared_server.auth, "Content-Encoding": "gzip"},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_cancelled_session_ends_a_running_patch_with_410(case: Case) -> None:
    answers: list[Any] = []

    def body() -> Iterator[bytes]:
        yield case.content[HALF : HALF + 100]
        assert case.call("cancel", {"reason": "wrong file"}).status_code == 200
        yield case.content[HALF + 100 :]

    answers.append(patch(case.server, case.url, body(), HALF))  # type: ignore[arg-type]  # requests takes an iterator
    assert (answers[0].status_code, answers[0].json()["error_code"]) == (410, "CLIENT_ABORTED")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "body: must be an object"),
        (1, "body: must be an object"),
        ({"session_id": "x"}, "session_id: must be a UUID"),
        ({"file_size": "5"}, "file_size: must be a whole number"),
        ({"file_size": -1}, "file_size: must be at least 0"),
        ({"file_name": 5}, "file_name: must be text"),
        ({"file_name": ""}, "file_name: is too short: the least is 1"),
        ({"file_name": "a\nb"}, "file_name: must not hold control characters"),
        ({"device_id": []}, "device_id: must be a whole number or text"),
        ({"priority": "SOON"}, "priority: must be 'STAT', 'URGENT' or 'ROUTINE'"),
        ({"metadata": []}, "metadata: must be an object"),
        ({"checksum_sha256": "xyz"}, "checksum_sha256: must be 64 hexadecimal digits"),
        ({"colour": "red"}, "colour: there is no such field"),
        ({"file_size": None}, "file_size: must be a whole number"),
        ({"max_retries": 1000}, "max_retries: must be at most 100"),
    ],
    ids=str,
)
def test_a_bad_field_is_told_in_words_for_people(shared_server: Server, body: Any, detail: str) -> None:
    good = {"file_name": "a.dcm", "file_size": 5, "checksum_sha256": "3" * 64, "radiology_order_id": 123}
    given = {**good, **body} if isinstance(body, dict) else body
    answer = shared_server.api("POST", "/upload-sessions/create_session/", given)
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("STORAGE_FULL", "retry/ comes first, and what arrived is kept"),
        ("UPLOAD_EXPIRED", "retry/ comes first, and its upload starts from zero"),
        ("NOT_DICOM", "cannot be retried"),
        ("insufficient_storage", "The same request may succeed later"),
        ("invalid_field", "The same request will fail again"),
    ],
)
def test_the_page_of_a_problem_says_what_to_do(shared_server: Server, code: str, words: str) -> None:
    assert words in requests.get(f"{shared_server.url}/problems/{code}", timeout=10).text


PAGED = ("orders", "inbox", "upload-sessions", "upload-sessions/pending", "quarantine", "studies", "tokens", "events",
         "webhooks/deliveries")  # fmt: skip


@pytest.mark.parametrize("path", PAGED)
def test_a_number_that_is_too_long_or_too_large_is_refused(shared_server: Server, path: str) -> None:
    cursors = {"inbox": "{}-1", "tokens": None, "orders": None, "webhooks/deliveries": None, "events": None}
    for digits in ("9" * 5000, "9" * 20, "0", "-1", "\u0661", "\u00b2", "x"):
        answer = shared_server.api("GET", f"/{path}?limit={digits}", Accept="application/json")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field"), digits[:10]
        cursor = cursors.get(path, "{}")
        if cursor is not None and len(digits) > 1:
            answer = shared_server.api("GET", f"/{path}?cursor={cursor.format(digits)}")
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field"), digits[:10]


@pytest.mark.parametrize(
    "path",
    ["upload-sessions/?order=5", "upload-sessions?order=5", "upload-sessions/pending/?order=5",
     "upload-sessions/failed?limit=1&order=5", "visits/77/radiology/upload-sessions/?order=5",
     "upload-sessions/1/?order=5", "events?order=5&after=1", "orders/?order=5", "orders/1/status?order=5",
     "studies?order=5", "images/1/?order=5", "quarantine?order=5", "tokens?order=5", "webhooks/deliveries?order=5",
     "forward/deliveries?order=5", "orders/?order", "inbox?order=5"],
)  # fmt: skip
def test_a_parameter_that_a_call_does_not_know_is_refused(shared_server: Server, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert shared_server.api(method, f"/{path}", Accept="application/json").status_code == 422
    answer = shared_server.api("GET", f"/{path}").json()
    assert (answer["code"], answer["field"]) == ("invalid_field", "order")
    assert shared_server.api("GET", f"/{path}", token="none").status_code == 401, "who asks comes first"


def test_a_parameter_that_is_no_word_is_not_repeated(shared_server: Server) -> None:
    answer = shared_server.api("GET", "/upload-sessions/?Doe%5EJane=1")
    assert (answer.status_code, answer.json()["field"]) == (422, "query") and "Doe" not in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [("radiology_order_id=", "radiology_order_id"), ("device_id=", "device_id"), ("error_code=foo", "error_code"),
     ("radiology_order_id=a%20b", "radiology_order_id")],
)  # fmt: skip
def test_a_filter_that_can_fit_nothing_is_refused(shared_server: Server, query: str, field: str) -> None:
    answer = shared_server.api("GET", f"/upload-sessions/?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_what_a_page_adds_to_the_url_of_a_picture_or_a_file_does_no_harm(
    shared_server: Server, tmp_path: Path
) -> None:
    content = builders.ct(tmp_path / "ct.dcm").read_bytes()
    session = create(shared_server, content)
    patch(shared_server, upload_url(shared_server, session["session_id"]), content)
    image = shared_server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["server_image_id"]
    for name in ("file", "rendered", "thumbnail"):
        assert shared_server.api("GET", f"/images/{image}/{name}?_=1").status_code == 200


@pytest.mark.parametrize("reason", ["", "   ", "\t", "\u00a0 \n"])
def test_a_reason_of_spaces_is_none(shared_server: Server, reason: str) -> None:
    for path in ("images/1/reject", "images/1/restore", "images/1/link", "quarantine/1/accept"):
        code = {"code": "113001"} if path.endswith("reject") else {}
        order = {"radiology_order_id": 5} if path.endswith("link") else {}
        answer = shared_server.api("POST", f"/{path}/", {"reason": reason, **code, **order})
        assert (answer.status_code, answer.json()["field"]) == (422, "reason"), path
    made = shared_server.api("POST", "/tokens/", {"role": "viewer"}).json()
    answer = shared_server.api("DELETE", f"/tokens/{made['token_id']}/", {"reason": reason})
    assert (answer.status_code, answer.json()["field"]) == (422, "reason")
