"""Moments that no setting of the clock moves: the boot of the machine, and the nanoseconds since; no wall time.

Facts: a clock may be a day ahead until somebody sets it right, and what was noted meanwhile lies in the future. The
kernel's time since its boot only goes on, the same for all processes; moments of two boots tell nothing of each other.
"""

import time
from functools import cache
from pathlib import Path
from typing import NewType

Moment = NewType("Moment", str)
"""`{boot id} {nanoseconds}`."""


@cache
def boot_id() -> str:
    """The id of this boot of the machine: bytes written before another boot count only if they were flushed."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def moment() -> Moment:
    """This one."""
    return Moment(f"{boot_id()} {_since_boot_ns():020d}")


def passed_ns(one: str | None) -> int | None:
    """How long ago that was, in nanoseconds; None where nobody knows: in another boot, in the future, never."""
    boot, _, since_boot = (one or "").partition(" ")
    if boot != boot_id() or not since_boot.isdecimal():
        return None
    passed = _since_boot_ns() - int(since_boot)
    return passed if passed >= 0 else None


def is_after(one: str | None, other: str | None) -> bool:
    """Whether it is known that `one` came after `other`."""
    return passed_ns(one) is not None and passed_ns(other) is not None and str(one) > str(other)


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
