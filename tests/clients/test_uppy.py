"""Uppy as it comes, in Chromium: a page of another origin uploads a CT, over bad lines and past its own end."""

import json
import random
import subprocess
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Chromium
from tests.clients.conftest import BadLine
from tests.server import sha256
from tests.support import eventually, require_peer
from tests.tus.speaking_tus import transfers

SOURCES = Path(__file__).parent / "js"
ESBUILD = SOURCES / "node_modules" / ".bin" / "esbuild"
HTML = '<!doctype html><title>Uppy</title><input type="file"><script type="module" src="uppy.js"></script>'
pytestmark = pytest.mark.peers


class Pages(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Site:
    """Where the page comes from: not the server, and by its second name not a site that the server allows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "index.html").write_text(HTML)
        self._pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, directory=str(folder)))
        threading.Thread(target=self._pages.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.origin = f"http://127.0.0.1:{self._pages.server_port}"
        self.other_origin = f"http://localhost:{self._pages.server_port}"

    def ask(self, **asked: Any) -> None:
        """What the page is to do."""
        (self._folder / "asked.json").write_text(json.dumps(asked))

    def close(self) -> None:
        """End it."""
        self._pages.shutdown()
        self._pages.server_close()


class Page:
    """Uppy in a browser, about to send one CT over one line, for an order of its own."""

    def __init__(self, browser: Chromium, site: Site, line: BadLine, token: str, file: Path) -> None:
        self.browser, self.site, self.line, self.server = browser, site, line, line.server
        self._token, self._file, self.content = token, file, file.read_bytes()
        self.session_id, self._order_id = str(uuid.uuid4()), str(random.randrange(1, 2**31))

    async def send(self, origin: str = "", retry_delays_ms: tuple[int, ...] = (0, 50, *[100] * 20)) -> None:
        """Open the page, and choose the file there."""
        metadata = {
            "session_id": self.session_id,
            "checksum_sha256": sha256(self.content),
            "visit_id": "77",
            "radiology_order_id": self._order_id,
        }
        self.site.ask(
            endpoint=f"{self.line.url}/files", token=self._token, retryDelays=retry_delays_ms, metadata=metadata
        )
        self.browser.open(origin or self.site.origin)
        await eventually(lambda: self.told().get("ready", False), 20)
        self.browser.choose("input", self._file)

    async def send_half(self) -> None:
        """Send until the line is silent, and Golden Retriever has kept the file and the upload's URL."""
        self.line.hush(20_000)
        await self.send()

        def is_kept() -> bool:
            kept = self.browser.run("return window.kept()")
            return kept["sizes"] == [len(self.content)] and len(kept["urls"]) == 1 and kept["urls"][0] is not None

        await eventually(lambda: self.line.proxy is not None and self.line.proxy.cut_count == 1 and is_kept())

    def told(self) -> dict[str, Any]:
        """What the page says of itself; nothing before its script runs."""
        return dict(self.browser.run("return window.told ?? {}"))

    async def end(self) -> dict[str, Any]:
        """What the page says when Uppy is done."""
        await eventually(lambda: self.told().get("done", False), 20)
        return self.told()

    def assert_stored(self, told: dict[str, Any]) -> list[dict[str, int]]:
        """The CT is an image, byte for byte, and no byte was taken twice; gives what the server's handlers counted."""
        assert (told["successful"], told["error"]) == (1, None), told
        view = self.server.api("GET", f"/upload-sessions/{self.session_id}/").json()
        assert (view["status"], view["checksum_sha256"]) == ("SYNCED", sha256(self.content)), (view, told)
        assert self.server.api("GET", f"/images/{view['server_image_id']}/file").content == self.content
        rows = transfers(self.server, self.session_id)
        position = 0
        for row in rows:
            assert row["offset_before"] == position, (rows, told)
            position = row["offset_after"]
        assert position == sum(row["bytes_read"] for row in rows) == len(self.content), (rows, told)
        return rows

    def assert_retrieved(self, told: dict[str, Any]) -> None:
        """Golden Retriever gave the file back, and Uppy sent what the server did not have yet."""
        first, second = self.assert_stored(told)
        assert told["restored"] == [len(self.content)], told
        assert 10_000 < first["offset_after"] < 20_000, first
        assert told["requests"] == [["HEAD", None], ["PATCH", str(second["offset_before"])]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, with Uppy and the page's script in one file."""
    if not ESBUILD.exists():
        require_peer("the JavaScript clients (npm ci in tests/clients/js)")
    folder = tmp_path_factory.mktemp("site")
    asked = ("--bundle", "--format=esm", "--log-level=warning", f"--outfile={folder / 'uppy.js'}")
    subprocess.run([ESBUILD, SOURCES / "uppy.mjs", *asked], check=True, timeout=60)
    serving = Site(folder)
    yield serving
    serving.close()


@pytest.fixture(scope="module")
def laid_line(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Iterator[BadLine]:
    """A line to a server that allows the site, by its first name."""
    laid = BadLine(tmp_path_factory.mktemp("behind") / "server", http=f'cors_origins = ["{site.origin}"]\n')
    yield laid
    laid.server.stop()


@pytest.fixture(scope="module")
def token(laid_line: BadLine) -> str:
    """What an uploader of one visit is given."""
    words = ("token", "create", "--role", "uploader", "--visit", "77", "--expires", "1h")
    return laid_line.server.command(*words).stdout.strip()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    """A browser that nobody has used yet."""
    unused = Chromium(tmp_path / "browser")
    yield unused
    unused.close()


@pytest.fixture
def page(tmp_path: Path, browser: Chromium, site: Site, laid_line: BadLine, token: str, ct: bytes) -> Iterator[Page]:
    """A page that is not open yet, and the CT on the disk of whoever opens it."""
    file = tmp_path / "ct.dcm"
    file.write_bytes(ct)
    yield Page(browser, site, laid_line, token, file)
    laid_line.close()


async def test_uppy_uploads_a_ct_from_a_page_of_another_origin(page: Page) -> None:
    page.line.cut(0)
    await page.send()
    told = await page.end()
    page.assert_stored(told)
    assert told["requests"] == [["POST", None], ["PATCH", "0"]]


async def test_uppy_on_a_page_of_an_origin_that_is_not_allowed_sends_nothing(page: Page) -> None:
    page.line.cut(0)
    await page.send(page.site.other_origin, retry_delays_ms=())
    told = await page.end()
    assert told["successful"] == 0 and "network error" in told["error"], told
    assert page.server.api("GET", f"/upload-sessions/{page.session_id}/").status_code == 404
    assert page.site.other_origin in (page.server.folder / "server.log").read_text()


async def test_a_line_that_is_cut_four_times_costs_uppy_no_byte(page: Page) -> None:
    # Chromium itself sends a request again when a connection that it had used before is cut under it: half of the cuts
    # hit that second PATCH at 0, which the server refuses, and Uppy hears of the other half
    page.line.cut(4, range(4_500, 9_000))
    await page.send()
    told = await page.end()
    rows = page.assert_stored(told)
    assert page.line.proxy is not None and page.line.proxy.cut_count == 4
    assert [method for method, _ in told["requests"]].count("POST") == 1, told
    resumed = {str(row["offset_before"]) for row in rows} - {"0"}
    assert len(resumed) >= 2 and resumed <= {offset for _, offset in told["requests"]}, (rows, told)


async def test_golden_retriever_goes_on_from_the_stored_offset_after_a_reload(page: Page) -> None:
    await page.send_half()
    page.browser.reload()
    page.assert_retrieved(await page.end())


async def test_golden_retriever_goes_on_from_the_stored_offset_after_kill_9_of_the_browser(page: Page) -> None:
    await page.send_half()
    page.browser.kill()
    page.browser.open(page.site.origin)
    page.assert_retrieved(await page.end())
