"""C-ECHO and C-STORE SCP on pynetdicom, behind an interface that a faster listener can take over.

Owns associations and what may be told by the command; what the data set is worth `receive` decides.
Facts: pynetdicom runs two threads per association; `ae.shutdown()` at once loses the answer of an object
that was stored; Nagle's algorithm delays small answers; its temp files go to `tempfile.tempdir`.
"""

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any, TypeVar

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import Verification

from server.pacs.dimse.statuses import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS

log = structlog.get_logger()
T = TypeVar("T")
MAX_PDU_BYTES = 128 * 1024
RECEIVE_TIMEOUT_S = 120.0
LAST_ANSWER_S = 1.0
COMMENT_CHARACTERS = 64
"""(0000,0902) Error Comment is an LO (PS3.7 §E.1)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who may call: an AE title, from these networks."""

    ae_title: str
    networks: tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """How the listener listens. `port` 0: a free one. Times in seconds."""

    host: str
    port: int
    ae_title: str
    spool: Path
    check_called_ae_title: bool = False
    require_known_peers: bool = False
    peers: tuple[Peer, ...] = ()
    max_associations: int = 32
    acse_timeout_s: float = 30.0
    dimse_timeout_s: float = 60.0
    network_timeout_s: float = 60.0
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Received:
    """One object: a complete Part 10 file at `path`, which is gone once `receive` has returned.

    `began_s`: when its data set began to come, by time.monotonic().
    """

    path: Path
    calling_ae_title: str
    called_ae_title: str
    peer_address: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    began_s: float


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """What the sender is told."""

    status: int
    error_comment: str = ""


Receive = Callable[[Received], Awaitable[StoreOutcome]]
Refused = Callable[[str, str], Awaitable[None]]
"""Hears of an unknown AE title and its address, whose association was refused."""


class DicomListener:
    """Listens from `start` to `close`; `receive` runs on the event loop that started it."""

    def __init__(self, settings: ListenerSettings, receive: Receive, refused: Refused) -> None:
        self._settings = settings
        self._receive = receive
        self._refused = refused
        self._server: Any = None  # pynetdicom's, which has no types
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = 0
        self._changed = threading.Condition()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    async def start(self) -> None:
        """Listen. OSError when the port is taken."""
        self._loop = asyncio.get_running_loop()
        spool = self._settings.spool
        spool.mkdir(parents=True, exist_ok=True)
        for left in spool.glob("*.dcm"):
            left.unlink()  # of associations that a crash ended: nothing was promised for them
        tempfile.tempdir = str(spool)
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.LOG_HANDLER_LEVEL = "none"
        ae = AE(ae_title=self._settings.ae_title)
        ae.maximum_pdu_size = MAX_PDU_BYTES
        ae.maximum_associations = self._settings.max_associations
        ae.acse_timeout = self._settings.acse_timeout_s
        ae.dimse_timeout = self._settings.dimse_timeout_s
        ae.network_timeout = self._settings.network_timeout_s
        ae.require_called_aet = self._settings.check_called_ae_title
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_CONN_OPEN, self._opened), (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_C_ECHO, lambda _: SUCCESS), (evt.EVT_C_STORE, self._store),
                    (evt.EVT_CONN_CLOSE, self._closed), (evt.EVT_ABORTED, self._closed)]
        self._server = await asyncio.to_thread(
            ae.start_server, (self._settings.host, self._settings.port), block=False, evt_handlers=handlers)

    async def close(self) -> None:
        """Stop accepting, let running stores answer within the grace time, then end every association."""
        if self._server is None:
            return
        # the listening socket first: associations that are open still get their answers
        await asyncio.to_thread(self._server.shutdown)
        await asyncio.to_thread(self._drain)
        for association in self._server.active_associations:
            await asyncio.to_thread(association.abort)
        if tempfile.tempdir == str(self._settings.spool):
            tempfile.tempdir = None

    def _drain(self) -> None:
        deadline = time.monotonic() + self._settings.grace_s
        with self._changed:
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        # the last answer leaves the association's own thread a moment after its store returned
        deadline = time.monotonic() + LAST_ANSWER_S
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)

    def _opened(self, event: Any) -> None:
        event.assoc.dul.socket.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)

    def _requested(self, event: Any) -> None:
        association = event.assoc
        title = str(association.requestor.primitive.calling_ae_title).strip()
        address = str(association.requestor.address)
        if not self._settings.require_known_peers or self._is_known(title, address):
            return
        log.warning("dicom.refused", calling_ae_title=title, address=address, paste=(
            f'[[dicom.peers]]\nae_title = "{title}"\nhost = "{address}"\nport = 104'))
        assert self._loop is not None, "start() came first"
        asyncio.run_coroutine_threadsafe(_awaited(self._refused(title, address)), self._loop)
        # rejected-permanent, service-user, calling-AE-title-not-recognized (PS3.8 §9.3.4)
        association.acse.send_reject(0x01, 0x01, 0x03)
        association.kill()

    def _is_known(self, title: str, address: str) -> bool:
        ip = ip_address(address)
        return any(peer.ae_title == title and any(ip in network for network in peer.networks)
                   for peer in self._settings.peers)

    def _store(self, event: Any) -> Dataset:
        with self._changed:
            self._running += 1
        try:
            outcome = self._ask(event)
        finally:
            Path(event.dataset_path).unlink(missing_ok=True)
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
        answer = Dataset()
        answer.Status = outcome.status
        if outcome.error_comment:
            answer.ErrorComment = outcome.error_comment[:COMMENT_CHARACTERS]
        return answer

    def _ask(self, event: Any) -> StoreOutcome:
        assert self._loop is not None, "start() came first"
        request, association = event.request, event.assoc
        received = Received(
            path=Path(event.dataset_path), calling_ae_title=str(association.requestor.ae_title).strip(),
            called_ae_title=str(association.requestor.primitive.called_ae_title).strip(),
            peer_address=str(association.requestor.address), sop_class_uid=str(request.AffectedSOPClassUID),
            sop_instance_uid=str(request.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax), began_s=_began_s(Path(event.dataset_path)))
        if not received.sop_instance_uid:
            return StoreOutcome(CANNOT_UNDERSTAND, "no Affected SOP Instance UID")
        future = asyncio.run_coroutine_threadsafe(_awaited(self._receive(received)), self._loop)
        try:
            return future.result(RECEIVE_TIMEOUT_S)
        except FutureTimeoutError:
            future.cancel()
            return StoreOutcome(OUT_OF_RESOURCES, "storing takes too long: send again")
        except Exception:
            log.exception("dicom.store_failed")
            return StoreOutcome(OUT_OF_RESOURCES, "storing failed on our side: send again")

    def _closed(self, event: Any) -> None:
        # an association that ended inside an object leaves its temp file; pynetdicom keeps its path here
        message = getattr(event.assoc.dimse, "message", None)
        path = getattr(message, "_data_set_path", None)
        if path is not None:
            Path(path).unlink(missing_ok=True)


def _began_s(path: Path) -> float:
    """When pynetdicom made the file: what was only written to keeps that as the time of its last reading."""
    return time.monotonic() - max(0.0, time.time() - path.stat().st_atime)


async def _awaited(outcome: Awaitable[T]) -> T:
    return await outcome
