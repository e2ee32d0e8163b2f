"""The signed head: which row was the last one, told in a file outside the database (contract §9).

Facts: whoever owns the database can cut off the chain's end, or write all of it anew; a head on another disk, and
receipts at the clinics, are what they cannot reach. Only a row that is on the medium is named: a power cut may undo
others. So a head that the chain contradicts is evidence: it is never
written over. A closed head is that of a server that was stopped: behind its row nothing may follow.
"""

import asyncio
import base64
import binascii
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection

from server.private_files import replace_durably
from storage import audit
from storage.chain import Anchor
from storage.errors import FlushFailed
from storage.records import DEFAULT_SITE, AuditEntry, AuditPosition, now, timestamp
from storage.store import Store

log = structlog.get_logger()
RENEWED = timedelta(seconds=1)
KIND = "audit-head"
Sign = Callable[[dict[str, Any]], str]
"""Makes a JWS of claims."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says: the last row, when it was signed, and whether the server was stopped then."""

    seq: int
    row_hash: str
    signed_at: str
    closed: bool

    def anchor(self, source: str) -> Anchor:
        """The row that it names."""
        return Anchor(self.seq, self.row_hash, source)


def head_of(claims: dict[str, Any]) -> Head:
    """The head that signed claims hold. ValueError when they are of something else."""
    try:
        if claims["kind"] != KIND:
            raise ValueError("this is no head of an audit chain")
        return Head(int(claims["audit_seq"]), str(claims["audit_hash"]), str(claims["signed_at"]),
                    bool(claims["closed"]))
    except (KeyError, TypeError) as error:
        raise ValueError("this is no head of an audit chain") from error


def fault_of(tx: Connection, path: Path) -> str | None:
    """Why the chain and the head in `path` do not agree; its signature is `audit verify`'s to look at."""
    known, newest = _read(path), audit.newest(tx)
    if known is None:
        return f"there is no head in {path}, though there are {newest.seq} rows" if newest.seq else None
    return _contradiction(known, newest, audit.hash_of(tx, known.seq) if known.seq else None)


class AuditHead:
    """Keeps the file; several processes may, for the newest row wins."""

    def __init__(self, store: Store, path: Path, sign: Sign) -> None:
        self._store = store
        self._path = path
        self._sign = sign
        self._told: str | None = None
        self._signed_seq = -1

    @property
    def fault(self) -> str | None:
        """Why it is not kept up; None while it is."""
        return self._told

    async def open(self) -> None:
        """A server starts: from now on rows may follow. A head that is gone though there are rows leaves a row."""
        known = await asyncio.to_thread(_read, self._path)
        if known is None and (await self._store.read(audit.newest)).seq:
            log.warning("audit.head_missing", path=str(self._path))
            await self._store.write(lambda tx: audit.append(tx, AuditEntry(DEFAULT_SITE, "audit.head_missing")))
        await self._renew(closed=False, known=known)

    async def renew(self) -> None:
        """Sign the newest row, unless it was, or another process did so within a second."""
        if self._store.glance(audit.newest).seq == self._signed_seq:
            return
        known = await asyncio.to_thread(_read, self._path)
        if known is None or not _is_fresh(known):
            await self._renew(closed=False, known=known)

    async def close(self) -> None:
        """The server stops: nothing may follow."""
        await self._renew(closed=True, known=await asyncio.to_thread(_read, self._path))

    async def follow(self, before: AuditPosition) -> None:
        """A command wrote rows behind `before` while no server runs: its rows belong there."""
        known = await asyncio.to_thread(_read, self._path)
        if known is None or not known.closed or (known.seq, known.row_hash) != (before.seq, before.row_hash):
            return
        newest = await self._store.read(audit.newest)
        if newest != before:
            await self._store.flush()
            await asyncio.to_thread(self._write, newest, True, known)

    async def _renew(self, *, closed: bool, known: Head | None) -> None:
        def unit(tx: Connection) -> tuple[AuditPosition, str | None]:
            return audit.newest(tx), audit.hash_of(tx, known.seq) if known and known.seq else None

        newest, there = await self._store.read(unit)
        await self._store.flush()
        if known is not None and (why := _contradiction(known, newest, there)) is not None:
            self._tell("audit.head_contradicted", why)
            return
        try:
            if await asyncio.to_thread(self._write, newest, closed, known):
                self._signed_seq, self._told = newest.seq, None
        except (OSError, FlushFailed) as error:  # the head may lie on another disk: the server goes on without it
            self._tell("audit.head_not_written", getattr(error, "strerror", None) or str(error))

    def _tell(self, event: str, why: str) -> None:
        """Once for each cause, for it is tried again every second."""
        if self._told != why:
            log.error(event, path=str(self._path), why=why)
        self._told = why

    def _write(self, newest: AuditPosition, closed: bool, known: Head | None) -> bool:
        """Whether it was written: not where another process did so since `known`."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(self._path):
            if _read(self._path) != known:
                return False
            text = self._sign({"kind": KIND, "audit_seq": newest.seq, "audit_hash": newest.row_hash,
                               "signed_at": timestamp(), "closed": closed})
            replace_durably(self._path, f"{text}\n".encode())
        return True


def _read(path: Path) -> Head | None:
    """What the file says, its signature not looked at; None where there is none that can be read."""
    try:
        payload = path.read_text().split(".")[1]
        return head_of(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))
    except (FileNotFoundError, IndexError, ValueError, binascii.Error):
        return None


def _is_fresh(known: Head) -> bool:
    try:
        age = now() - datetime.fromisoformat(known.signed_at)
    except (ValueError, TypeError):  # no time, or one without a zone
        return False
    return timedelta(0) <= age < RENEWED


def _contradiction(known: Head, newest: AuditPosition, there: str | None) -> str | None:
    if known.seq > newest.seq:
        return f"the head names row {known.seq}, the last one is row {newest.seq}"
    if known.seq and there != known.row_hash:
        return f"row {known.seq} is not the one that the head names"
    if known.closed and newest.seq > known.seq:
        return f"rows follow row {known.seq}, which was the last one when the server stopped"
    return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
