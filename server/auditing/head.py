"""The signed head: which row was the last one, told in a file outside the database (contract §9).

Facts: whoever owns the database can cut off the chain's end, or write all of it anew; a head on another disk, and
receipts at the clinics, are what they cannot reach. Only a row that is on the medium is named, for a power cut may undo
others. A head that the chain contradicts is evidence, and is never written over; so is what lies in its place and bears
no signature of ours: it is set aside, and told until somebody takes it away. A closed head is that of a server that was
stopped: behind its row nothing may follow. While a server runs, each of its processes knows by itself the last row that
was on the medium: a chain that lost it is found out although the file is gone, and the file is then made again, so that
it is told at the next start too.
"""

import asyncio
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog
from sqlalchemy import Connection

from server.errors import AppError
from server.private_files import replace_durably
from storage import audit, tokens
from storage.chain import Anchor
from storage.errors import StorageError
from storage.records import DEFAULT_SITE, AuditEntry, AuditPosition, now, timestamp
from storage.store import Store

log = structlog.get_logger()
RENEWED = timedelta(seconds=1)
KIND = "audit-head"
MOST_BYTES = 64 * 1024
"""A head is shorter by far."""
MOST_ASIDE = 10
"""So many are set aside; what comes then stays where it is, and no head is kept up."""
MOST_SEQ = 2**63 - 1


class Signs(Protocol):
    """Signs claims, and tells ours from others'."""

    def sign(self, claims: dict[str, Any]) -> str:
        """`claims` as a JWS."""
        ...

    def genuine(self, text: str, published: list[dict[str, Any]]) -> dict[str, Any]:
        """The claims of a JWS that one of the `published` keys signed, or one of our own. AppError."""
        ...


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
    found = [claims.get(name) for name in ("kind", "audit_seq", "audit_hash", "signed_at", "closed")]
    kind, seq, row_hash, signed_at, closed = found
    if kind != KIND or type(seq) is not int or not 0 <= seq <= MOST_SEQ or not isinstance(row_hash, str):
        raise ValueError("this is no head of an audit chain")
    return Head(seq, row_hash, str(signed_at), bool(closed))


def fault_of(tx: Connection, path: Path, signer: Signs) -> str | None:
    """Why the chain and the head in `path` do not agree, or what was found in its place.

    The caller guarantees that `tx` has read nothing yet: its snapshot is to be younger than the head.
    """
    try:
        text, aside = _text(path), _set_aside(path)
        known = _genuine(text, signer, tokens.keys(tx)) if text is not None else None
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path} is no head of ours: {error}"
    newest = audit.newest(tx)
    if known is None:
        why = f"there is no head in {path}, though there are {newest.seq} rows" if newest.seq else None
    else:
        why = _contradiction(known, newest, audit.hash_of(tx, known.seq) if known.seq else None)
    return why or (_told_aside(aside) if aside else None)


