"""Runs docs/verify_receipt.py as a stranger does: in a process that has joserfc, and nothing of ours."""

import json
import subprocess
import sys
from pathlib import Path

import joserfc

from tests.server import Server
from tests.starting import ROOT

VERIFIER = ROOT / "docs" / "verify_receipt.py"
ALONE = """
import importlib.util, runpy, sys
sys.path.append(sys.argv.pop(1))
for name in ("server", "storage", "tests", "packhorse_edge"):
    assert importlib.util.find_spec(name) is None, name
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def verify_alone(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """The verifier with these words. -I and -S keep out the working folder, and what is installed as editable."""
    site_packages = Path(joserfc.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, str(site_packages), str(VERIFIER), *words],
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
    )


def keys_file(server: Server, path: Path) -> str:
    """The server's public keys, fetched as a stranger does."""
    import requests

    path.write_text(json.dumps(requests.get(f"{server.url}/.well-known/jwks.json", timeout=10).json()))
    return str(path)
