"""`make evidence`: every campaign at its full count. Prints seed and counts; fails if fewer ran than asked.

SEED repeats a run; SCALE=0.1 asks for a tenth; ONLY=takeovers,fuzzed chooses by a part of the name.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.campaigns.table import CAMPAIGNS


def main() -> int:
    """Run all; 0 when every one ran as often as asked."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    scale = float(os.environ.get("SCALE") or 1.0)
    print(f"seed {seed}, scale {scale:g}", flush=True)
    short = 0
    only = [word for word in os.environ.get("ONLY", "").split(",") if word]
    for campaign, full in CAMPAIGNS.items():
        if only and not any(word in campaign.__name__ for word in only):
            continue
        asked, began = max(1, round(full * scale)), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            ran = campaign(Path(folder) / "server", seed, asked)
        print(f"{campaign.__name__}: {ran} of {asked} in {time.monotonic() - began:.0f} s", flush=True)
        short += ran < asked
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
