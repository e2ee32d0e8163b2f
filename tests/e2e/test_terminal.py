"""What a person sees who starts the server at a terminal: where it listens, the token, and a page that opens once."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.starting import ROOT


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_at_a_terminal_a_url_is_told_that_opens_once(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "packhorse.toml").write_text("[http]\nport = 0\n[dicom]\nenabled = false\n")
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--config", str(tmp_path / "packhorse.toml"), *arguments],
        cwd=ROOT,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    try:
        told = ""
        while "Open http" not in told or not told.endswith("\n"):
            told += os.read(mine, 4096).decode()
        found = re.search(r"Open (http://\S+)/login#code=(\S+)", told)
        token = (tmp_path / "data" / "admin-token").read_text().strip()
        assert found is not None and token in told
        url, code = found.groups()
        answers = [requests.post(f"{url}/api/v1/login", json={"code": code}, timeout=10) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 401]
        assert (answers[0].json()["role"], answers[0].json()["token_id"]) == ("admin", token.split("_")[1])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        os.close(mine)
