"""Units of work on the moment that the sweeper of expired uploads believes in."""

from sqlalchemy import Connection, insert, select, update

from storage.records import DEFAULT_SITE
from storage.tables import clock


def believed(tx: Connection) -> str | None:
    """The moment that the sweeper last believed in; None before its first sweep."""
    return tx.execute(select(clock.c.believed_at).where(clock.c.name == "expiry")).scalar()


def believe(tx: Connection, moment: str) -> None:
    """Keep the moment that the sweeper believes in; it never goes back."""
    known = believed(tx)
    if known is None:
        tx.execute(insert(clock).values(name="expiry", site=DEFAULT_SITE, believed_at=moment))
    elif moment > known:
        tx.execute(update(clock).where(clock.c.name == "expiry").values(believed_at=moment))
