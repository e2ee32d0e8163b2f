"""`packhorse audit export`: every row, once, as JSON Lines and as DICOM audit messages that keep PS3.15 §A.5."""

import base64
import json
import re
import uuid
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import requests

from server.auditing.messages import message_of
from tests.server import Server, create, patch, upload_url

CODED = {"csd-code": None, "codeSystemName": None, "originalText": None}
NUMBERS = {str(number) for number in range(1, 27)}
# PS3.15 §A.5.1 as a table: attributes with what they may be (None: any text; "?": need not be there), and the
# children in their order, each with how often it may come: 1, ?, * or +.
SCHEMA: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "AuditMessage": ({}, [("EventIdentification", "1"), ("ActiveParticipant", "+"), ("AuditSourceIdentification", "1"),
                          ("ParticipantObjectIdentification", "*")]),
    "EventIdentification": (
        {"EventActionCode?": set("CRUDE"), "EventOutcomeIndicator": {"0", "4", "8", "12"},
         "EventDateTime": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")},
        [("EventID", "1"), ("EventTypeCode", "*"), ("EventOutcomeDescription", "?")]),
    "EventID": (CODED, []), "EventTypeCode": (CODED, []), "EventOutcomeDescription": ({}, []),
    "ActiveParticipant": (
        {"UserID": None, "UserIsRequestor": {"true", "false"}, "NetworkAccessPointID?": None,
         "NetworkAccessPointTypeCode?": set("12345")}, [("RoleIDCode", "*")]),
    "RoleIDCode": (CODED, []),
    "AuditSourceIdentification": (
        {"AuditEnterpriseSiteID?": None, "AuditSourceID": None}, [("AuditSourceTypeCode", "*")]),
    "AuditSourceTypeCode": ({"csd-code": set("123456789")}, []),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID": None, "ParticipantObjectTypeCode?": set("1234"),
         "ParticipantObjectTypeCodeRole?": NUMBERS},
        [("ParticipantObjectIDTypeCode", "1"), ("ParticipantObjectName", "1"), ("ParticipantObjectDetail", "*"),
         ("ParticipantObjectDescription", "*")]),
    "ParticipantObjectIDTypeCode": (CODED, []), "ParticipantObjectName": ({}, []),
    "ParticipantObjectDetail": ({"type": None, "value": re.compile(r"[A-Za-z0-9+/]*={0,2}")}, []),
    "ParticipantObjectDescription": ({}, [("SOPClass", "*")]),
    "SOPClass": ({"UID?": None, "NumberOfInstances": re.compile(r"\d+")}, [("Instance", "*")]),
    "Instance": ({"UID": re.compile(r"[0-9.]+")}, []),
}
TIMES = {"1": (1, 1), "?": (0, 1), "*": (0, 1000), "+": (1, 1000)}


def check(element: ElementTree.Element) -> None:
    """Raise AssertionError where an element breaks the schema."""
    attributes, children = SCHEMA[element.tag]
    for name, allowed in attributes.items():
        value = element.get(name.rstrip("?"))
        assert value is not None or name.endswith("?"), (element.tag, name)
        if value is not None and allowed is not None:
            assert allowed.fullmatch(value) if isinstance(allowed, re.Pattern) else value in allowed, (name, value)
    assert set(element.attrib) <= {name.rstrip("?") for name in attributes}, element.attrib
    assert [child.tag for child in element] == sorted(
        (child.tag for child in element), key=[name for name, _ in children].index), element.tag
    for name, times in children:
        assert TIMES[times][0] <= len(element.findall(name)) <= TIMES[times][1], (element.tag, name)
    for child in element:
        check(child)


