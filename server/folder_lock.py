"""One server per data folder. Knows nothing of what it serves."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import AppError

ENDING_S = 2.0


class StartFailed(AppError):
    """The server cannot start; the message says what is in the way."""

    code = "start_failed"
    title = "The server cannot start"


@contextmanager
def sole_server(data_path: Path) -> Iterator[int]:
    """One server per data folder; gives the descriptor whose lock says so, for the processes of this server.

    Somebody who is just ending is waited for a moment: the processes of a killed server end by themselves.
    """
    data_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(data_path / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + ENDING_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StartFailed(f"another server already works on {data_path}") from None
                time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)
