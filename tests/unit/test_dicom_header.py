"""The header reader agrees with pydicom on sound files and refuses the others within bounds."""

import random
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import DicomRejected, NotDicom
from server.pacs.dicom import read_header
from server.pacs.header import HeaderLimits
from tests import builders
from tests.samples import table

STORED = [name for name, row in table().items() if row.expect == "stored"]


@pytest.mark.parametrize("name", STORED)
def test_it_reads_what_pydicom_reads(name: str) -> None:
    row = table()[name]
    header = read_header(row.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom complains of odd samples, and reads them
        dataset = pydicom.dcmread(row.path, stop_before_pixels=True)
        assert header.sop_class_uid == dataset.SOPClassUID and header.sop_instance_uid == dataset.SOPInstanceUID
        assert header.study_instance_uid == dataset.StudyInstanceUID
        assert header.series_instance_uid == dataset.SeriesInstanceUID
        assert header.transfer_syntax_uid == dataset.file_meta.TransferSyntaxUID
        for keyword in ("PatientID", "PatientName", "AccessionNumber", "Modality", "StudyDate"):
            expected = "".join(c for c in str(dataset.get(keyword) or "") if c.isprintable()).strip()
            assert header.attributes.get(keyword, "") == expected, keyword
    assert ",".join(header.flags) == row.flags


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_each_cut_of_a_small_file_is_refused_or_a_shorter_sound_one(tmp_path: Path) -> None:
    whole = builders.part10(
        builders.identified(
            "1.2.3", builders.element(0x28, 0x10, b"US", b"\1\0") + builders.element(0x7FE0, 0x10, b"OW", b"\0" * 64)
        )
    )
    pixel_head = len(whole) - 64 - 12
    for length in range(len(whole)):
        path = write(tmp_path / "cut.dcm", whole[:length])
        if length >= pixel_head and length > pixel_head:
            with pytest.raises(DicomRejected):
                read_header(path)
        else:
            try:
                read_header(path)
            except (NotDicom, DicomRejected):
                continue


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (builders.nested_sequences(500), "nested deeper"),
        (builders.empty_items(1_000_000), "more than 100000 items"),
        (builders.deflate_bomb(512 * 1024 * 1024), "inflates beyond"),
        (builders.part10(builders.identified("")), "SOPInstanceUID is missing"),
        (builders.part10(builders.identified("not-a-uid")), "SOPInstanceUID is not a UID"),
        (builders.part10(builders.identified("1.2") + b"\x10\x00"), "ends inside an element"),
        (builders.part10(builders.identified("1.2", builders.item())), "delimiter stands where none belongs"),
        (
            builders.part10(builders.identified("1.2", builders.element(0x40, 0x275, b"SQ", b"", 0xFFFFFFFF))),
            "ends inside a sequence",
        ),
        (
            builders.part10(
                builders.identified(
                    "1.2",
                    builders.element(0x40, 0x275, b"SQ", builders.item(builders.element(8, 0x100, b"SH", b"ab", 60))),
                )
            ),
            "passes the end",
        ),
        (
            builders.part10(builders.identified("1.2", builders.element(0x10, 0x10, b"PN", b"", 0xFFFF))),
            "passes the end",
        ),
    ],
)
def test_a_damaged_file_is_refused_quickly_and_in_plain_words(tmp_path: Path, content: bytes, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(DicomRejected, match=words):
        read_header(write(tmp_path / "bad.dcm", content))
    assert time.monotonic() - began < HeaderLimits().max_time_s


def test_without_the_mark_it_is_not_dicom(tmp_path: Path) -> None:
    for content in (b"", b"DICM", b"\0" * 132):
        with pytest.raises(NotDicom):
            read_header(write(tmp_path / "x.dcm", content))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(["CT_small.dcm", "JPEG2000.dcm", "rtplan.dcm", "image_dfl.dcm"]))
def test_a_mutated_file_is_read_or_refused_never_worse(tmp_path: Path, seed: int, name: str) -> None:
    dice = random.Random(seed)
    content = bytearray(table()[f"test_files/{name}"].path.read_bytes())
    for _ in range(dice.randrange(1, 20)):
        content[dice.randrange(128, len(content))] = dice.randrange(256)
    if dice.random() < 0.3:
        del content[dice.randrange(len(content)) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom complains of character sets that it does not know
        with suppress(NotDicom, DicomRejected):
            read_header(write(tmp_path / "m.dcm", bytes(content)), HeaderLimits(max_time_s=5))


def test_zeros_after_the_last_element_are_padding(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "p.dcm", builders.part10(builders.identified("1.2")) + b"\0" * 100))


def test_short_pixel_data_with_consistent_lengths_is_flagged(tmp_path: Path) -> None:
    rest = b"".join(
        [
            builders.element(0x28, 2, b"US", b"\1\0"),
            builders.element(0x28, 0x10, b"US", b"\x10\0"),
            builders.element(0x28, 0x11, b"US", b"\x10\0"),
            builders.element(0x28, 0x100, b"US", b"\x10\0"),
            builders.element(0x7FE0, 0x10, b"OW", b"\0" * 64),
        ]
    )
    path = write(tmp_path / "s.dcm", builders.part10(builders.identified("1.2", rest)))
    assert read_header(path).flags == ("short_pixel_data",)