def event_id(message: ElementTree.Element) -> str:
    found = message.find("EventIdentification/EventID")
    assert found is not None
    return str(found.get("csd-code"))


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with some history."""
    from pydicom.data import get_testdata_file

    server = Server(tmp_path_factory.mktemp("server")).start()
    content = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    session = create(server, content, radiology_order_id=uuid.uuid4().hex)
    patch(server, upload_url(server, session["session_id"]), content)
    image = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["server_image_id"]
    server.api("GET", f"/images/{image}/")
    requests.get(f"{server.url}/api/v1/", headers={"Authorization": "Bearer ph_no_token"}, timeout=5)
    assert server.command("token", "create", "--role", "viewer").returncode == 0
    yield server
    server.stop()


def test_json_lines_hold_every_row_in_order(busy: Server) -> None:
    done = busy.command("audit", "export")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["action"] == "audit.exported" and rows[-1]["detail"] == {"after": 0, "format": "jsonl"}
    rest = busy.command("audit", "export", "--format", "jsonl", "--after", str(rows[-3]["seq"]))
    assert [json.loads(line)["seq"] for line in rest.stdout.splitlines()] == [len(rows) - 1, len(rows), len(rows) + 1]
    assert busy.command("audit", "verify").returncode == 0
    assert busy.command("audit", "export", "--after", "-1").returncode == 2
    assert busy.command("audit", "export", "--format", "pdf").returncode == 2


def test_each_row_is_a_message_that_keeps_the_schema_and_names_no_patient(busy: Server) -> None:
    rows = [json.loads(line) for line in busy.command("audit", "export").stdout.splitlines()]
    done = busy.command("audit", "export", "--format", "dicom")
    messages = [ElementTree.fromstring(line) for line in done.stdout.splitlines()]
    assert len(messages) == len(rows) + 1 and "CompressedSamples" not in done.stdout
    for message, row in zip(messages, rows, strict=False):
        check(message)
        own = message.findall("ParticipantObjectIdentification")[-1]
        detail = {one.get("type"): base64.b64decode(str(one.get("value"))).decode()
                  for one in own.findall("ParticipantObjectDetail")}
        assert (detail["seq"], detail["row_hash"]) == (str(row["seq"]), row["row_hash"])
        assert json.loads(detail["detail"]) == row["detail"]


def test_standard_events_are_told_as_the_standard_asks(busy: Server) -> None:
    messages = [ElementTree.fromstring(line) for line in busy.command(
        "audit", "export", "--format", "dicom").stdout.splitlines()]
    by_event: dict[str, ElementTree.Element] = {event_id(one): one for one in messages}
    assert {"110101", "110103", "110104", "110113", "110114"} <= set(by_event)
    for code in ("110103", "110104"):  # §A.5.3.6, §A.5.3.7: the study, and the patient
        study, patient = by_event[code].findall("ParticipantObjectIdentification")[:2]
        assert study.get("ParticipantObjectTypeCodeRole") == "3"
        assert re.fullmatch(r"[0-9.]+", str(study.get("ParticipantObjectID")))
        assert (patient.get("ParticipantObjectTypeCode"), patient.get("ParticipantObjectID")) == ("1", "<none>")
    roles = [one.get("csd-code") for one in by_event["110104"].iter("RoleIDCode")]
    assert roles == ["110153", "110152"], "who sent, who received"
    login = by_event["110114"]
    assert login.find("EventIdentification").get("EventOutcomeIndicator") == "4"  # type: ignore[union-attr]
    assert login.find("ActiveParticipant").get("NetworkAccessPointID") == "127.0.0.1"  # type: ignore[union-attr]
    used = by_event["110101"].find("ParticipantObjectIdentification")
    assert used is not None and used.findtext("ParticipantObjectName") == "Security Audit Log"
    alert = by_event["110113"].find("ParticipantObjectIdentification/ParticipantObjectDetail")
    assert alert is not None and alert.get("type") == "Alert Description"
    assert base64.b64decode(alert.get("value") or "").decode() == "User Security Attributes Changed"


def test_what_xml_cannot_hold_and_what_is_not_known_still_make_good_messages() -> None:
    row = {"seq": 1, "site": "default", "at": "2026-11-25T10:00:00.000Z", "actor": "ae:\x00\x1b<&>", "peer": None,
           "subject": None, "outcome": "ok", "detail": "{}", "previous_hash": "0" * 64, "row_hash": "1" * 64}
    for action in ("image.stored", "image.read", "delivery.attempt", "integrity.alarm", "never.heard.of"):
        for study in (None, "1.2.3"):
            message = ElementTree.fromstring(message_of({**row, "action": action}, "PACKHORSE", study))
            check(message)
            is_of_study = study is not None and action in ("image.stored", "image.read", "delivery.attempt")
            standard = is_of_study or action == "integrity.alarm"
            assert event_id(message).isdecimal() is standard, (action, study)
