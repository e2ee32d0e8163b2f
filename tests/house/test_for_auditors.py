"""Every command of docs/for-auditors.md, as it stands, says what the page says that it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import Server, create, patch, upload_url
from tests.starting import ROOT
from tests.support import require_peer

PAGE = (ROOT / "docs" / "for-auditors.md").read_text()
BLOCKS = re.findall(r"```(sh|text)\n(.*?)```", PAGE, re.DOTALL)


def matches(expected: str, told: str) -> bool:
    """Whether each expected line stands somewhere in what was told, in order; `…` is anything."""
    wanted = ["[^\\n]*".join(map(re.escape, line.split("…"))) for line in expected.splitlines()]
    return re.search("(?s:.*)".join(f"(?m:^{line}$)" for line in wanted), told) is not None


def test_what_a_command_does_not_say_is_noticed() -> None:
    assert matches("a: 0\n… c", "x\na: 0\nb\n1 c\n")
    for told in ("a: 1\n1 c", "a: 00\n1 c", "1 c\na: 0", "a: 0\nb\nc"):
        assert not matches("a: 0\n… c", told), told


def test_a_command_is_followed_by_what_it_says() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds[0] == "sh" and kinds[1:] == ["sh", "text"] * (len(kinds) // 2) and len(kinds) > 20


@pytest.mark.slow
def test_every_command_of_the_page_says_what_the_page_says(server: Server, tmp_path: Path, ct: bytes) -> None:
    require_peer("curl")
    session = create(server, ct)
    patch(server, upload_url(server, session["session_id"]), ct)
    shown = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    body = {"server_image_id": shown["server_image_id"]}
    assert server.api("POST", f"/upload-sessions/{session['session_id']}/acknowledge/", body).status_code == 200

    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in (("packhorse", f"{sys.executable} -m server"), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    (server.folder / "verify_receipt.py").write_text((ROOT / "docs" / "verify_receipt.py").read_text())
    environment = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    prepare = BLOCKS[0][1].replace("http://127.0.0.1:8080", server.url)
    for (_, command), (_, expected) in zip(BLOCKS[1::2], BLOCKS[2::2], strict=True):
        told = subprocess.run(["sh", "-c", prepare + command], cwd=server.folder, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        assert matches(expected, told.stdout), f"{command}\nsays\n{told.stdout}\nnot\n{expected}"
