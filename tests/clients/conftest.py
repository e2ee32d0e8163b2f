"""A server whose public URL is that of a proxy which cuts: the URLs that it hands out stay on the bad line."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy import CuttingProxy
from tests.server import Server
from tests.support import free_port


class BadLine:
    """The server, and a new bad line to it for each test."""

    def __init__(self, folder: Path, http: str = "") -> None:
        self.port = free_port()
        self.server = Server(folder, http=f'public_url = "http://127.0.0.1:{self.port}"\n{http}').start()
        self.url = f"http://127.0.0.1:{self.port}"
        self.proxy: CuttingProxy | None = None

    def cut(self, count: int, at: range = range(50_000, 250_000)) -> None:
        """From now on the first `count` connections are cut, by FIN or RST, at bytes that a printed seed chose."""
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        cuts = [dice.choice(at) for _ in range(count)]
        self.proxy = CuttingProxy(self._upstream, cuts, reset=dice, listen=self.port)

    def hush(self, after: int) -> None:
        """From now on the first connection that brings more than `after` bytes stays open, and brings no more."""
        self.proxy = CuttingProxy(self._upstream, [after], listen=self.port, silent=True)

    @property
    def _upstream(self) -> int:
        return int(self.server.url.rsplit(":", 1)[1])

    def close(self) -> None:
        """End the line."""
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None


@pytest.fixture(scope="module")
def _bad_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadLine]:
    line = BadLine(tmp_path_factory.mktemp("behind") / "server")
    yield line
    line.server.stop()


@pytest.fixture
def bad_line(_bad_line: BadLine) -> Iterator[BadLine]:
    """A line that is cut four times."""
    _bad_line.cut(4)
    yield _bad_line
    _bad_line.close()
