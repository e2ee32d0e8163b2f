"""A random walk over many sessions at once, by real requests: the server never leaves a model of the contract.

The model knows of each session its status, its bytes, its retries, whether its URL lives and which devices may delete.
Steps are creations (also of the same again), metadata, bytes at right and wrong offsets, cut lines, retries, cancels,
failures told, acknowledgements of three devices, looks; and, rarely, kill -9 of the server with a line still open.
"""

import http.client
import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaigns.soundness import sound
from tests.server import Server, sha256

SESSIONS = 12
"""At once."""
STEPS_PER_SESSION = 60
STEPS_PER_KILL = 2500
DEVICES = ("tablet-1", "tablet-2", "desk-1")
OFFSET_TYPE = "application/offset+octet-stream"
MAX_RETRIES = 2
STORED, ACTIVE = ("SYNCED", "ACK_RECEIVED"), ("QUEUED", "METADATA_UPLOADED", "BINARY_UPLOADING")
GONE_CODES = ("CLIENT_ABORTED", "LOCAL_FILE_CHANGED")


@dataclass
class Modelled:
    """One session as it should be."""

    content: bytes
    session_id: str = ""
    order: str = ""
    status: str = "QUEUED"
    metadata: bool = False
    path: str = ""
    held: int = 0
    retries: int = 0
    error_code: str | None = None
    image: int | None = None
    acked: set[str] = field(default_factory=set)
    steps: int = 0

    @property
    def retryable(self) -> bool:
        """Whether retry/ is allowed."""
        return self.status == "FAILED" and self.error_code not in GONE_CODES and self.retries < MAX_RETRIES


