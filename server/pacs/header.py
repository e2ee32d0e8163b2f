"""Walks a DICOM Part 10 file within bounds: every length is checked, nothing is recursive, little is read.

Owns structure (PS3.5 §7, PS3.10 §7); what attributes mean is dicom.py's.
Facts: pydicom reads a truncated element in silence, inflates a bomb even when told to stop before pixels,
and raises RecursionError at 500 nested sequences. So structure is judged here first.
"""

import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.errors import DicomRejected, NotDicom

UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs with a 32-bit length (PS3.5 §7.1.2)."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
TRANSFER_SYNTAX = 0x00020010
TRAILING_PADDING = 0xFFFCFFFC

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = ("1.2.840.10008.1.2.1.99",)
WINDOW_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """What a header may cost. Beyond any of these the file is refused."""

    max_depth: int = 32
    max_elements: int = 200_000
    max_items: int = 100_000
    max_value_bytes: int = 1024
    max_inflated_bytes: int = 256 * 1024 * 1024
    max_inflate_ratio: int = 200
    max_time_s: float = 10.0


class _Bytes(Protocol):
    size: int

    def at(self, position: int, count: int) -> bytes: ...


class _File:
    """Random access by a window of 64 KiB: large values are passed over, never read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._start, self._window = 0, b""

    def at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes at `position`; fewer at the end of the file."""
        start = position - self._start
        if start < 0 or start + count > len(self._window):
            self._start, start = position, 0
            self._window = os.pread(self._descriptor, max(count, WINDOW_BYTES), position)
        return self._window[start:start + count]


class _Memory:
    """The same over bytes that are in memory."""

    def __init__(self, content: bytes) -> None:
        self._content, self.size = content, len(content)

    def at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes at `position`."""
        return self._content[position:position + count]


@dataclass(frozen=True, slots=True)
class Value:
    """A top-level value that was asked for: at most `max_value_bytes` of it, and its full length in bytes."""

    vr: bytes
    content: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What a sound file showed: its transfer syntax, where the data set starts, and the wanted values by tag."""

    transfer_syntax_uid: str
    dataset_offset: int
    meta: dict[int, Value]
    values: dict[int, Value]
    big_endian: bool
    mislabelled: bool


def walk(descriptor: int, wanted: frozenset[int], limits: HeaderLimits) -> Structure:
    """Check a whole file's structure. NotDicom without "DICM" at byte 128 (PS3.10 §7.1); DicomRejected."""
    file = _File(descriptor)
    if file.at(128, 4) != b"DICM":
        raise NotDicom("there is no DICM mark at byte 128")
    deadline = time.monotonic() + limits.max_time_s
    # the file meta group is always explicit VR little endian (PS3.10 §7.1)
    meta = _Walk(file, 132, limits, deadline, explicit=True, big_endian=False, wanted=lambda tag: tag >> 16 == 2)
    offset = meta.run(only_group_2=True)
    syntax = meta.values.get(TRANSFER_SYNTAX)
    if syntax is None:
        raise DicomRejected("the file meta group has no Transfer Syntax UID (0002,0010)")
    uid = syntax.content.rstrip(b"\0 ").decode("ascii", "replace")
    source: _Bytes = file
    start = offset
    if uid in DEFLATED:
        source, start = _Memory(_inflate(file, offset, limits)), 0
    big_endian = uid == EXPLICIT_BIG
    explicit = uid != IMPLICIT_LITTLE
    first_vr = source.at(start + 4, 2)
    # some writers announce explicit VR and write implicit: readers follow the bytes, and so do we
    mislabelled = explicit and len(first_vr) == 2 and not _is_vr(first_vr)
    body = _Walk(source, start, limits, deadline, explicit=explicit and not mislabelled, big_endian=big_endian,
                 wanted=wanted.__contains__)
    body.run()
    return Structure(uid, offset, meta.values, body.values, big_endian, mislabelled)


def _is_vr(vr: bytes) -> bool:
    return vr.isalpha() and vr.isupper()


def _inflate(file: _File, offset: int, limits: HeaderLimits) -> bytes:
    """The inflated data set (PS3.5 §A.5), bounded in size and ratio."""
    inflater, parts, total, position = zlib.decompressobj(-zlib.MAX_WBITS), [], 0, offset
    allowed = min(limits.max_inflated_bytes, max(1024 * 1024, (file.size - offset) * limits.max_inflate_ratio))
    try:
        while not inflater.eof:
            pending = inflater.unconsumed_tail or file.at(position, WINDOW_BYTES)
            if not inflater.unconsumed_tail:
                position += len(pending)
            if not pending:
                raise DicomRejected("the deflated data set ends early")
            part = inflater.decompress(pending, 1024 * 1024)
            total += len(part)
            if total > allowed:
                raise DicomRejected("the deflated data set inflates beyond the limit")
            parts.append(part)
    except zlib.error as error:
        raise DicomRejected("the deflated data set is damaged") from error
    return b"".join(parts)


@dataclass(slots=True)
class _Level:
    """A sequence or an item that is open: where it must end, None when a delimiter tells."""

    is_item: bool
    end: int | None
    implicit: bool
    fragments: bool = False


