"""The scripts of the README do what it says, the first time and every other time."""

import re
import subprocess
from pathlib import Path

from tests.server import Server
from tests.starting import ROOT
from tests.support import require_peer


def script(server: Server) -> str:
    """The curl script, for the address of `server`."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = next(block for block in blocks if "create_session" in block)
    return str(found.replace("http://127.0.0.1:8080", server.url))


def test_the_curl_script_stores_an_image_and_says_so_when_it_is_run_again(server: Server, ct: bytes) -> None:
    require_peer("curl")
    (server.folder / "image.dcm").write_bytes(ct)

    def run() -> str:
        told = subprocess.run(
            ["sh", "-c", script(server)], cwd=server.folder, capture_output=True, text=True, timeout=60
        )
        assert told.returncode == 0 and not told.stderr, told.stderr
        assert '"safe_to_delete_local": true' in told.stdout
        assert Path(server.folder / "image.png").read_bytes().startswith(b"\x89PNG")
        return told.stdout

    assert "Packhorse-Status: SYNCED" in run()
    for _ in range(2):
        again = run()
        assert "already" in again and "Packhorse-Status" not in again
