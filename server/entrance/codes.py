"""One-time codes: a unit of work makes one for a token. A code stands in a URL's fragment, which no server is sent."""

from datetime import timedelta

from sqlalchemy import Connection

from server.auth import Principal
from server.identity.secrets import fingerprint, new_secret
from storage import audit, logins
from storage.records import AuditEntry, CodeRecord, TokenRecord, now, timestamp

GOOD_FOR = timedelta(minutes=5)


def new_code(
    tx: Connection, record: TokenRecord, actor: str, peer: str | None = None, maker: Principal | None = None
) -> tuple[str, str]:
    """(the code, when it expires); only its SHA-256 is kept. `maker`: who makes it over the API; it ends with him."""
    code, expires_at = new_secret(), timestamp(now() + GOOD_FOR)
    expires_at = min(expires_at, (maker.expires_at if maker else None) or expires_at)
    logins.add_code(tx, CodeRecord(
        fingerprint(code), record.site, record.token_id, timestamp(), expires_at,
        maker.name if maker else None, maker.expires_at if maker else None))
    audit.append(tx, AuditEntry(record.site, "token.code", actor, f"token/{record.token_id}", peer))
    return code, expires_at


def login_url(base_url: str, code: str) -> str:
    """Where a browser opens it."""
    return f"{base_url}/login#code={code}"