def set_aside(path: Path) -> str | None:
    """What is told where something that is not ours was found in the place of the head `path`."""
    aside = _set_aside(path)
    return _told_aside(aside) if aside else None


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies in the place of the head. `moved`: what was there is no head of ours, and lies aside now."""

    text: str | None = None
    head: Head | None = None
    moved: Path | None = None
    aside: tuple[Path, ...] = ()


class AuditHead:
    """Keeps the file; several processes may, for the newest row wins."""

    def __init__(self, store: Store, path: Path, signer: Signs) -> None:
        self._store = store
        self._path = path
        self._signer = signer
        self._told: str | None = None
        self._signed: AuditPosition | None = None
        self._memory: AuditPosition | None = None
        self._read: tuple[str, Head] | None = None
        self._aside: tuple[Path, ...] | None = None
        self._missed = False

    @property
    def fault(self) -> str | None:
        """Why it is not kept up, or what was found in its place; None while all is well."""
        return self._told

    async def open(self) -> None:
        """A server starts: from now on rows may follow. A head that is gone though there are rows leaves a row."""
        await self._renew(closed=False, always=True)

    async def renew(self) -> None:
        """Sign the newest row, unless it was, or another process did so within a second."""
        if self._told is not None or self._store.glance(audit.newest) != self._signed:
            await self._renew(closed=False)

    async def close(self) -> None:
        """The server stops: nothing may follow."""
        await self._renew(closed=True, always=True)

    async def follow(self, before: AuditPosition) -> None:
        """A command wrote rows behind `before` while no server runs: its rows belong there."""
        try:
            text = await asyncio.to_thread(_text, self._path)
            known = await self._known(text)
        except (OSError, ValueError):
            return  # the next start tells of it
        if known is None or not known.closed or (known.seq, known.row_hash) != (before.seq, before.row_hash):
            return
        newest = await self._store.read(audit.newest)
        if newest != before:
            await self._store.flush()
            await asyncio.to_thread(self._write, newest, True, text)

    async def _renew(self, *, closed: bool, always: bool = False) -> None:
        try:
            found = await self._look()
            await self._note(found)
            newest, why, lost = await self._compare(found.head)
            if why is not None:
                self._tell("audit.head_contradicted", why)
                if lost is not None and (found.head is None or found.head.seq < lost.seq):
                    await asyncio.to_thread(self._write, lost, False, found.text)
                return
            if found.head is not None and not always and not found.head.closed and _is_fresh(found.head):
                self._memory = newest
            elif await asyncio.to_thread(self._write, newest, closed, found.text):
                self._signed = self._memory = newest
                self._missed = False
            else:
                return  # another process wrote it meanwhile
        except (OSError, StorageError) as error:  # the head may lie on another disk: the server goes on without it
            self._tell("audit.head_not_written", getattr(error, "strerror", None) or str(error))
            return
        self._tell("audit.head_foreign", _told_aside(found.aside) if found.aside else None)

    async def _look(self) -> _Found:
        """What is there; what is not ours is moved away. OSError."""
        text: str | None = None
        why = ""
        try:
            text = await asyncio.to_thread(_text, self._path)
            head = await self._known(text)
            return _Found(text, head, None, await asyncio.to_thread(_set_aside, self._path))
        except ValueError as error:
            why = str(error)
        moved = await asyncio.to_thread(self._move, text)
        aside = await asyncio.to_thread(_set_aside, self._path)
        if moved is not None:
            log.error("audit.head_foreign", path=str(self._path), moved_to=str(moved), why=why)
        return _Found(moved=moved, aside=aside)

    async def _known(self, text: str | None) -> Head | None:
        """The head that a text is; None of none. ValueError where it is no head of ours."""
        if text is None:
            return None
        if self._read is None or self._read[0] != text:
            published = await self._store.read(tokens.keys)
            self._read = text, await asyncio.to_thread(_genuine, text, self._signer, published)
        return self._read[1]

    async def _note(self, found: _Found) -> None:
        """A head that is gone leaves a row, once, and so does what was in its place."""
        moved_by_another = self._aside is not None and not set(found.aside) <= set(self._aside)
        self._aside = found.aside
        if found.moved is not None:
            detail = {"moved_to": found.moved.name}
            await self._append(AuditEntry(DEFAULT_SITE, "audit.head_foreign", outcome="refused", detail=detail))
        elif found.head is not None:
            self._missed = False
        elif not self._missed and not moved_by_another and (
                self._memory is not None or (await self._store.read(audit.newest)).seq):
            log.warning("audit.head_missing", path=str(self._path))
            await self._append(AuditEntry(DEFAULT_SITE, "audit.head_missing"))
            self._missed = True

    async def _append(self, entry: AuditEntry) -> None:
        await self._store.write(lambda tx: audit.append(tx, entry))

    async def _compare(self, head: Head | None) -> tuple[AuditPosition, str | None, AuditPosition | None]:
        """The newest row, on the medium; why the chain is not the one that we know; the row of ours that it lost."""
        memory = self._memory

        def unit(tx: Connection) -> tuple[AuditPosition, str | None, str | None]:
            return (audit.newest(tx), audit.hash_of(tx, head.seq) if head and head.seq else None,
                    audit.hash_of(tx, memory.seq) if memory and memory.seq else None)

        newest, there, remembered = await self._store.read(unit)
        await self._store.flush()
        if memory is not None and memory.seq and remembered != memory.row_hash:
            return newest, f"row {memory.seq} is gone or changed, which this server saw on the disk", memory
        if head is not None and (why := _contradiction(head, newest, there)) is not None:
            if memory is None:
                self._memory = newest
            return newest, why, None
        return newest, None, None

    def _tell(self, event: str, why: str | None) -> None:
        """Once for each cause, for it is tried again every second."""
        if why is not None and self._told != why:
            log.error(event, path=str(self._path), why=why)
        self._told = why

    def _write(self, newest: AuditPosition, closed: bool, known: str | None) -> bool:
        """Whether it was written: not where another process did so since `known` was read."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(self._path):
            try:
                if _text(self._path) != known:
                    return False
            except ValueError:
                return False
            text = self._signer.sign({"kind": KIND, "audit_seq": newest.seq, "audit_hash": newest.row_hash,
                                      "signed_at": timestamp(), "closed": closed})
            replace_durably(self._path, f"{text}\n".encode())
        return True

    def _move(self, text: str | None) -> Path | None:
        """Set aside what is there, unless another process did so since; its new path."""
        with _alone(self._path):
            if len(_set_aside(self._path)) >= MOST_ASIDE:
                raise FileExistsError(0, f"{MOST_ASIDE} that are not ours were set aside, and it is the next one")
            try:
                if _text(self._path) != text:
                    return None
            except ValueError:
                if text is not None:
                    return None
            target = self._path.with_name(_ASIDE.format(self._path.name, timestamp().translate(_PLAIN)))
            self._path.rename(target)
        return target


_ASIDE = "{}.foreign-{}"
_PLAIN = dict.fromkeys(map(ord, "-:."))


def _set_aside(path: Path) -> tuple[Path, ...]:
    """What was found in the place of the head, and still waits for somebody to look at it."""
    prefix = _ASIDE.format(path.name, "")
    try:
        return tuple(sorted(one for one in path.parent.iterdir() if one.name.startswith(prefix)))
    except FileNotFoundError:
        return ()


def _told_aside(aside: tuple[Path, ...]) -> str:
    return f"{aside[0]} was found in its place and is no head of ours: find out who wrote it, and take it away"


def _text(path: Path) -> str | None:
    """What the file holds; None where there is none. ValueError where it is no short text. OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError("it is a link to nothing") from None
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        content = os.pread(descriptor, MOST_BYTES + 1, 0)
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        raise ValueError("it is too long")
    return content.decode()


def _genuine(text: str, signer: Signs, published: list[dict[str, Any]]) -> Head:
    """The head that a text is. ValueError where it is none that we signed."""
    try:
        return head_of(signer.genuine(text, published))
    except AppError as error:
        raise ValueError(error.detail) from error


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
