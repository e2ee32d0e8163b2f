"""What a doctor finds: one finding a fact, with what to do where something is to be done. Looks at nothing itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

SEND_AGAIN = "have it sent again"
SEND_AGAIN_OR_PUT_BACK = f"{SEND_AGAIN}, or put the file back from a backup, then run packhorse scrub"
"""What to do about damaged bytes."""


class Verdict(StrEnum):
    """How it is. Only what is wrong makes the whole unwell."""

    FINE = "fine"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. `check` is what was looked at, `what` the fact in words, `remedy` what to do, or empty."""

    check: str
    verdict: Verdict
    what: str
    remedy: str = ""


def fine(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Verdict.FINE, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    """It goes on as it is, and should be known."""
    return Finding(check, Verdict.WARNING, what, remedy)


def wrong(check: str, what: str, remedy: str) -> Finding:
    """It does not go on, or something is lost if it does."""
    return Finding(check, Verdict.WRONG, what, remedy)


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(one.verdict is not Verdict.WRONG for one in findings)
