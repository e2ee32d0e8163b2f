"""The only reader of DICOM attributes: identifiers, what studies and series show, and the data set's digest."""

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword

from server.errors import DicomRejected
from server.pacs.header import PIXEL_DATA, UNDEFINED, HeaderLimits, Structure, Value, walk
from storage.records import Sha256

STUDY_KEYWORDS = (
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "StudyDescription", "AccessionNumber", "ReferringPhysicianName")
SERIES_KEYWORDS = ("Modality", "SeriesNumber", "SeriesDescription", "SeriesDate", "BodyPartExamined", "StationName")
IMAGE_KEYWORDS = ("SpecificCharacterSet", "InstanceNumber", "NumberOfFrames", "PhotometricInterpretation")
UID_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
NUMBER_KEYWORDS = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")

TAGS = {
    keyword: tag for keyword in (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *IMAGE_KEYWORDS, *UID_KEYWORDS, *NUMBER_KEYWORDS)
    if (tag := tag_for_keyword(keyword)) is not None}
WANTED = frozenset({*TAGS.values(), PIXEL_DATA})
PERSON_NAMES = frozenset({"PatientName", "ReferringPhysicianName"})
# digits and dots as the field has them: leading zeros are against PS3.5 §9.1, and in every archive
UID = re.compile(r"[0-9.]{1,64}")
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class Header:
    """What is kept of a data set's header. `attributes`: keyword → text; `dataset_offset` in bytes."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int
    attributes: dict[str, str]
    flags: tuple[str, ...]

    @property
    def patient_id(self) -> str | None:
        """Patient ID (0010,0020)."""
        return self.attributes.get("PatientID")

    @property
    def issuer_of_patient_id(self) -> str | None:
        """Issuer of Patient ID (0010,0021)."""
        return self.attributes.get("IssuerOfPatientID")

    @property
    def accession_number(self) -> str | None:
        """Accession Number (0008,0050)."""
        return self.attributes.get("AccessionNumber")


def read_header(path: Path, limits: HeaderLimits | None = None) -> Header:
    """Read and judge a Part 10 file. NotDicom; DicomRejected when damaged, unidentified or beyond the limits."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        structure = walk(descriptor, WANTED, limits or HeaderLimits())
    finally:
        os.close(descriptor)
    media_class = structure.meta.get(0x00020002)
    if media_class and _ascii(media_class) == MEDIA_DIRECTORY:
        raise DicomRejected("a DICOMDIR is the index of a medium, not an image: send the files that it names")
    uids = {keyword: _uid(structure, keyword) for keyword in UID_KEYWORDS}
    return Header(
        sop_class_uid=uids["SOPClassUID"], sop_instance_uid=uids["SOPInstanceUID"],
        study_instance_uid=uids["StudyInstanceUID"], series_instance_uid=uids["SeriesInstanceUID"],
        transfer_syntax_uid=structure.transfer_syntax_uid, dataset_offset=structure.dataset_offset,
        attributes=_attributes(structure), flags=_flags(structure))


def dataset_sha256(path: Path, header: Header) -> Sha256:
    """SHA-256(transfer syntax UID in ASCII, one zero byte, the bytes after the file meta group): contract §2."""
    digest = hashlib.sha256(header.transfer_syntax_uid.encode("ascii") + b"\0")
    with path.open("rb", buffering=0) as file:
        file.seek(header.dataset_offset)
        buffer = bytearray(1024 * 1024)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return Sha256(digest.hexdigest())


def _ascii(value: Value) -> str:
    return value.content.rstrip(b"\0 ").decode("ascii", "replace")


def _uid(structure: Structure, keyword: str) -> str:
    value = structure.values.get(TAGS[keyword])
    text = _ascii(value).strip() if value else ""
    if not UID.fullmatch(text):
        raise DicomRejected(f"{keyword} is {'not a UID' if text else 'missing'}")
    return text


def _attributes(structure: Structure) -> dict[str, str]:
    charset = structure.values.get(TAGS["SpecificCharacterSet"])
    names = [name.strip() for name in _ascii(charset).split("\\")] if charset else [""]
    try:
        encodings = convert_encodings(names)
    except LookupError:
        encodings = ["iso8859"]
    attributes = {}
    for keyword in (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *IMAGE_KEYWORDS):
        value = structure.values.get(TAGS[keyword])
        text = _text(value, encodings, person_name=keyword in PERSON_NAMES) if value else ""
        if text:
            attributes[keyword] = text
    return attributes


def _text(value: Value, encodings: list[str], *, person_name: bool) -> str:
    """A text value in its character sets (PS3.5 §6.1); what cannot be decoded is shown as replacement."""
    delimiters = {"^", "=", "\\"} if person_name else {"\\", "\r", "\n", "\t", "\f"}
    try:
        text = decode_bytes(value.content, encodings, delimiters)
    except (UnicodeError, LookupError, ValueError):
        text = value.content.decode("ascii", "replace")
    text = "".join(character for character in text if character.isprintable()).strip()
    return text.rstrip("=") if person_name else text  # empty component groups at the end say nothing (PS3.5 §6.2.1)


def _number(structure: Structure, keyword: str) -> int | None:
    value = structure.values.get(TAGS[keyword])
    if value is None or len(value.content) != 2:
        return None
    return int(struct.unpack(">H" if structure.big_endian else "<H", value.content)[0])


def _flags(structure: Structure) -> tuple[str, ...]:
    """What is kept although it is odd (contract §10): short pixel data, another encoding than announced."""
    odd = ("encoding_mislabelled",) if structure.mislabelled else ()
    pixels = structure.values.get(PIXEL_DATA)
    rows, columns, bits = (_number(structure, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    if pixels is None or pixels.length == UNDEFINED or not (rows and columns and bits):
        return odd
    samples = _number(structure, "SamplesPerPixel") or 1
    photometric = structure.values.get(TAGS["PhotometricInterpretation"])
    if photometric and _ascii(photometric).startswith("YBR_FULL_422"):
        samples = 2  # two pixels share their chrominance (PS3.3 §C.7.6.3.1.2)
    frames = structure.values.get(TAGS["NumberOfFrames"])
    text = _ascii(frames).strip() if frames else "1"
    count = int(text) if text.isdecimal() and len(text) < 9 else 1
    expected = (rows * columns * samples * bits * count + 7) // 8
    return (*odd, "short_pixel_data") if pixels.length < expected else odd
