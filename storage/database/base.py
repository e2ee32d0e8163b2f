"""The Database seam: runs units of work. Knows nothing of what a unit does."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")
_LEARNED = "learned"
_ENDS = "ends"


def learned(tx: Connection) -> dict[str, Any]:
    """What units know of this transaction's own rows, so that they need not ask again; gone with the transaction."""
    known: dict[str, Any] = tx.info.setdefault(_LEARNED, {})
    return known


def at_unit_end(tx: Connection, work: Callable[[Connection], None]) -> None:
    """Run `work` once before the unit ends, in its transaction: for what is better written in one go."""
    known = learned(tx)
    known.setdefault(_ENDS, {})[work] = None


def end_unit(tx: Connection) -> None:
    """The unit ends: whatever was left for its end is done."""
    ends = learned(tx).pop(_ENDS, None)
    for work in ends or ():
        work(tx)


def forget(tx: Connection) -> None:
    """A transaction begins, or a part of it was rolled back: nothing is known of it."""
    tx.info.pop(_LEARNED, None)


class Database(Protocol):
    """Runs units of work: synchronous functions of a SQLAlchemy Connection, without awaits inside.

    The caller guarantees that a unit touches nothing but the connection, and may be run again after it
    raised. The database guarantees that `write` returns only once the unit is durable, that a unit which
    raises leaves no trace and harms no other unit, and that units commit one after another. It calls `forget`
    at each begin and rollback, and `end_unit` as the last part of each unit.
    Both raise what the unit raises; the database's own refusals come as `storage.errors`.
    """

    async def write(self, unit: Callable[[Connection], T], *, light: bool = False) -> T:
        """Run `unit` in a durable transaction of its own.

        A `light` one survives the end of the process at once, that of the machine with the next one that is not
        light: for what a power cut may undo, because nobody was promised anything yet.
        """
        ...

    async def read(self, unit: Callable[[Connection], T]) -> T:
        """Run `unit` on a consistent snapshot; it must not write."""
        ...

    def glance(self, unit: Callable[[Connection], T]) -> T:
        """Like `read`, at once in the caller's own thread: for a few rows by their keys, on the event loop."""
        ...

    async def flush(self) -> None:
        """Whatever was committed until now, light units too, is on the medium. FlushFailed."""
        ...

    async def close(self) -> None:
        """Finish what was begun, then let go of every resource."""
        ...
