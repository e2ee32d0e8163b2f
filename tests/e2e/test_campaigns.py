"""A hundredth of every campaign of `make evidence`, and the demo, as a newcomer runs it."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns.table import CAMPAIGNS
from tests.starting import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=[one.__name__ for one in CAMPAIGNS])
def test_a_hundredth_of_a_campaign(campaign: Callable[[Path, int, int], int], tmp_path: Path) -> None:
    seed, asked = random.randrange(2**32), max(1, CAMPAIGNS[campaign] // 100)
    print(f"seed {seed}")
    assert campaign(tmp_path / "server", seed, asked) == asked


@pytest.mark.peers
def test_the_demo_ends_well() -> None:
    told = subprocess.run([sys.executable, "-m", "tests.demo"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stdout + told.stderr
    for words in ("the line is cut", "SYNCED", "dataset digest equal, decoded pixels equal", "= True"):
        assert words in told.stdout
    assert (ROOT / "demo-out" / "ct.png").read_bytes().startswith(b"\x89PNG")
