"""docs/emr-integration.md as it stands: its back end as a process, its pages built as it says, in Chromium."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.chromium import Chromium
from tests.server import Server, sha256
from tests.starting import ROOT
from tests.support import eventually, free_port, require_peer
from tests.tus.speaking_tus import transfers

MODULES = ROOT / "tests" / "clients" / "js" / "node_modules"
PAGE = (ROOT / "docs" / "emr-integration.md").read_text()
BUTTON = ".uppy-StatusBar-actionBtn--upload"
pytestmark = pytest.mark.peers


class Emr:
    """The files of the page in a folder, and its back end, which knows one operator token."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.origin = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def build(self) -> None:
        """Write down what the page shows, and run the command under "Building it"."""
        for name, text in re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE, re.DOTALL):
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text)
        (self._folder / "node_modules").symlink_to(MODULES)
        found = re.search(r"^npx esbuild (.*)$", PAGE, re.MULTILINE)
        assert found is not None
        asked = [MODULES / ".bin" / "esbuild", *found[1].split(), "--log-level=warning"]
        subprocess.run(asked, cwd=self._folder, check=True, timeout=60)

    def start(self, server: Server, operator: str) -> None:
        """Start the back end."""
        told = {"PACKHORSE": server.url, "PACKHORSE_TOKEN": operator, "PORT": str(self._port)}
        with (self._folder / "emr.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "emr.py"], cwd=self._folder, env={**os.environ, **told}, stdout=log, stderr=log
            )

    def listens(self) -> bool:
        """Whether the back end answers."""
        try:
            return requests.get(f"{self.origin}/index.html", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        """End the back end."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)


@pytest.fixture
def emr(tmp_path: Path) -> Iterator[Emr]:
    """The EMR, built and not started yet."""
    if not (MODULES / ".bin" / "esbuild").exists():
        require_peer("the JavaScript clients (npm ci in tests/clients/js)")
    found = Emr(tmp_path, free_port())
    found.build()
    yield found
    found.stop()


@pytest.fixture
def server(tmp_path: Path, emr: Emr) -> Iterator[Server]:
    """A server that lets the EMR's page in."""
    running = Server(tmp_path / "server", http=f'cors_origins = ["{emr.origin}"]\n').start()
    yield running
    running.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    """A browser."""
    unused = Chromium(tmp_path / "browser")
    yield unused
    unused.close()


@pytest.fixture
async def opened(server: Server, emr: Emr) -> Emr:
    """The EMR, which listens."""
    emr.start(server, server.command("token", "create", "--role", "operator").stdout.strip())
    await eventually(emr.listens, 20)
    return emr


def told(browser: Chromium) -> str:
    """What the page tells its reader below the Dashboard."""
    return str(browser.run("return document.querySelector('#told')?.innerText ?? ''"))


async def choose_and_send(browser: Chromium, file: Path) -> None:
    """Put a file into the Dashboard and press its button, as a person does: again, while it is still there."""

    def is_there(selector: str) -> bool:
        return bool(browser.run(f"return document.querySelector('{selector}') !== null"))

    def is_pressed() -> bool:
        browser.run(f"document.querySelector('{BUTTON}')?.click()")
        return not is_there(BUTTON)

    await eventually(lambda: is_there(".uppy-Dashboard-input"), 20)
    browser.choose(".uppy-Dashboard-input", file)
    await eventually(lambda: is_there(BUTTON), 20)
    await eventually(is_pressed, 20)


async def test_the_page_with_sessions_ends_in_safe_to_delete(
    browser: Chromium, server: Server, opened: Emr, tmp_path: Path, ct: bytes
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(ct)
    browser.open(f"{opened.origin}/index.html")
    await choose_and_send(browser, file)
    await eventually(lambda: "safe to delete" in told(browser), 30)

    (session,) = server.api("GET", "/visits/77/radiology/upload-sessions/").json()["results"]
    assert (session["status"], session["created_by_id"]) == ("ACK_RECEIVED", "u7"), session
    assert session["checksum_sha256"] == sha256(ct) and session["checksum_source"] == "client"
    assert server.api("GET", f"/images/{session['server_image_id']}/file").content == ct
    assert server.api("GET", "/orders/123/status/").json()["state"] == "there"


async def test_a_file_that_is_there_is_sent_no_second_time_from_another_browser(
    server: Server, opened: Emr, tmp_path: Path, ct: bytes
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(ct)
    for folder in ("one", "another"):
        browser = Chromium(tmp_path / folder)
        try:
            browser.open(f"{opened.origin}/index.html")
            await choose_and_send(browser, file)
            await eventually(lambda: "safe to delete" in told(browser), 30)  # noqa: B023 - it is called at once
        finally:
            browser.close()

    (session,) = server.api("GET", "/visits/77/radiology/upload-sessions/").json()["results"]
    assert sum(row["bytes_read"] for row in transfers(server, session["session_id"])) == len(ct)


async def test_the_page_with_sessions_says_what_is_wrong_with_a_file_that_is_refused(
    browser: Chromium, opened: Emr, tmp_path: Path, ct: bytes
) -> None:
    file = tmp_path / "cut.dcm"
    file.write_bytes(ct[:5000])
    browser.open(f"{opened.origin}/index.html")
    await choose_and_send(browser, file)
    await eventually(lambda: "passes the end of the file" in told(browser), 30)
    assert told(browser).startswith("cut.dcm: keep your copy")


async def test_the_page_without_sessions_sends_into_the_order(
    browser: Chromium, server: Server, opened: Emr, tmp_path: Path, ct: bytes
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(ct)
    browser.open(f"{opened.origin}/short.html")
    await choose_and_send(browser, file)
    await eventually(lambda: told(browser) == "SYNCED", 30)

    (image,) = server.api("GET", "/orders/123/images/").json()["results"]
    assert server.api("GET", f"/images/{image['id']}/file").content == ct
