"""One-time codes: a unit of work makes one for a token. A code stands in a URL's fragment, which no server is sent."""

from datetime import timedelta

from sqlalchemy import Connection

from server.identity.secrets import fingerprint, new_secret
from storage import audit, logins
from storage.records import AuditEntry, TokenRecord, now, timestamp

GOOD_FOR = timedelta(minutes=5)


def new_code(tx: Connection, record: TokenRecord, actor: str, peer: str | None = None) -> tuple[str, str]:
    """(the code, when it expires); only its SHA-256 is kept."""
    code, expires_at = new_secret(), timestamp(now() + GOOD_FOR)
    logins.add_code(tx, fingerprint(code), record.site, record.token_id, expires_at)
    audit.append(tx, AuditEntry(record.site, "token.code", actor, f"token/{record.token_id}", peer))
    return code, expires_at


def login_url(base_url: str, code: str) -> str:
    """Where a browser opens it."""
    return f"{base_url}/login#code={code}"
