"""A campaign of canaries: a word of its own in every input field and DICOM tag, looked for where it has no place.

Left out, for they are told on purpose: the ids of contract §1, UIDs, AE titles, the origin of a page (contract §5).
Reasons and labels are told in the audit and the lists of operators (contract §4): they are looked for elsewhere only.
"""

import base64
import json
import random
import re
import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from tests import builders, dcmtk
from tests.campaigns.soundness import sound
from tests.server import Server, create, patch, sha256, upload_metadata, upload_url

WORDS = ("AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT")
"""The value representations that hold text, but for UI and AE."""
LONGEST = {"AS": 4, "CS": 16, "DA": 8, "DS": 16, "IS": 12, "SH": 16, "TM": 14}
HEADERS = (
    "User-Agent", "Referer", "Cookie", "Accept-Language", "X-Patient-Name", "From", "Idempotency-Key", "If-None-Match",
    "X-Request-Id", "Upload-Checksum", "Upload-Concat", "Repr-Digest", "Content-Disposition", "Last-Event-ID", "Range",
    "X-HTTP-Method-Override", "Forwarded", "X-Forwarded-For", "Upload-Offset", "Upload-Length", "Content-Type",
)  # fmt: skip
METADATA = (
    "filename", "name", "relativePath", "filetype", "type", "local_file_uuid", "priority", "content_encoding", "sha256",
    "patient",
)  # fmt: skip
PATHS = (
    "/images/{}", "/images/{}/rendered", "/studies/{}?x={}", "/upload-sessions/{}", "/upload-sessions/{}/history",
    "/upload-sessions?status={}", "/upload-sessions?cursor={}", "/upload-sessions?limit={}&error_code={}",
    "/nowhere/{}", "/webhooks/deliveries?status={}&limit={}", "/orders/{}%20x", "/studies?cursor={}",
    "/images/1/rendered?window={}",
)  # fmt: skip


class Aviary:
    """Canaries of one run: all of them hold `mark`."""

    def __init__(self, dice: random.Random) -> None:
        self.mark = f"KZ{dice.randrange(16**4, 16**5):X}"
        self.planted = 0

    def word(self, longest: int = 64) -> str:
        """A new one; a short field holds a part of it, which is not looked for."""
        self.planted += 1
        return f"{self.mark}-{self.planted}"[:longest]

    def found_in(self, text: str) -> bool:
        """Whether one of them is there, in clear or in base64."""
        forms = [self.mark]
        for shift in range(3):
            coded = base64.b64encode(b"\0" * shift + self.mark.encode()).decode().rstrip("=")
            forms.append(coded[(0, 2, 3)[shift] : -1])
        return any(form.lower() in text.lower() for form in forms)


def canaries(folder: Path, seed: int, count: int) -> int:
    """Words in every field; none is in logs, metrics, URLs, problems, events or the audit chain."""
    dice = random.Random(seed)
    aviary, spoken = Aviary(dice), Aviary(dice)
    hook = '[[webhooks]]\nurl = "http://127.0.0.1:9/"\nsecret = "0123456789abcdef0123"\n'
    server = Server(folder, extra=f"[uploads]\nsync_wait_s = 2\n{hook}").start()
    said: list[requests.Response] = []
    try:
        while aviary.planted < count:
            for answers in (_sessions(server, aviary), _requests(server, aviary), _objects(server, aviary, dice),
                            _decisions(server, aviary, spoken)):
                said += answers
        _check_kept(server, aviary)
        for answer in said:
            _check_answer(aviary, answer, seed)
            _check_answer(spoken, answer, seed)
        _check_told(server, aviary, seed)
        _check_events(server, spoken, seed)
        sound(server)
    finally:
        server.stop()
    for one in (aviary, spoken):
        assert not one.found_in((folder / "server.log").read_text()), (seed, one.mark)
    return min(aviary.planted, count)