class _Walk:
    """One pass over a data set with an explicit stack."""

    def __init__(
        self, source: _Bytes, position: int, limits: HeaderLimits, deadline: float, *, explicit: bool,
        big_endian: bool, wanted: Callable[[int], bool],
    ) -> None:
        self._source, self._position, self._limits, self._deadline = source, position, limits, deadline
        self._explicit, self._wanted = explicit, wanted
        order = ">" if big_endian else "<"
        self._tag, self._short, self._long = (struct.Struct(order + form) for form in ("HH", "H", "I"))
        self._levels: list[_Level] = []
        self._elements = self._items = 0
        self.values: dict[int, Value] = {}

    def run(self, only_group_2: bool = False) -> int:
        """Walk to the end, or to the end of group 2; gives the position after it."""
        size = self._source.size
        while True:
            self._close_levels()
            if self._position >= size:
                break
            if not self._levels and self._only_padding_left():
                break
            head = self._source.at(self._position, 12)
            if len(head) < 8:
                raise DicomRejected("the file ends inside an element")
            group, number = self._tag.unpack_from(head)
            if only_group_2 and group != 2:
                break
            self._step(group << 16 | number, head)
        if self._levels:
            raise DicomRejected("the file ends inside a sequence")
        return self._position

    def _step(self, tag: int, head: bytes) -> None:
        self._elements += 1
        if self._elements > self._limits.max_elements:
            raise DicomRejected(f"more than {self._limits.max_elements} elements")
        if self._elements % 256 == 0 and time.monotonic() > self._deadline:
            raise DicomRejected("reading the header takes too long")
        if tag >> 16 == 0xFFFE:
            self._delimiter(tag, self._long.unpack_from(head, 4)[0])
            return
        level = self._levels[-1] if self._levels else None
        if level is not None and not level.is_item:
            raise DicomRejected("a sequence holds something that is no item")
        vr, length, size = self._read_head(head, implicit=level.implicit if level else not self._explicit)
        self._position += size
        if length == UNDEFINED:
            self._open_undefined(tag, vr, level)
        elif vr == b"SQ" and length:
            self._check_end(length, tag)
            implicit = level.implicit if level else not self._explicit
            self._push(_Level(False, self._position + length, implicit))
        else:
            self._check_end(length, tag)
            if level is None and self._wanted(tag):
                kept = self._source.at(self._position, min(length, self._limits.max_value_bytes))
                self.values.setdefault(tag, Value(vr, kept, length))
            self._position += length

    def _read_head(self, head: bytes, implicit: bool) -> tuple[bytes, int, int]:
        """(VR, length of the value, length of the head); PS3.5 §7.1.2 and §7.1.3."""
        if implicit:
            return b"", self._long.unpack_from(head, 4)[0], 8
        vr = head[4:6]
        if not _is_vr(vr):
            raise DicomRejected("an element has no valid VR")
        if vr in LONG_VRS:
            if len(head) < 12:
                raise DicomRejected("the file ends inside an element")
            return vr, self._long.unpack_from(head, 8)[0], 12
        return vr, self._short.unpack_from(head, 6)[0], 8

    def _open_undefined(self, tag: int, vr: bytes, level: _Level | None) -> None:
        if (tag == PIXEL_DATA and level is None) or vr in (b"OB", b"OW"):
            # encapsulated: items that hold fragments (PS3.5 §A.4)
            if level is None and self._wanted(tag):
                self.values.setdefault(tag, Value(vr, b"", UNDEFINED))
            self._push(_Level(False, None, False, fragments=True))
            return
        if vr not in (b"SQ", b"UN", b""):
            raise DicomRejected("an element that is no sequence has no length")
        # UN of undefined length is a sequence in implicit VR (PS3.5 §6.2.2)
        inherited = level.implicit if level else not self._explicit
        self._push(_Level(False, None, vr == b"UN" or inherited))

    def _delimiter(self, tag: int, length: int) -> None:
        self._position += 8
        level = self._levels[-1] if self._levels else None
        if tag == ITEM and level is not None and not level.is_item:
            self._items += 1
            if self._items > self._limits.max_items:
                raise DicomRejected(f"more than {self._limits.max_items} items")
            if level.fragments:
                self._check_end(length, tag)
                self._position += length
                return
            if length != UNDEFINED:
                self._check_end(length, tag)
            self._push(_Level(True, None if length == UNDEFINED else self._position + length, level.implicit))
        elif (tag == SEQUENCE_END and level is not None and not level.is_item) or (
                tag == ITEM_END and level is not None and level.is_item):
            self._levels.pop()
        else:
            raise DicomRejected("a delimiter stands where none belongs")

    def _push(self, level: _Level) -> None:
        if len(self._levels) >= 2 * self._limits.max_depth:
            raise DicomRejected(f"sequences are nested deeper than {self._limits.max_depth}")
        self._levels.append(level)

    def _close_levels(self) -> None:
        while self._levels and (end := self._levels[-1].end) is not None and self._position >= end:
            if self._position > end:
                raise DicomRejected("an item ends inside an element")
            self._levels.pop()

    def _check_end(self, length: int, tag: int) -> None:
        end = self._source.size
        for level in reversed(self._levels):
            if level.end is not None:
                end = level.end
                break
        if self._position + length > end:
            raise DicomRejected(f"the length of ({tag >> 16:04X},{tag & 0xFFFF:04X}) passes the end of the file")

    def _only_padding_left(self) -> bool:
        """Zeros after the last element, as some writers leave them, are no element."""
        left = self._source.size - self._position
        return left <= 4096 and not self._source.at(self._position, left).strip(b"\0")
