"""Objects made to size, and objects made to hurt."""

import struct
import zlib
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

UNDEFINED = 0xFFFFFFFF


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit VR little endian element; `length` may lie."""
    size = len(value) if length is None else length
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return struct.pack("<HH2sHI", group, number, vr, 0, size) + value
    return struct.pack("<HH2sH", group, number, vr, size) + value


def uid(text: str) -> bytes:
    """A UI value, padded to even length."""
    return text.encode() + b"\0" * (len(text) % 2)


def part10(dataset: bytes, transfer_syntax_uid: str = ExplicitVRLittleEndian, sop_instance_uid: str = "1.2.3") -> bytes:
    """A Part 10 file around an encoded data set."""
    meta = (
        element(2, 1, b"OB", b"\0\1")
        + element(2, 2, b"UI", uid(CTImageStorage))
        + element(2, 3, b"UI", uid(sop_instance_uid))
        + element(2, 16, b"UI", uid(transfer_syntax_uid))
    )
    return b"\0" * 128 + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + dataset


def identified(sop_instance_uid: str, rest: bytes = b"") -> bytes:
    """The four identifiers, then `rest`."""
    return (
        element(8, 0x16, b"UI", uid(CTImageStorage))
        + element(8, 0x18, b"UI", uid(sop_instance_uid))
        + element(0x20, 0x0D, b"UI", uid("1.2.3.4"))
        + element(0x20, 0x0E, b"UI", uid("1.2.3.5"))
        + rest
    )


def item(content: bytes = b"", length: int | None = None) -> bytes:
    """An item; of undefined length when `length` says so."""
    size = len(content) if length is None else length
    return struct.pack("<HHI", 0xFFFE, 0xE000, size) + content


def nested_sequences(depth: int) -> bytes:
    """`depth` sequences, one in the other, all of undefined length."""
    opened = element(0x40, 0x275, b"SQ", b"", UNDEFINED) + item(length=UNDEFINED)
    closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return part10(identified("1.2.500", opened * depth + closed * depth), sop_instance_uid="1.2.500")


def empty_items(count: int) -> bytes:
    """One sequence of `count` items that hold nothing."""
    return part10(identified("1.2.600", element(0x40, 0x275, b"SQ", item() * count)), sop_instance_uid="1.2.600")


def deflate_bomb(size: int = 1024 * 1024 * 1024) -> bytes:
    """A small file that inflates to `size` bytes of one private value."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [deflater.compress(identified("1.2.700") + element(0x29, 0x10, b"OB", b"", size))]
    block = bytes(1024 * 1024)
    parts += [deflater.compress(block) for _ in range(size // len(block))]
    return part10(b"".join([*parts, deflater.flush()]), DeflatedExplicitVRLittleEndian, "1.2.700")


def ct(path: Path, rows: int = 64, columns: int = 64, frames: int = 1, *, seed: int = 0, **attributes: str) -> Path:
    """A CT of random pixels with UIDs of its own, written to `path`."""
    dataset = FileDataset(str(path), {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(None)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(None), generate_uid(None)
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Test^Patient", "CT"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    pixels = np.random.default_rng(seed).integers(0, 4096, rows * columns * frames, dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path
