"""Where images are sent on: the Destination seam, and C-STORE to another node (PS3.4 Annex B)."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any, Protocol

from pynetdicom import AE, _config, evt

CONNECT_S = 15.0
TIMEOUT_S = 120.0
WARNINGS = frozenset({0xB000, 0xB006, 0xB007})
"""Coercion, elements discarded, data set mismatch: stored all the same (PS3.4 §B.2.3)."""


class DeliveryOutcome(StrEnum):
    """What a send came to; `parked` waits for a person, for sending again would change nothing."""

    DELIVERED = "delivered"
    RETRY = "retry"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome, the peer's status if it gave one, and the reason in plain words."""

    outcome: DeliveryOutcome
    dimse_status: int | None = None
    detail: str = ""


class Destination(Protocol):
    """A place that takes images. Sending twice must do no harm: after a lost answer it happens."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        ...

    async def send(self, path: Path, sop_class_uid: str, transfer_syntax_uid: str) -> Delivery:
        """Send the Part 10 file at `path`. Never raises for what the peer does: that is the outcome."""
        ...


@dataclass(frozen=True, slots=True)
class DicomDestination:
    """C-STORE SCU: the data set's bytes as they are stored, in the one transfer syntax that they have."""

    name: str
    ae_title: str
    host: str
    port: int
    calling_ae_title: str

    async def send(self, path: Path, sop_class_uid: str, transfer_syntax_uid: str) -> Delivery:
        """One association, one object; in a thread."""
        return await asyncio.to_thread(self._send, path, sop_class_uid, transfer_syntax_uid)

    def _send(self, path: Path, sop_class_uid: str, transfer_syntax_uid: str) -> Delivery:
        _config.STORE_SEND_CHUNKED_DATASET = True
        ae = AE(ae_title=self.calling_ae_title)
        ae.connection_timeout = CONNECT_S
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_S
        ae.add_requested_context(sop_class_uid, transfer_syntax_uid)
        association = ae.associate(self.host, self.port, ae_title=self.ae_title,
                                   evt_handlers=[(evt.EVT_CONN_OPEN, _no_delay)])
        if not association.is_established:
            return _not_established(association)
        try:
            answer = association.send_c_store(path)
        except (ValueError, RuntimeError, OSError) as error:
            association.abort()
            return Delivery(DeliveryOutcome.RETRY, None, f"sending broke off: {type(error).__name__}")
        if association.is_established:
            association.release()
        return _judged(answer.get("Status"), str(answer.get("ErrorComment", "")))


def _no_delay(event: Any) -> None:  # pynetdicom's event, which has no types
    event.assoc.dul.socket.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)


def _not_established(association: Any) -> Delivery:  # pynetdicom's association, which has no types
    if association.rejected_contexts and not association.is_rejected:
        return Delivery(DeliveryOutcome.PARKED, None, "the peer takes this kind of image not in this transfer syntax")
    if association.is_rejected:
        result = association.acceptor.primitive.result
        permanent = result == 0x01  # rejected-permanent (PS3.8 §9.3.4)
        outcome = DeliveryOutcome.PARKED if permanent else DeliveryOutcome.RETRY
        return Delivery(outcome, None, f"the peer refused the association: {association.acceptor.primitive.reason_str}")
    return Delivery(DeliveryOutcome.RETRY, None, "the peer cannot be reached")


def _judged(status: int | None, comment: str) -> Delivery:
    """Delivered only on 0000 or a warning; A7xx and silence come again; all else waits for a person."""
    if status is None:
        return Delivery(DeliveryOutcome.RETRY, None, "the peer gave no answer")
    said = f"status {status:04X}" + (f": {comment}" if comment else "")
    if status == 0x0000 or status in WARNINGS:
        return Delivery(DeliveryOutcome.DELIVERED, status, said if status else "")
    if status & 0xFF00 == 0xA700:
        return Delivery(DeliveryOutcome.RETRY, status, said)
    return Delivery(DeliveryOutcome.PARKED, status, said)
