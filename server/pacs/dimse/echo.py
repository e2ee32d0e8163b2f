"""C-ECHO to another node (PS3.4 Annex A): is it there, and does it take our association? Sends no image."""

import asyncio

from pynetdicom import AE
from pynetdicom.sop_class import Verification

ANSWER_S = 5.0


async def echo(calling_ae_title: str, ae_title: str, host: str, port: int) -> str | None:
    """Why the node does not answer, in words; None when it does, with Success."""
    return await asyncio.to_thread(_echo, calling_ae_title, ae_title, host, port)


def _echo(calling_ae_title: str, ae_title: str, host: str, port: int) -> str | None:
    ae = AE(ae_title=calling_ae_title)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ANSWER_S
    ae.add_requested_context(Verification)
    association = ae.associate(host, port, ae_title=ae_title)
    if association.is_rejected:
        return f"it refuses us: {association.acceptor.primitive.reason_str}"
    if not association.is_established:
        return "it cannot be reached"
    status = association.send_c_echo().get("Status")
    association.release()
    if status is None:
        return "it gave no answer"
    return None if status == 0x0000 else f"it answers with status {status:04X}"
