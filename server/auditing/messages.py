"""Audit rows as DICOM audit messages (PS3.15 §A.5, an XML form of RFC 3881). Pure; every row is one message.

Facts: rows hold no patient, so where the standard asks for one the message says that none is told. What needs more of
a patient or a study than there is, and our own steps, are events of our own coding scheme, which §A.5 leaves to us.
The children of an element come in the order of the schema (§A.5.1). Each message ends with the row itself.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

Row = dict[str, Any]  # a row of the audit table
OURS = "packhorse"
"""Our coding scheme: its codes are the actions of the audit."""
SUCCESS, MINOR, SERIOUS = "0", "4", "8"
GOOD_OUTCOMES = frozenset({"ok", "complete", "delivered"})


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value: its value, scheme and meaning."""

    value: str
    scheme: str
    meaning: str

    def on(self, parent: Element, name: str) -> Element:
        """As an element of `parent`."""
        return SubElement(parent, name, {
            "csd-code": self.value, "codeSystemName": self.scheme, "originalText": self.meaning})


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


@dataclass(frozen=True, slots=True)
class Family:
    """What an action is for the standard: the event, what was done to its object, and a narrower type."""

    event: Code
    action_code: str
    type_code: Code | None = None


# PS3.16 CID 400 and CID 401
AUDIT_LOG_USED = _dcm("110101", "Audit Log Used")
ACCESSED = _dcm("110103", "DICOM Instances Accessed")
TRANSFERRED = _dcm("110104", "DICOM Instances Transferred")
SECURITY_ALERT = _dcm("110113", "Security Alert")
USER_AUTHENTICATION = _dcm("110114", "User Authentication")
LOGIN = _dcm("110122", "Login")
SECURITY_CONFIGURATION = _dcm("110129", "Security Configuration")
USER_ATTRIBUTES = _dcm("110137", "User Security Attributes Changed")
# PS3.16 CID 402 and CID 404
SOURCE, DESTINATION = _dcm("110153", "Source Role ID"), _dcm("110152", "Destination Role ID")
STUDY = _dcm("110180", "Study Instance UID")
URI, PATIENT = Code("12", "RFC-3881", "URI"), Code("2", "RFC-3881", "Patient Number")
ROW = Code("audit-row", OURS, "Row of the audit chain")

FAMILIES: dict[str, Family] = {
    "login.refused": Family(USER_AUTHENTICATION, "E", LOGIN),
    "token.created": Family(SECURITY_ALERT, "E", USER_ATTRIBUTES),
    "token.revoked": Family(SECURITY_ALERT, "E", USER_ATTRIBUTES),
    "integrity.alarm": Family(SECURITY_ALERT, "E", Code("integrity.alarm", OURS, "Stored bytes are damaged")),
    "integrity.repaired": Family(SECURITY_ALERT, "E", Code("integrity.repaired", OURS, "Stored bytes are good again")),
    "audit.head_missing": Family(SECURITY_ALERT, "E", SECURITY_CONFIGURATION),
    "audit.triggers_made": Family(SECURITY_ALERT, "E", SECURITY_CONFIGURATION),
    "audit.head_foreign": Family(SECURITY_ALERT, "E", SECURITY_CONFIGURATION),
    "audit.exported": Family(AUDIT_LOG_USED, "R"),
    "audit.read": Family(AUDIT_LOG_USED, "R"),
    "image.read": Family(ACCESSED, "R"),
    "image.stored": Family(TRANSFERRED, "C"),
    "image.deduplicated": Family(TRANSFERRED, "R"),
    "image.quarantined": Family(TRANSFERRED, "C"),
    "delivery.attempt": Family(TRANSFERRED, "R"),
}
OF_A_STUDY = frozenset({ACCESSED, TRANSFERRED})
FAILED_BY_NATURE = frozenset({"login.refused", "integrity.alarm", "image.quarantined", "arrival.refused"})


def message_of(row: Row, source_id: str, study_instance_uid: str | None = None) -> str:
    """The message that a row is, as one line of XML; `source_id` names this server, the UID what the row is about."""
    action = row["action"]
    family = FAMILIES.get(action)
    if family is None or (family.event in OF_A_STUDY and study_instance_uid is None):
        family = Family(Code(action, OURS, action.replace(".", " ")), "E")
    message = Element("AuditMessage")
    _event(message, row, family)
    _participants(message, row, family, source_id)
    source = SubElement(message, "AuditSourceIdentification", {
        "AuditEnterpriseSiteID": row["site"], "AuditSourceID": source_id})
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # an application server
    _objects(message, row, family, study_instance_uid)
    return tostring(message, encoding="unicode")


