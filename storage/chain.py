"""The hash chain of the audit: how a row's hash is made, and which row is the first that is not what it was. Pure.

Facts: a row holds the hash of the row before it, so whoever changes one row must write all later ones anew; then only
an anchor kept elsewhere (a receipt, the signed head) tells. A break lies between two rows; the later one is the bad
one unless something after it vouches for it. Building a row's canonical JSON by hand takes half the time of an encoder.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

GENESIS = "0" * 64
"""`previous_hash` of the first row."""
COLUMNS = ("seq", "site", "at", "action", "actor", "subject", "peer", "outcome", "detail", "previous_hash", "row_hash")
"""What a walk reads of a row; all but the last are hashed, in this order."""
Row = Sequence[Any]  # the columns above; whoever wrote into the file may have put anything there

_text = encode_basestring


@dataclass(frozen=True, slots=True)
class Anchor:
    """The hash that a row had, as somebody outside the database knows it; `source` says who, in words."""

    seq: int
    row_hash: str
    source: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk found: how many rows are good, and the first fault: at which row, and in words."""

    rows: int
    bad_seq: int | None = None
    fault: str | None = None


def row_hash(
    seq: int, site: str, at: str, action: str, actor: str, subject: str | None, peer: str | None, outcome: str,
    detail: str, previous_hash: str,
) -> str:
    """SHA-256 of the values as one JSON array without blanks, in UTF-8 (RFC 8259)."""
    content = (
        f"[{seq},{_text(site)},{_text(at)},{_text(action)},{_text(actor)},"
        f"{'null' if subject is None else _text(subject)},{'null' if peer is None else _text(peer)},"
        f"{_text(outcome)},{_text(detail)},{_text(previous_hash)}]")
    return hashlib.sha256(content.encode()).hexdigest()


def walk(
    rows: Iterable[Row], around: Callable[[int], list[Row]], anchors: Iterable[Anchor] = (), end: Anchor | None = None,
    *, start: tuple[int, str] = (0, GENESIS), until: int | None = None,
) -> ChainReport:
    """Follow the chain through `rows`, in order, behind the row `start` (seq, hash); stop at the first fault.

    `around` gives the rows from two before a seq to one after it. Behind `end` no row may follow. `until`: the last row
    of this part, which must be there; anchors of other parts are left to those.
    """
    named: dict[int, list[Anchor]] = defaultdict(list)
    for anchor in (*anchors, *((end,) if end else ())):
        # a chain without rows ends at 0: there is no such row
        if anchor.seq and (anchor.seq > start[0] or start[0] == 0) and (until is None or anchor.seq <= until):
            named[anchor.seq].append(anchor)
    last = end.seq if end is not None else None
    count, previous = start
    try:
        for row in rows:
            seq, site, at, action, actor, subject, peer, outcome, detail, link, own = row
            if seq != count + 1 or link != previous or own != row_hash(
                    seq, site, at, action, actor, subject, peer, outcome, detail, link):
                return _broken(row, count, previous, around, named)
            if seq in named and (other := _contradicted(named.pop(seq), own)) is not None:
                return ChainReport(count, seq, f"row {seq} is not the one that {other.source} names")
            if last is not None and seq > last:
                return ChainReport(count, seq, f"row {seq} is foreign: {end.source if end else ''} ended at row {last}")
            count, previous = seq, own
    except TypeError:  # what is no text was put where text belongs
        return _broken(row, count, previous, around, named)
    if until is not None and count < until:
        return ChainReport(count, count + 1, f"row {count + 1} is missing")
    if named:
        first = named[min(named)][0]
        return ChainReport(count, count + 1, f"row {count + 1} is missing: {first.source} names row {first.seq}")
    return ChainReport(count)


def _is_itself(row: Row) -> bool:
    try:
        return bool(row_hash(*row[:10]) == row[10])
    except TypeError:  # what is no text was put where text belongs
        return False


def _contradicted(anchors: list[Anchor], actual: str) -> Anchor | None:
    return next((one for one in anchors if one.row_hash != actual), None)


def _broken(
    row: Row, count: int, previous: str, around: Callable[[int], list[Row]], named: dict[int, list[Anchor]]
) -> ChainReport:
    """Which row is the bad one where `row` does not go on from the `count` rows before it."""
    seq, wanted = row[0], count + 1
    if seq > wanted:
        return ChainReport(count, wanted, f"row {wanted} is missing")
    if seq < wanted:
        return ChainReport(count, seq, f"row {seq} does not belong to the chain")
    if row[9] == previous:
        return ChainReport(count, wanted, f"row {wanted} was changed")
    near = {one[0]: one for one in around(wanted)}
    before = near[count - 1][10] if count - 1 in near else GENESIS
    if count and row[9] == before and row[10] != previous and _is_itself((count, *row[1:])):
        return ChainReport(count - 1, count, f"row {count} is foreign: row {wanted} was in its place")
    following = near.get(wanted + 1)
    vouched = (following is not None and following[9] == row[10]) or any(
        one.row_hash == row[10] for one in named.get(wanted, ()))
    if count and vouched and _is_itself(row):
        return ChainReport(count - 1, count, f"row {count} was changed: row {wanted} follows another one")
    return ChainReport(count, wanted, f"row {wanted} does not follow row {count}")
