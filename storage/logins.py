"""Units of work on one-time codes and on browsers that are logged in. Secrets never come here, only their SHA-256."""

from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select, update

from storage.database.prepared import Prepared
from storage.records import BrowserRecord, CodeRecord, timestamp
from storage.tables import browser, login_code

_COLUMNS = tuple(browser.c[field.name] for field in fields(BrowserRecord))
_CODE_COLUMNS = tuple(login_code.c[field.name] for field in fields(CodeRecord))
_FIND = Prepared(select(*_COLUMNS).where(browser.c.cookie_sha256 == bindparam("wanted")))


def add_code(tx: Connection, record: CodeRecord) -> None:
    """A code that lets one browser in for its token, once."""
    tx.execute(insert(login_code).values(**asdict(record)))


def code_is_good(tx: Connection, code_sha256: str) -> bool:
    """Whether the code is there, unused and in time."""
    return tx.execute(select(login_code.c.token_id).where(_is_good(code_sha256))).first() is not None


def use_code(tx: Connection, code_sha256: str) -> CodeRecord | None:
    """Use the code up, and give it; None where it is not good (any more)."""
    good = _is_good(code_sha256)
    row = tx.execute(select(*_CODE_COLUMNS).where(good)).first()
    if row is None or tx.execute(update(login_code).where(good).values(used_at=timestamp())).rowcount != 1:
        return None
    return CodeRecord(*row)


def _is_good(code_sha256: str) -> ColumnElement[bool]:
    return ((login_code.c.code_sha256 == code_sha256) & login_code.c.used_at.is_(None)
            & (login_code.c.expires_at > timestamp()))


def add_browser(tx: Connection, record: BrowserRecord) -> None:
    """A browser is logged in."""
    tx.execute(insert(browser).values(**asdict(record)))


def find_browser(tx: Connection, cookie_sha256: str) -> BrowserRecord | None:
    """The browser with that cookie."""
    row = _FIND.first(tx, wanted=cookie_sha256)
    return BrowserRecord(*row) if row else None


def end_browser(tx: Connection, cookie_sha256: str) -> bool:
    """Log a browser out; whether it was logged in."""
    present = (browser.c.cookie_sha256 == cookie_sha256) & browser.c.ended_at.is_(None)
    return tx.execute(update(browser).where(present).values(ended_at=timestamp())).rowcount == 1


def end_made_by(tx: Connection, makers: Sequence[str]) -> None:
    """End what these principals let in: browsers that their codes logged in, and codes that nobody has used."""
    moment = timestamp()
    tx.execute(update(browser).where(browser.c.maker.in_(makers), browser.c.ended_at.is_(None)).values(ended_at=moment))
    tx.execute(update(login_code).where(
        login_code.c.maker.in_(makers), login_code.c.used_at.is_(None)).values(used_at=moment))


def forget(tx: Connection, before: str) -> None:
    """Take away codes and browsers whose time was over before `before`."""
    tx.execute(delete(login_code).where(login_code.c.expires_at < before))
    tx.execute(delete(browser).where(browser.c.expires_at < before))
