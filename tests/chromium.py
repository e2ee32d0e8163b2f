"""Chromium as a peer: a real headless browser with a profile of its own, driven over W3C WebDriver. Knows no page.

Facts: the driver and all that it starts are one process group. Chromium puts a UNIX socket under TMPDIR, whose path may
not be longer than 107 characters, so that one folder is not among pytest's. HOME is the test's: nothing is left behind.
"""

import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from tests.support import require_peer

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id (WebDriver §12)."""


class Chromium:
    """One browser at a time; the profile in `folder` outlives it, so it can be killed and opened again."""

    def __init__(self, folder: Path) -> None:
        self._binary, self._program = require_peer("chromium"), require_peer("chromedriver")
        self._profile, self._home = folder / "profile", folder / "home"
        self._home.mkdir(parents=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="chromium-")
        self._driver: subprocess.Popen[str] | None = None
        self._session = ""

    def open(self, url: str) -> None:
        """Start the browser on its profile, and load the page."""
        options = {"binary": self._binary, "args": [*ARGUMENTS, f"--user-data-dir={self._profile}"]}
        asked = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        driver = f"http://127.0.0.1:{self._start_driver()}"
        self._session = f"{driver}/session/{self._call('POST', f'{driver}/session', asked)['sessionId']}"
        self._call("POST", f"{self._session}/url", {"url": url})

    def reload(self) -> None:
        """What F5 does."""
        self._call("POST", f"{self._session}/refresh", {})

    def choose(self, selector: str, file: Path) -> None:
        """Put a file of the disk into an `<input type=file>`, as a person does."""
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._call("POST", f"{self._session}/element/{found[ELEMENT]}/value", {"text": str(file)})

    def run(self, script: str) -> Any:
        """What the body of a function gives in the page; a promise is awaited."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def kill(self) -> None:
        """kill -9 of the browser in all its processes; its profile stays as it is."""
        if self._driver is None:
            return
        os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait(timeout=10)
        assert self._driver.stdout is not None
        self._driver.stdout.close()
        self._driver, self._session = None, ""

    def close(self) -> None:
        """End the browser as a person does, then what is left of it."""
        if self._session:
            with suppress(requests.RequestException):
                requests.delete(self._session, timeout=10)
        self.kill()
        self._temporary.cleanup()

    def _start_driver(self) -> int:
        self._driver = subprocess.Popen(
            [self._program, "--port=0"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(self._home), "TMPDIR": self._temporary.name},
            start_new_session=True,
        )
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                return int(line.strip().rstrip(".").rsplit(" ", 1)[1])
        raise AssertionError("chromedriver does not start")

    def _call(self, method: str, url: str, body: Any) -> Any:
        answer = requests.request(method, url, json=body, timeout=60)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value
