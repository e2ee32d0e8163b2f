"""DCMTK's programs as peers: storescu with the right proposal, storescp as a sink whose log is kept."""

import re
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import free_port, require_peer

PROPOSALS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.57": "-xs",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}
"""Transfer syntax → storescu's option that proposes it."""


def storescu(port: int, path: Path, transfer_syntax_uid: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Send one file."""
    proposal = PROPOSALS.get(transfer_syntax_uid, "-x=")
    return subprocess.run(
        [
            require_peer("storescu"),
            "-d",
            "-R",
            proposal,
            *options,
            "-aec",
            "PACKHORSE",
            "127.0.0.1",
            str(port),
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"},
    )


def complaint(answer: subprocess.CompletedProcess[str]) -> str:
    """DCMTK's own words for why it did not send."""
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith(("E:", "F:", "W:"))]
    return re.sub(r"/\S*/", "", " ".join(lines))[:200]


def status_of(answer: subprocess.CompletedProcess[str]) -> int | None:
    """The DIMSE status of the one C-STORE-RSP, None when there was none."""
    found = re.findall(r"DIMSE Status\s*: 0x([0-9a-f]{4})", answer.stdout + answer.stderr)
    return int(found[-1], 16) if found else None


@dataclass
class Sink:
    """A storescp on its own port; the files it took lie in `folder`, its log in `log`."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def start(self) -> "Sink":
        """Listen, taking every transfer syntax, writing data sets as they came."""
        self.folder.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    require_peer("storescp"),
                    "-d",
                    "-pm",
                    "+xa",
                    "+B",
                    "-od",
                    str(self.folder),
                    "-aet",
                    "SINK",
                    str(self.port),
                ],
                stdout=log,
                stderr=log,
                env={"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"},
            )
        deadline = time.monotonic() + 10
        while not self._listens():  # storescp says nothing when it listens
            assert time.monotonic() < deadline, "storescp does not listen"
        return self

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)

    def received(self) -> list[str]:
        """The SOP Instance UID of every C-STORE-RQ in the message log, in order."""
        uids = re.findall(r"Affected SOP Instance UID\s*: ([0-9.]+)", self.log.read_text(errors="replace"))
        messages = re.split(r"={5,} INCOMING DIMSE MESSAGE ={5,}", self.log.read_text(errors="replace"))
        stores = [message for message in messages if re.search(r"Message Type\s*: C-STORE RQ", message)]
        found = [re.search(r"Affected SOP Instance UID\s*: ([0-9.]+)", message) for message in stores]
        assert uids or not stores
        return [match.group(1) for match in found if match]
