"""A real server process on free ports in a temporary folder, and small real clients of it."""

import base64
import hashlib
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import requests

from tests import starting


@dataclass
class Server:
    """One `packhorse serve`; the folder outlives the process, so it can be killed and started again."""

    folder: Path
    extra: str = ""
    arguments: tuple[str, ...] = ()
    http: str = ""
    process: starting.Process | None = None
    url: str = ""
    dicom_port: int = 0
    token: str = ""
    _stdout: TextIO | None = None

    def start(self, http_port: int = 0, dicom_port: int = 0) -> "Server":
        """Start, and wait until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "packhorse.toml"
        config.write_text(f"[http]\nport = {http_port}\n{self.http}[dicom]\nport = {dicom_port}\n{self.extra}")
        reading, writing = os.pipe()
        with (self.folder / "server.log").open("a") as log:
            words = ("serve", "--config", str(config), *self.arguments)
            self.process = starting.start(words, self.folder, dict(os.environ), writing, log.fileno())
        os.close(writing)
        self._stdout = os.fdopen(reading)
        for line in self._stdout:
            if line.startswith("Packhorse listens on "):
                self.url = line.split()[3]
            if line.startswith("DICOM: "):
                self.dicom_port = int(line.rsplit(":", 1)[1])
            if line.startswith("The admin token"):
                break
        else:
            self._end()
            raise AssertionError((self.folder / "server.log").read_text())
        self.token = (self.folder / "data" / "admin-token").read_text().strip()
        deadline = time.monotonic() + 10
        while requests.get(f"{self.url}/readyz", timeout=5).status_code != 200:
            assert time.monotonic() < deadline, "not ready"
        return self

    def restart(self) -> "Server":
        """Start again on the same ports, as an operator would."""
        return self.start(int(self.url.rsplit(":", 1)[1]), self.dicom_port)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self._end()

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        assert self.process is not None
        status = self.process.wait(timeout=30)
        if self._stdout is not None:
            self._stdout.close()
        return status

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A `packhorse` command on the same folder."""
        return _ended(self.folder, (*words, "--config", str(self.folder / "packhorse.toml")), dict(os.environ))

    def rss_bytes(self) -> int:
        """Resident memory of the server process itself."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    @property
    def auth(self) -> dict[str, str]:
        """The admin's Authorization header."""
        return {"Authorization": f"Bearer {self.token}"}

    def api(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Any:
        """One call under /api/v1; gives the response."""
        authorization = {"Authorization": f"Bearer {token}"} if token else self.auth
        return requests.request(
            method,
            f"{self.url}/api/v1{path}",
            json=body,
            timeout=30,
            headers={**authorization, **{name.replace("_", "-"): value for name, value in headers.items()}},
        )

    def tus(self, method: str, url: str, body: Any = None, *, token: str | None = None, **headers: str) -> Any:
        """One tus request; `url` is absolute or a path."""
        authorization = {"Authorization": f"Bearer {token}"} if token else self.auth
        words = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.request(
            method,
            url if url.startswith("http") else f"{self.url}{url}",
            data=body,
            timeout=60,
            headers={"Tus-Resumable": "1.0.0", **authorization, **words},
        )


def packhorse(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A `packhorse` command in `folder`, as a person types it there."""
    return _ended(folder, words, {"PATH": "/usr/bin:/bin", **environment})


def _ended(folder: Path, words: tuple[str, ...], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command when it is done, and what it said."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = starting.start(words, folder, environment, stdout.fileno(), stderr.fileno())
        try:
            status = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(words, status, stdout.read(), stderr.read())


def upload_metadata(**pairs: str | bytes) -> str:
    """An Upload-Metadata header."""
    return ",".join(
        f"{key} {base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()}"
        for key, value in pairs.items()
    )


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def create(server: Server, content: bytes, **fields: Any) -> dict[str, Any]:
    """A session of `content` under order 123 of visit 77."""
    body = {
        "file_name": "image.dcm",
        "file_size": len(content),
        "checksum_sha256": sha256(content),
        "radiology_order_id": 123,
        **fields,
    }
    answer = server.api("POST", "/visits/77/radiology/upload-sessions/create_session/", body)
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


def upload_url(server: Server, session_id: str) -> str:
    """Confirm the metadata and ask for the upload's URL."""
    root = f"/upload-sessions/{session_id}"
    assert server.api("POST", f"{root}/upload_metadata/", {"metadata": {"view": "PA"}}).status_code == 200
    answer = server.api("POST", f"{root}/upload_binary/", {"resume_from": 0, "chunk_size": 1048576})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["upload_url"])


def patch(server: Server, url: str, content: bytes, offset: int = 0, **headers: str) -> Any:
    """One PATCH."""
    return server.tus(
        "PATCH", url, content, Upload_Offset=str(offset), Content_Type="application/offset+octet-stream", **headers
    )
