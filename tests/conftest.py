"""Fixtures of every test: a server process where one is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import starting
from tests.server import Server

starting.start = starting.preloaded


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A fresh server; stopped at the end."""
    running = Server(tmp_path / "server").start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module's tests, which keep out of each other's way by their own ids."""
    running = Server(tmp_path_factory.mktemp("server")).start()
    yield running
    running.stop()


@pytest.fixture
def ct() -> bytes:
    """A real CT image."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm")
    assert isinstance(path, str)
    return Path(path).read_bytes()
