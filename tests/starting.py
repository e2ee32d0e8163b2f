"""Starts `packhorse` as a process of its own: from the shell, as anybody does, or forked from one that has loaded it.

Facts: nearly all of what a start costs is loading, and the tests start it a thousand times. The fork server of
multiprocessing loads it once for each process of pytest; what it forks runs the same `main()`, with words, folder,
environment and streams of its own, and is killed like any other. `make evidence` and the tests of the terminal start it
from the shell; the workers of a server are always new processes.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]


class Process(Protocol):
    """What of subprocess.Popen the tests use."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def send_signal(self, number: int) -> None: ...


class Starts(Protocol):
    """Starts `packhorse` with `words` in `folder`; its streams go to two open files."""

    def __call__(
        self, words: tuple[str, ...], folder: Path, environment: dict[str, str], stdout: int, stderr: int
    ) -> Process: ...


def from_the_shell(
    words: tuple[str, ...], folder: Path, environment: dict[str, str], stdout: int, stderr: int
) -> Process:
    """A new process, which loads everything."""
    return subprocess.Popen(
        [sys.executable, "-m", "server", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )


def preloaded(words: tuple[str, ...], folder: Path, environment: dict[str, str], stdout: int, stderr: int) -> Process:
    """A process forked from one that has loaded everything."""
    return _Forked(words, folder, environment, stdout, stderr)


class _Forked:
    def __init__(
        self, words: tuple[str, ...], folder: Path, environment: dict[str, str], stdout: int, stderr: int
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "tests.loaded"])
        given = (words, str(folder), environment, _mask(), _Passed(stdout), _Passed(stderr))
        self._process: ForkServerProcess = context.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("packhorse", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _Passed:
    """An open file for the child: the fork server hands it over as it starts, which is when this is pickled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> Any:
        return _taken, (DupFd(self._descriptor),)


def _taken(passed: Any) -> int:
    return int(passed.detach())


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _run(words: tuple[str, ...], folder: str, environment: dict[str, str], mask: int, stdout: int, stderr: int) -> None:
    from server.cli import main

    nothing = os.open(os.devnull, os.O_RDONLY)
    for given, standard in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(given, standard)
        os.close(given)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["packhorse", *words]
    main()


start: Starts = from_the_shell
"""How `packhorse` is started; conftest.py chooses the quick way for the tests."""
