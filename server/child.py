"""One process of several (see processes.py): asked by one line of JSON on stdin, which is its lifeline from then on."""

from server.lean import keep_pixels_out

keep_pixels_out()

import asyncio  # noqa: E402 - what is imported from here on must find the pixel libraries gone
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import uvloop  # noqa: E402

from server.config import restored  # noqa: E402
from server.errors import ConfigurationError  # noqa: E402
from server.lifecycle import StartFailed, open_services  # noqa: E402
from server.logs import log_to_stderr  # noqa: E402
from server.supervisor import Kind, stop_signal, working  # noqa: E402


async def _serve(asked: dict[str, Any]) -> None:  # the parent's JSON
    settings = restored(asked["settings"], Path(asked["base"]), http_port=asked["http_port"])
    kinds = frozenset(Kind(kind) for kind in asked["kinds"])
    log_to_stderr(settings.log.format)
    stop = stop_signal()
    try:
        async with (open_services(settings) as (services, tasks),
                    working(services, tasks, kinds, shares_port=True) as (_http_port, dicom_port)):
            print(json.dumps({"dicom_port": dicom_port}), flush=True)  # noqa: T201 - the parent reads it
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _orphaned)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, services.certificate.reread)
            await stop.wait()
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    except (StartFailed, ConfigurationError) as error:
        print(json.dumps({"failed": str(error)}), flush=True)  # noqa: T201 - the parent reads it


def _orphaned() -> None:
    """The parent is gone: whoever starts the server again must find nobody at work."""
    os._exit(1)


def main() -> None:
    """A child: asked by one line of JSON on stdin."""
    log_to_stderr()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent re-reads the configuration, and hands its own on
    uvloop.run(_serve(json.loads(sys.stdin.readline())))


if __name__ == "__main__":
    main()
