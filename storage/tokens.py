"""Units of work on tokens and public signing keys. Secrets never come here, only their SHA-256."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update

from storage.database.prepared import Prepared
from storage.records import TokenRecord, timestamp
from storage.tables import signing_key, token

_COLUMNS = tuple(token.c[field.name] for field in fields(TokenRecord))
_FIND = Prepared(select(*_COLUMNS).where(token.c.token_id == bindparam("wanted")))


def add(tx: Connection, record: TokenRecord) -> None:
    """Insert a token."""
    tx.execute(insert(token).values(**asdict(record)))


def find(tx: Connection, token_id: str) -> TokenRecord | None:
    """The token of that id."""
    row = _FIND.first(tx, wanted=token_id)
    return TokenRecord(*row) if row else None


def listing(tx: Connection, site: str | None = None) -> list[TokenRecord]:
    """Every token, or every one of a site, the oldest first."""
    query = select(*_COLUMNS).order_by(token.c.created_at, token.c.token_id)
    return [TokenRecord(*row) for row in tx.execute(query if site is None else query.where(token.c.site == site))]


def revoke(tx: Connection, token_id: str) -> list[TokenRecord]:
    """Refuse the token from now on, and whatever it minted: those that were not refused before, itself first.

    Unknown ids change nothing.
    """
    named = select(token.c.token_id).where(token.c.token_id == token_id).cte("lineage", recursive=True)
    lineage = named.union(select(token.c.token_id).join(named, token.c.maker == named.c.token_id))
    fresh = token.c.token_id.in_(select(lineage.c.token_id)) & token.c.revoked_at.is_(None)
    found = [TokenRecord(*row) for row in tx.execute(select(*_COLUMNS).where(fresh).order_by(token.c.created_at))]
    tx.execute(update(token).where(fresh).values(revoked_at=timestamp()))
    return sorted(found, key=lambda one: one.token_id != token_id)


def descends(tx: Connection, token_id: str, principal: str) -> bool:
    """Whether the principal minted the token, or minted what minted it."""
    named = select(token.c.token_id, token.c.maker).where(token.c.token_id == token_id).cte("makers", recursive=True)
    makers = named.union(select(token.c.token_id, token.c.maker).join(named, token.c.token_id == named.c.maker))
    return tx.execute(select(makers.c.maker).where(makers.c.maker == principal)).first() is not None


def note_uses(tx: Connection, uses: Mapping[str, str], unless_after: str) -> None:
    """When tokens were used last, by id; those whose last use is known to be after `unless_after` are left alone."""
    for token_id, used_at in uses.items():
        is_old = or_(token.c.last_used_at.is_(None), token.c.last_used_at < unless_after)
        tx.execute(update(token).where((token.c.token_id == token_id) & is_old).values(last_used_at=used_at))


def forget(tx: Connection, before: str) -> int:
    """Take away what was minted over the API and whose time was over before `before`: how many."""
    is_over = token.c.maker.is_not(None) & (token.c.expires_at < before)
    return tx.execute(delete(token).where(is_over)).rowcount


def count(tx: Connection) -> int:
    """How many tokens there are."""
    return len(tx.execute(select(token.c.token_id)).all())


def publish(tx: Connection, site: str, public_jwks: Sequence[dict[str, Any]]) -> None:
    """Publish public keys, each with its `kid`; those that are there already stay as they are."""
    for jwk in public_jwks:
        if tx.execute(select(signing_key.c.kid).where(signing_key.c.kid == jwk["kid"])).first() is None:
            tx.execute(insert(signing_key).values(
                kid=jwk["kid"], site=site, public_jwk=jwk, created_at=timestamp()))


def keys(tx: Connection) -> list[dict[str, Any]]:
    """Every public key ever used, as JWKs, oldest first."""
    return [row.public_jwk for row in tx.execute(select(signing_key).order_by(signing_key.c.created_at))]