def _sessions(server: Server, aviary: Aviary) -> Iterator[requests.Response]:
    """Every field of every body, taken and refused."""
    content = aviary.word().encode()
    fields: dict[str, Any] = {
        "file_name": aviary.word() + ".bin", "local_file_path": f"C:\\{aviary.word()}\\a.bin",
        "local_file_uuid": aviary.word(), "content_type": f"application/{aviary.word()}",
        "client_created_at": aviary.word(40), "metadata": {"patient": aviary.word(), aviary.word(): [aviary.word()]},
    }  # fmt: skip
    body = {
        "file_size": len(content), "checksum_sha256": sha256(content), "radiology_order_id": f"o{aviary.planted}",
        **fields,
    }  # fmt: skip
    root = "/upload-sessions"
    made = server.api("POST", f"{root}/create_session/", body)
    yield made
    assert made.status_code == 201, made.text
    session = f"{root}/{made.json()['session_id']}"
    yield server.api("POST", f"{root}/create_session/", {**body, "session_id": made.json()["session_id"],
                                                         "file_name": aviary.word()})  # fmt: skip
    for name in (*body, "priority", "max_retries", "session_id", "device_id"):
        yield server.api("POST", f"{root}/create_session/", {**body, name: {"wrong": aviary.word()}})
        yield server.api("POST", f"{root}/create_session/", {**body, name: f"\n{aviary.word()} x"})
    yield server.api("POST", f"{root}/batch/", {"sessions": [{**body, "file_size": aviary.word()}]})
    yield server.api("POST", f"{session}/upload_metadata/", {"metadata": {"other": aviary.word()}})
    yield server.api("POST", f"{session}/upload_binary/", {"content_encoding": aviary.word()})
    yield server.api("POST", f"{session}/acknowledge/", {"server_image_id": aviary.word()})
    yield server.api("POST", f"{session}/retry/", {"reason": aviary.word()})
    another = create(server, b"abcde", file_name="a.bin", radiology_order_id=aviary.planted)["session_id"]
    url = upload_url(server, another)
    cancelled = server.api("POST", f"{root}/{another}/cancel/", {"reason": aviary.word()})
    assert cancelled.status_code == 200, cancelled.text
    yield patch(server, url, b"ab")
    other = create(server, b"fghij", file_name="b.bin", radiology_order_id=aviary.planted)["session_id"]
    gone = upload_url(server, other)
    told = {"error_code": "LOCAL_READ_ERROR", "error_message": aviary.word()}
    server.api("POST", f"{root}/{other}/report_failure/", told)
    yield patch(server, gone, b"fg")
    yield server.tus("HEAD", gone)
    order = {
        "patient_id": aviary.word(), "issuer_of_patient_id": aviary.word(), "patient_name": f"{aviary.word()}^Name",
        "accession_number": aviary.word(16), "modality": aviary.word(16),
        "requested_procedure_description": aviary.word(),
    }  # fmt: skip
    yield server.api("PUT", f"/orders/o{aviary.planted}/", order)
    for name in (*order, "patient_birth_date", "scheduled_at", "patient_sex"):
        yield server.api("PUT", f"/orders/o{aviary.planted}/", {**order, name: f"{aviary.word()}{'x' * 400}"})
    yield server.api("POST", "/webhooks/deliveries/1/resend/", {"reason": [aviary.word()]})