def _event(message: Element, row: Row, family: Family) -> None:
    is_good = row["outcome"] in GOOD_OUTCOMES and row["action"] not in FAILED_BY_NATURE
    outcome = SUCCESS if is_good else SERIOUS if row["action"] == "integrity.alarm" else MINOR
    event = SubElement(message, "EventIdentification", {
        "EventActionCode": family.action_code, "EventDateTime": row["at"], "EventOutcomeIndicator": outcome})
    family.event.on(event, "EventID")
    if family.type_code is not None:
        family.type_code.on(event, "EventTypeCode")
    if not is_good:
        SubElement(event, "EventOutcomeDescription").text = _clean(row["outcome"])


def _participants(message: Element, row: Row, family: Family, source_id: str) -> None:
    """Who did it, and for a transfer who sent and who received (§A.5.3.7)."""
    if family.event != TRANSFERRED:
        _participant(message, row["actor"], True, row["peer"])
        return
    destination = json.loads(row["detail"]).get("destination")
    if destination is None:  # it came
        _participant(message, row["actor"], True, row["peer"], SOURCE)
        _participant(message, source_id, False, None, DESTINATION)
    else:
        _participant(message, source_id, True, None, SOURCE)
        _participant(message, str(destination), False, None, DESTINATION)


def _participant(message: Element, user: str, is_requestor: bool, peer: str | None, role: Code | None = None) -> None:
    values = {"UserID": _clean(user), "UserIsRequestor": "true" if is_requestor else "false"}
    if peer is not None:
        values |= {"NetworkAccessPointID": _clean(peer), "NetworkAccessPointTypeCode": "2"}  # an IP address
    participant = SubElement(message, "ActiveParticipant", values)
    if role is not None:
        role.on(participant, "RoleIDCode")


def _objects(message: Element, row: Row, family: Family, study_instance_uid: str | None) -> None:
    """What it was about as the standard asks for it (§A.5.3), and the row itself."""
    subject, detail = _clean(row["subject"] or row["action"]), json.loads(row["detail"])
    if family.event == AUDIT_LOG_USED:
        _object(message, "urn:packhorse:audit", URI, "Security Audit Log", "2", "13")
    elif family.event == SECURITY_ALERT:
        alert = _object(message, f"urn:packhorse:{subject}", URI, subject, "2", "13")
        _detail(alert, "Alert Description", _meaning_of(row, family))
    elif family.event in OF_A_STUDY and study_instance_uid is not None:
        study = _object(message, study_instance_uid, STUDY, "study", "2", "3")
        if uid := detail.get("sop_instance_uid"):
            described = SubElement(study, "ParticipantObjectDescription")
            sop_class = SubElement(described, "SOPClass", {"NumberOfInstances": "1"})
            SubElement(sop_class, "Instance", {"UID": _clean(str(uid))})
        _object(message, "<none>", PATIENT, "not told", "1", "1")
    element = _object(message, subject, ROW, "row", "2")
    for name, value in (("seq", str(row["seq"])), ("row_hash", row["row_hash"]), ("detail", row["detail"])):
        _detail(element, name, value)


def _meaning_of(row: Row, family: Family) -> str:
    """What happened, in words; the row beside it has the rest."""
    return family.type_code.meaning if family.type_code is not None else str(row["action"])


def _object(
    message: Element, object_id: str, kind: Code, name: str, type_code: str, role: str | None = None
) -> Element:
    values = {"ParticipantObjectID": object_id, "ParticipantObjectTypeCode": type_code}
    if role is not None:
        values["ParticipantObjectTypeCodeRole"] = role
    element = SubElement(message, "ParticipantObjectIdentification", values)
    kind.on(element, "ParticipantObjectIDTypeCode")
    SubElement(element, "ParticipantObjectName").text = name
    return element


def _detail(element: Element, name: str, value: str) -> None:
    SubElement(element, "ParticipantObjectDetail", {
        "type": name, "value": base64.b64encode(value.encode()).decode()})


def _clean(text: str) -> str:
    """Without what XML 1.0 cannot hold (§2.2)."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
