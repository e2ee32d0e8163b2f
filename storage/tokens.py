"""Units of work on tokens and public signing keys. Secrets never come here, only their SHA-256."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

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


def listing(tx: Connection) -> list[TokenRecord]:
    """Every token, the oldest first."""
    return [TokenRecord(*row) for row in tx.execute(select(*_COLUMNS).order_by(token.c.created_at, token.c.token_id))]


def revoke(tx: Connection, token_id: str) -> bool:
    """Refuse the token from now on; whether it was not refused before. Unknown ids change nothing."""
    fresh = (token.c.token_id == token_id) & token.c.revoked_at.is_(None)
    return tx.execute(update(token).where(fresh).values(revoked_at=timestamp())).rowcount == 1


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
