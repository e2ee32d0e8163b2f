"""One process of several (see processes.py): asked by one line of JSON on stdin, which is its lifeline from then on."""

from server.lean import FOR_TERMINALS, loading

with loading(*FOR_TERMINALS):
    import asyncio
    import json
    import os
    import signal
    import sys
    from pathlib import Path
    from typing import Any

    import uvloop

    from server.config import restored
    from server.errors import ConfigurationError
    from server.folder_lock import StartFailed
    from server.kinds import Kind
    from server.lifecycle import open_services
    from server.logs import log_to_stderr
    from server.supervisor import stop_signal, working


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