def _decisions(server: Server, aviary: Aviary, spoken: Aviary) -> Iterator[requests.Response]:
    """What operators decide, each with a reason; tokens with a label; and all of it misspelt."""

    def reason() -> dict[str, str]:
        return {"reason": spoken.word()}

    image = server.api("GET", f"/studies/{server.api('GET', '/studies/').json()['results'][0]['study_instance_uid']}/")
    path = f"/images/{image.json()['series'][0]['images'][0]['id']}"
    order = f"l{spoken.planted}"
    steps: list[tuple[str, dict[str, Any]]] = [
        (f"{path}/link/", {"radiology_order_id": order}), (f"{path}/unlink/", {"radiology_order_id": order}),
        (f"{path}/reject/", {"code": "113001"}), (f"{path}/restore/", {}),
    ]  # fmt: skip
    for held in server.api("GET", "/quarantine/?limit=1").json()["results"]:
        steps.append((f"/quarantine/{held['id']}/reject/", {}))
    for target, body in steps:
        done = server.api("POST", target, {**body, **reason()})
        assert done.status_code == 200, done.text
        yield done
        for name in (*body, "reason", "other"):
            yield server.api("POST", target, {**body, **reason(), name: {"wrong": aviary.word()}})
            yield server.api("POST", target, {**body, **reason(), name: f"{aviary.word()}{'x' * 4000}"})
    minted = server.api("POST", "/tokens/", {"role": "viewer", "label": spoken.word()})
    assert minted.status_code == 201, minted.text
    token = minted.json()["token_id"]
    for name in ("role", "site", "visit_id", "radiology_order_id", "created_by_id", "expires_in_s", "label", "other"):
        yield server.api("POST", "/tokens/", {"role": "viewer", name: {"wrong": aviary.word()}})
        yield server.api("POST", "/tokens/", {"role": "viewer", name: f"{aviary.word()} {'x' * 400}"})
    yield server.api("POST", f"/tokens/{token}/code/", {"code": aviary.word()})
    yield server.api("DELETE", f"/tokens/{token}/", reason())
    yield server.api("DELETE", f"/tokens/{aviary.word()}/", reason())
    yield server.api("POST", "/login/", {"code": aviary.word()})