class Walk:
    """The server, its model, and the steps between them. A step that finds a difference raises AssertionError."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.dice = random.Random(seed)
        self.models: list[Modelled] = []
        self.line: http.client.HTTPConnection | None = None
        self.done: dict[str, int] = {}
        self.furthest = 0
        """The most devices that may delete one session's copy."""

    # --- speaking ---

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on the line that is kept open."""
        if self.line is None:
            host, port = self.server.url.removeprefix("http://").split(":")
            self.line = http.client.HTTPConnection(host, int(port), timeout=30)
        words = {name.replace("_", "-"): value for name, value in headers.items()}
        self.line.request(method, path, body, {**self.server.auth, **words})
        answer = self.line.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def hang_up(self) -> None:
        """The line that was kept open ends."""
        if self.line is not None:
            self.line.close()
        self.line = None

    def call(self, one: Modelled, name: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """One of the session calls."""
        path = f"/api/v1/upload-sessions/{one.session_id}/{name}/"
        status, _, content = self.ask("POST", path, json.dumps(body or {}).encode())
        return status, json.loads(content)

    def agree(self, is_so: bool, one: Modelled, what: object) -> None:
        """Or the walk ends here, telling where."""
        assert is_so, f"seed {self.seed}, step {sum(self.done.values())}: {what}, the model: {one}"

    # --- steps ---

    def create(self, one: Modelled | None = None) -> None:
        """A new session, or the same creation again: with its id, or without, which the dedup must find."""
        again = one is not None
        if one is None:
            one = Modelled(self.dice.randbytes(self.dice.randrange(1, 5000)), order=f"o{self.dice.getrandbits(60)}")
        body = {"file_name": "a.bin", "file_size": len(one.content), "checksum_sha256": sha256(one.content),
                "radiology_order_id": one.order, "max_retries": MAX_RETRIES}
        if again and self.dice.random() < 0.5:
            body["session_id"] = one.session_id
        status, _, content = self.ask("POST", "/api/v1/upload-sessions/create_session/", json.dumps(body).encode())
        told = json.loads(content)
        if not again:
            self.agree(status == 201, one, told)
            one.session_id = told["session_id"]
            self.models.append(one)
        elif "session_id" in body or one.status != "FAILED" or one.retryable:
            self.agree(status == 200 and told["session_id"] == one.session_id, one, told)
        else:  # it failed for good: another takes its place
            self.agree(status == 201 and told["supersedes"] == one.session_id, one, told)
            self.models[self.models.index(one)] = Modelled(one.content, told["session_id"], one.order)

    def create_again(self, one: Modelled) -> None:
        """See `create`."""
        self.create(one)

    def metadata(self, one: Modelled) -> None:
        """Metadata first; a second time the same is no change, other ones are refused."""
        other = one.metadata and self.dice.random() < 0.3
        status, told = self.call(one, "upload_metadata", {"metadata": {"view": "AP" if other else "PA"}})
        if other:
            self.agree(status == 409 and told["code"] == "metadata_immutable", one, told)
        elif one.status == "FAILED":
            self.agree(status == 409, one, told)
        else:
            self.agree(status == 200, one, told)
            one.metadata = True
            if one.status == "QUEUED":
                one.status = "METADATA_UPLOADED"

    def hand_out(self, one: Modelled) -> None:
        """upload_binary/: the URL to send to, the same one until it is gone."""
        status, told = self.call(one, "upload_binary")
        if one.status == "FAILED" or not one.metadata:
            self.agree(status == 409, one, told)
            return
        path = told["upload_url"].removeprefix(self.server.url) if status == 200 else ""
        self.agree(status == 200 and told["upload_offset"] == one.held and one.path in ("", path), one, told)
        if one.status not in STORED:
            one.status, one.path = "BINARY_UPLOADING", path

    def send(self, one: Modelled) -> None:
        """A PATCH, at times at a wrong offset."""
        if not one.path:
            return
        shift = self.dice.choice([0, 0, 0, 0, -1, 1])
        offset = max(0, one.held + shift)
        part = one.content[offset : offset + self.dice.choice([0, 1, 700, 5000, 5000])]
        status, headers, content = self.ask("PATCH", one.path, part, Tus_Resumable="1.0.0", Upload_Offset=str(offset),
                                            Content_Type=OFFSET_TYPE)
        if one.status == "FAILED":
            self.agree(status == 410, one, (status, content))
        elif offset != one.held:
            self.agree(status == 409, one, (status, content))
        else:
            self.agree(status == 204 and headers["upload-offset"] == str(offset + len(part)), one, (status, content))
            self.took(one, len(part))

    def took(self, one: Modelled, count: int) -> None:
        """The server has so many bytes more."""
        one.held += count
        if one.status in ("QUEUED", "METADATA_UPLOADED"):
            one.status = "BINARY_UPLOADING"
        if one.held == len(one.content):
            one.status = "SYNCED" if one.status not in STORED else one.status

    def open_line(self, one: Modelled) -> tuple[socket.socket, int]:
        """A PATCH that promises the rest and sends a part of it; the last byte is never sent."""
        host, port = self.server.url.removeprefix("http://").split(":")
        line = socket.create_connection((host, int(port)), timeout=30)
        rest = one.content[one.held :]
        count = self.dice.randrange(len(rest))
        head = (f"PATCH {one.path} HTTP/1.1\r\nHost: {host}\r\nTus-Resumable: 1.0.0\r\n"
                f"Authorization: Bearer {self.server.token}\r\nUpload-Offset: {one.held}\r\n"
                f"Content-Type: {OFFSET_TYPE}\r\nContent-Length: {len(rest)}\r\n\r\n")
        line.sendall(head.encode() + rest[:count])
        return line, count

    def cut(self, one: Modelled) -> None:
        """A line that ends in the middle: every byte that was sent is kept."""
        if not one.path or one.status != "BINARY_UPLOADING" or one.held == len(one.content):
            return
        line, count = self.open_line(one)
        line.close()
        self.settle(one, one.held + count, exactly=True)

    def settle(self, one: Modelled, most: int, *, exactly: bool) -> None:
        """What was sent on a line that is gone arrives within a moment; the offset never goes back."""
        least, deadline = one.held, time.monotonic() + 10
        while True:
            status, headers, content = self.ask("HEAD", one.path, Tus_Resumable="1.0.0")
            self.agree(status == 200, one, (status, content))
            offset = int(headers["upload-offset"])
            self.agree(least <= offset <= most, one, (least, offset, most))
            least = offset
            if offset == most or not exactly:
                break
            self.agree(time.monotonic() < deadline, one, f"{offset} of {most} bytes arrived")
        one.held = least

    def retry(self, one: Modelled) -> None:
        """FAILED → QUEUED, while retries are left."""
        status, told = self.call(one, "retry")
        if not one.retryable:
            self.agree(status == 409, one, told)
            return
        self.agree(status == 200 and told["resume"]["upload_offset"] == one.held, one, told)
        one.status, one.error_code, one.retries = "QUEUED", None, one.retries + 1

    def cancel(self, one: Modelled) -> None:
        """Rarely, or the walk would be short."""
        if self.dice.random() < 0.7:
            return
        self.fail(one, "cancel", {"reason": "wrong file"}, "CLIENT_ABORTED")

    def report_failure(self, one: Modelled) -> None:
        """The client tells what broke on its side."""
        code = self.dice.choice(["LOCAL_READ_ERROR", "LOCAL_READ_ERROR", "LOCAL_FILE_MISSING", "LOCAL_FILE_CHANGED"])
        self.fail(one, "report_failure", {"error_code": code}, code)

    def fail(self, one: Modelled, name: str, body: dict[str, Any], code: str) -> None:
        """A failure ends what is active, and nothing else."""
        status, told = self.call(one, name, body)
        if one.status not in ACTIVE:
            self.agree(status == 409, one, told)
            return
        self.agree(status == 200 and told["error_code"] == code, one, told)
        one.status, one.error_code = "FAILED", code
        if code in GONE_CODES and one.path:
            gone, _, content = self.ask("HEAD", one.path, Tus_Resumable="1.0.0")
            self.agree(gone == 410, one, (gone, content))

    def acknowledge(self, one: Modelled) -> None:
        """One of three devices asks whether it may delete; at times with what is not the image or the checksum."""
        device = self.dice.choice(DEVICES)
        body: dict[str, Any] = {"server_image_id": one.image or 1, "device_id": device}
        if one.status in STORED and one.image is None:
            self.look(one)
            body["server_image_id"] = one.image
        wrong = self.dice.random()
        if wrong < 0.1:
            body["server_image_id"] = 10**9
        elif wrong < 0.2:
            body["checksum_sha256"] = "0" * 64
        status, told = self.call(one, "acknowledge", body)
        if one.status not in STORED or wrong < 0.2:
            self.agree(status == 409 and not told.get("safe_to_delete_local"), one, told)
            return
        self.agree(status == 200 and told["safe_to_delete_local"] is True, one, told)
        self.agree(told["replayed"] is (device in one.acked) and bool(told["receipt"]), one, told)
        one.status = "ACK_RECEIVED"
        one.acked.add(device)
        self.furthest = max(self.furthest, len(one.acked))

    def look(self, one: Modelled) -> None:
        """The session as one of the devices is shown it: all of it is as the model says."""
        device = self.dice.choice(DEVICES)
        status, _, content = self.ask("GET", f"/api/v1/upload-sessions/{one.session_id}/?device_id={device}")
        told = json.loads(content)
        self.agree(status == 200 and told["status"] == one.status, one, told)
        self.agree(told["retry_count"] == one.retries and told["error_code"] == one.error_code, one, told)
        self.agree(told["safe_to_delete_local"] is (device in one.acked), one, told)
        if one.status == "BINARY_UPLOADING" or one.status in STORED:
            self.agree(told["bytes_received"] == one.held, one, told)
        if one.status in STORED:
            self.agree(one.image in (None, told["server_image_id"]) and told["server_image_id"] is not None, one, told)
            self.agree(told["checksum_sha256"] == sha256(one.content), one, told)
            one.image = told["server_image_id"]
            path = f"/api/v1/images/{one.image}/file/"
            self.agree(self.ask("GET", path)[2] == one.content, one, "the bytes differ")

    def crash(self) -> None:
        """kill -9, a line still open; after the restart every session is as the model says, byte for byte."""
        sending = [one for one in self.models if one.status == "BINARY_UPLOADING" and one.path
                   and one.held < len(one.content)]
        one = self.dice.choice(sending) if sending else None
        line, count = self.open_line(one) if one else (None, 0)
        self.server.kill()
        if line is not None:
            line.close()
        self.hang_up()
        self.server.restart()
        if one is not None:
            self.settle(one, one.held + count, exactly=False)
        for known in self.models:
            self.look(known)

    # --- walking ---

    def step(self) -> None:
        """One step of one session, the likely ones more often."""
        if len(self.models) < SESSIONS:
            return self.count("create", self.create)
        one = self.dice.choice(self.models)
        one.steps += 1
        steps: list[tuple[Callable[[Modelled], None], int]] = [
            (self.metadata, 3), (self.hand_out, 3), (self.send, 8), (self.cut, 2), (self.retry, 3), (self.cancel, 1),
            (self.report_failure, 1), (self.acknowledge, 8 if one.status in STORED else 2), (self.look, 3),
            (self.create_again, 2)]
        chosen = self.dice.choices([step for step, _ in steps], [weight for _, weight in steps])[0]
        self.count(chosen.__name__, lambda: chosen(one))
        if one.steps > STEPS_PER_SESSION and one in self.models:  # it has seen enough: a new one takes its place
            self.look(one)
            self.models.remove(one)

    def count(self, name: str, step: Callable[[], None]) -> None:
        """Take a step, and note that it was taken."""
        step()
        self.done[name] = self.done.get(name, 0) + 1


def random_walk(folder: Path, seed: int, count: int) -> int:
    """Random steps over many sessions, with rare kills of the server: it agrees with the model at each."""
    limits = "[uploads]\nmax_open_per_principal = 1000000\n"
    walk = Walk(Server(folder, extra=limits).start(), seed)
    kills = 0
    try:
        while sum(walk.done.values()) < count:
            walk.step()
            if sum(walk.done.values()) > (kills + 0.5) * min(STEPS_PER_KILL, count / 2):
                kills += 1
                walk.count("crash", walk.crash)
        for one in walk.models:
            walk.look(one)
        print(f"random_walk: {', '.join(f'{name} {times}' for name, times in sorted(walk.done.items()))}", flush=True)
        wanted = min(len(DEVICES), 1 + count // 1000)  # a short walk seldom sees a third device
        assert walk.furthest >= wanted, f"seed {seed}: {walk.furthest} devices may delete one copy: it means little"
        sound(walk.server)
    finally:
        walk.hang_up()
        walk.server.stop()
    return sum(walk.done.values())
