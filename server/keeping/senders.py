"""Names what stored bytes are of, and who can send them again: images, sessions, callers. Looks at no byte."""

from sqlalchemy import Connection

from storage import integrity, inventory

SHOWN = 5
"""Of each, so that a line stays one that can be read."""
SEND_AGAIN = "have it sent again"
SEND_AGAIN_OR_PUT_BACK = f"{SEND_AGAIN}, or put the file back from a backup, then run packhorse scrub"


def whose(tx: Connection, site: str, sha256: str) -> str:
    """In words: the images and sessions of a blob, and the AE titles that sent it, with their addresses."""
    images, sessions = integrity.owners(tx, site, sha256)
    callers = inventory.callers_of(tx, site, sha256)
    named = [*_named("image", "images", images), *_named("session", "sessions", sessions),
             *_named("sent by", "callers", [f"{title} at {peer}" if peer else title for title, peer in callers])]
    return ", ".join(named) or "nothing refers to it"


def _named(kind: str, kinds: str, found: list[int] | list[str]) -> list[str]:
    others = [f"{len(found) - SHOWN} more {kinds}"] if len(found) > SHOWN else []
    return [*(f"{kind} {one}" for one in found[:SHOWN]), *others]
