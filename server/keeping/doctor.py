"""Looks at everything that a server needs, running or not, and says what to do. Leaves all as it is."""

from collections.abc import Awaitable, Callable, Iterator

from sqlalchemy import Connection

from server.config import warnings_of
from server.keeping import holdings, machine
from server.keeping.findings import Finding, fine, warning, wrong
from server.settings import Settings
from storage.backends import reading, revisions
from storage.errors import StorageError

Echo = Callable[[str, str, int], Awaitable[str | None]]
"""(AE title, host, port) → why it does not answer a C-ECHO; None when it does."""


HeadFault = Callable[[Connection], str | None]
"""Why the audit chain and its signed head do not agree; None when they do. Of a transaction that has read nothing."""


class Doctor:
    """Examines one configuration; `echo` asks a DICOM node whether it is there."""

    def __init__(self, settings: Settings, echo: Echo, head_fault: HeadFault) -> None:
        self._settings = settings
        self._echo = echo
        self._head_fault = head_fault

    def examine(self) -> Iterator[Finding]:
        """Every finding about this machine; see `peers` for the others."""
        for text in warnings_of(self._settings):
            key, _, what = text.partition(": ")
            yield warning(key, what, f"see {key} in config.example.toml")
        yield from machine.disk(self._settings)
        yield from machine.permissions(self._settings)
        yield from machine.ports(self._settings)
        yield from machine.certificate(self._settings)
        yield from self._store()

    def _store(self) -> Iterator[Finding]:
        path = self._settings.database_path
        if not path.exists():
            yield wrong("database", f"there is none: {path}",
                        "name the server's configuration with --config, or start the server, which makes it")
            return
        try:
            present, newest = revisions(path)
            if present is None:
                yield wrong("database", f"{path} holds nothing of Packhorse", "start the server, which makes it")
                return
            with reading(path) as tx:  # of its own, for a running server renews its head meanwhile
                fault = self._head_fault(tx)
            yield holdings.audit_head(fault)
            with reading(path) as tx:
                yield from holdings.database(tx, self._settings, present, newest)
                yield from holdings.triggers(tx)
                yield from holdings.clocks(tx, machine.is_serving(self._settings))
                yield from holdings.keys(tx, self._settings)
                yield from holdings.alarms(tx)
                yield from holdings.waiting_jobs(tx, machine.is_serving(self._settings))
                yield from holdings.refused_callers(tx)
        except StorageError as error:
            yield holdings.unreadable(error, path)

    async def peers(self) -> list[Finding]:
        """Whether those who are called answer: destinations must, peers need not listen."""
        found = []
        for destination in self._settings.forward.destinations:
            why = await self._echo(destination.ae_title, destination.host, destination.port)
            name = f"forward.destinations {destination.name}"
            where = f"{destination.ae_title} at {destination.host}:{destination.port}"
            found.append(fine(name, f"{where} answers") if why is None else wrong(
                name, f"{where}: {why}", "start it, or mend its address; what waits for it is sent then"))
        for peer in self._settings.dicom.peers:
            why = await self._echo(peer.ae_title, peer.host, peer.port)
            name = f"dicom.peers {peer.ae_title}"
            where = f"{peer.host}:{peer.port}"
            found.append(fine(name, f"{where} answers") if why is None else warning(
                name, f"{where}: {why}", "nothing, if it only sends; else start it, or mend its address"))
        return found
