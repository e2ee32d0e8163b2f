"""Secrets that are handed out once: tokens, one-time codes, cookies. Only their SHA-256 is kept."""

import hashlib
import secrets

from server.auth import Role
from storage.records import DEFAULT_SITE, TokenRecord, timestamp

PREFIX = "ph"


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def fingerprint(secret: str) -> str:
    """What is kept of a secret: 256 random bits need no slow hash, for there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def bearer_text(token_id: str, secret: str) -> str:
    """A token as it is handed out."""
    return f"{PREFIX}_{token_id}_{secret}"


def new_token(
    role: Role, site: str = DEFAULT_SITE, visit_id: str | None = None, expires_at: str | None = None,
    label: str | None = None, *, radiology_order_id: str | None = None, created_by_id: str | None = None,
) -> tuple[str, TokenRecord]:
    """Make a token: the text to hand out once, and the row to keep."""
    token_id, secret = secrets.token_hex(8), new_secret()
    record = TokenRecord(
        token_id, site, role, visit_id, fingerprint(secret), timestamp(), expires_at, None, label,
        radiology_order_id, created_by_id)
    return bearer_text(token_id, secret), record