def _requests(server: Server, aviary: Aviary) -> Iterator[requests.Response]:
    """Headers, queries, paths, bodies that are no JSON, upload metadata."""
    for name in HEADERS:
        for method, path in (("GET", "/api/v1/"), ("POST", "/files"), ("POST", "/api/v1/upload-sessions/batch/")):
            yield requests.request(
                method, f"{server.url}{path}", timeout=30,
                headers={**server.auth, "Tus-Resumable": "1.0.0", name: aviary.word()},
            )  # fmt: skip
    for token in (aviary.word(), f"ph_{aviary.word()}_{aviary.word()}", f"Basic {aviary.word()}"):
        yield requests.get(f"{server.url}/api/v1/", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    for path in PATHS:
        yield server.api("GET", re.sub(r"{}", lambda _: aviary.word(), path))
    yield requests.post(
        f"{server.url}/api/v1/upload-sessions/create_session/", data=f'{{"file_name": "{aviary.word()}', timeout=30,
        headers=server.auth,
    )  # fmt: skip
    for key in METADATA:
        raw = upload_metadata(**{"filename": "a.bin", key: aviary.word()})
        yield server.tus("POST", "/files", Upload_Length="5", Upload_Metadata=raw)
    yield server.tus("POST", "/files", Upload_Length="5", Upload_Metadata=f"filename {aviary.word()}!")
    named = {**server.auth, "Upload-Complete": "?1",
             "Content-Disposition": f'attachment; filename="{aviary.word()}"'}  # fmt: skip
    yield requests.post(f"{server.url}/files", data=aviary.word(), headers=named, timeout=30)


def tagged(path: Path, aviary: Aviary, sop_instance_uid: str | None = None) -> bytes:
    """A CT with a canary in every textual attribute of the dictionary, in a sequence's item, and in a private tag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that their representation does not allow
        return _tagged(dcmread(builders.ct(path)), aviary, sop_instance_uid)


def _tagged(dataset: Dataset, aviary: Aviary, sop_instance_uid: str | None) -> bytes:
    if sop_instance_uid is not None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = sop_instance_uid
    item = Dataset()
    for tag, (vr, _vm, _name, retired, _keyword) in DicomDictionary.items():
        is_ours = tag >> 16 in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040) and vr in WORDS and not retired
        # read to tell how pixels are meant, or how text is written
        if is_ours and keyword_for_tag(Tag(tag)) not in ("SpecificCharacterSet", "ImageType", "TimezoneOffsetFromUTC"):
            word = aviary.word(LONGEST.get(vr, 64))
            item.add_new(tag, vr, _valued(vr, word))
            dataset.add_new(tag, vr, _valued(vr, word))
    dataset.add_new(0x00400275, "SQ", [item])
    dataset.private_block(0x0011, aviary.word(), create=True).add_new(1, "LO", aviary.word())
    kept = DicomBytesIO()
    dcmwrite(kept, dataset, enforce_file_format=True)
    return bytes(kept.getvalue())


def _valued(vr: str, word: str) -> Any:
    """What pydicom writes as it stands: it would read numbers and dates as such."""
    if vr in ("DS", "IS"):
        return MultiValue(str, [])
    return f"{word}^Name" if vr == "PN" else word


def _objects(server: Server, aviary: Aviary, dice: random.Random) -> Iterator[requests.Response]:
    """By tus and by C-STORE: stored, in conflict, cut, and of no sense."""
    path = server.folder / "tagged.dcm"
    content = tagged(path, aviary)
    for bytes_sent in (content, content[: len(content) // 2], content[:600] + b"\xff" * 700 + content[1300:]):
        for name in ("a.dcm", f"{aviary.word()}.dcm"):
            session = create(server, bytes_sent, file_name=name, radiology_order_id=f"d{aviary.planted}")
            if session["status"] == "QUEUED":
                yield patch(server, upload_url(server, session["session_id"]), bytes_sent)
    uid = str(dcmread(DicomBytesIO(content)).SOPInstanceUID)
    other = tagged(path, aviary, uid)
    session = create(server, other, radiology_order_id=f"d{aviary.planted}")
    conflict = patch(server, upload_url(server, session["session_id"]), other)
    assert conflict.json()["code"] == "SOP_INSTANCE_CONFLICT", conflict.text
    yield conflict
    if shutil.which("storescu"):
        for sent in (tagged(path, aviary), other):
            path.write_bytes(sent)
            told = dcmtk.storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")
            comments = [line for line in (told.stdout + told.stderr).splitlines() if "Error Comment" in line]
            assert not aviary.found_in(" ".join(comments)), comments


def _check_kept(server: Server, aviary: Aviary) -> None:
    """The words did come in: where they belong they are."""
    sessions = server.api("GET", "/upload-sessions/?limit=500").text
    studies = server.api("GET", "/studies/").text
    assert aviary.found_in(sessions) and aviary.found_in(studies)


def _check_answer(aviary: Aviary, answer: requests.Response, seed: int) -> None:
    """No problem repeats what was sent, and no URL holds it."""
    if answer.status_code >= 400:
        assert not aviary.found_in(answer.text), (seed, answer.request.method, answer.request.url, answer.text)
    headers = {name: value for name, value in answer.headers.items() if name != "Upload-Metadata"}
    assert not aviary.found_in(str(headers)), (seed, answer.request.url, headers)
    urls = re.findall(r'"(?:https?:/)?/[^"]*"', answer.text) if answer.text.startswith("{") else []
    assert not any(aviary.found_in(url) for url in urls), (seed, urls)


def _check_told(server: Server, aviary: Aviary, seed: int) -> None:
    """What operators and other systems are told: metrics, readiness, events, deliveries, the audit chain."""
    for path in ("/metrics", "/readyz", "/api/v1/webhooks/deliveries", "/api/v1/forward/deliveries", "/openapi.json"):
        told = requests.get(f"{server.url}{path}", headers=server.auth, timeout=30)
        assert told.status_code == 200 and not aviary.found_in(told.text), (seed, path)
    _check_events(server, aviary, seed)
    with sqlite3.connect(server.folder / "data" / "packhorse.db") as facts:
        rows = facts.execute("SELECT * FROM audit").fetchall()
        bodies = facts.execute("SELECT body, last_error FROM webhook_delivery").fetchall()
    for row in [*rows, *bodies]:
        assert not aviary.found_in(json.dumps(row)), (seed, row)
    assert len(rows) > 10 and bodies


def _check_events(server: Server, aviary: Aviary, seed: int) -> None:
    """What is told to other systems as it happens, page by page, and what is kept for them."""
    place, more = 0, True
    while more:
        told = requests.get(f"{server.url}/api/v1/events?after={place}&limit=500", headers=server.auth, timeout=30)
        assert told.status_code == 200 and not aviary.found_in(told.text), seed
        place, more = told.json()["next_after"], told.json()["more"]
    metrics = requests.get(f"{server.url}/metrics", headers=server.auth, timeout=30)
    assert not aviary.found_in(metrics.text), seed
