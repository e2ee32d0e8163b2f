"""Units of work that hold clean-up back while a backup copies what the database names. Frees nothing, copies nothing.

The pause is a moment in a row, which whoever copies pushes on: a backup that was killed holds nothing back for longer
than LONGEST, nor does a clock that was set back since.
"""

from datetime import timedelta

from sqlalchemy import Connection, insert, select, update

from storage.records import DEFAULT_SITE, now, timestamp
from storage.tables import clock

LONGEST = timedelta(minutes=15)
_NAME = "cleanup"


def pause_cleanup(tx: Connection) -> None:
    """Let no clean-up free sealed bytes from now on, for LONGEST at the most."""
    until = timestamp(now() + LONGEST)
    if tx.execute(update(clock).where(clock.c.name == _NAME).values(believed_at=until)).rowcount == 0:
        tx.execute(insert(clock).values(name=_NAME, site=DEFAULT_SITE, believed_at=until))


def cleanup_is_paused(tx: Connection) -> bool:
    """Whether clean-up must leave sealed bytes alone."""
    until = tx.execute(select(clock.c.believed_at).where(clock.c.name == _NAME)).scalar()
    return until is not None and timestamp() <= until <= timestamp(now() + LONGEST)
