"""Campaigns of what a clinic does: cut uploads, killed servers, the same creation twice, DICOM objects twice."""

import random
import threading
import uuid
from pathlib import Path

import requests

from tests import builders
from tests.campaigns.soundness import sound
from tests.server import Server, create, patch, sha256, upload_url


def cut_uploads(folder: Path, seed: int, count: int) -> int:
    """Uploads whose body ends at a random byte; each resumes at what HEAD says and verifies. Gives how many ran."""
    dice, ran = random.Random(seed), 0
    server = Server(folder).start()
    try:
        for _ in range(count):
            content = dice.randbytes(dice.randrange(1, 300_000))
            session = create(server, content, file_name="a.bin")
            url = upload_url(server, session["session_id"])
            _send_in_pieces(server, url, content, dice, seed)
            stored = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
            assert stored["status"] == "SYNCED" and stored["checksum_sha256"] == sha256(content), seed
            ran += 1
        sound(server)
    finally:
        server.stop()
    return ran


def _send_in_pieces(server: Server, url: str, content: bytes, dice: random.Random, seed: int) -> None:
    """Cut again and again, then send the rest; HEAD may overtake a cut line whose bytes still wait in a socket."""
    offset = furthest = 0
    while furthest < len(content):
        end = dice.randrange(offset, len(content) + 1)
        _cut_patch(server, url, content[offset:end], offset, len(content) - offset)
        furthest = max(furthest, end)
        before, offset = offset, int(server.tus("HEAD", url).headers["Upload-Offset"])
        assert before <= offset <= furthest, (seed, before, offset, furthest)
    while True:
        offset = int(server.tus("HEAD", url).headers["Upload-Offset"])
        answer = patch(server, url, content[offset:], offset)
        if answer.status_code != 409:
            break
    assert answer.headers["Packhorse-Status"] == "SYNCED", (seed, answer.text)


def _cut_patch(server: Server, url: str, part: bytes, offset: int, promised: int) -> None:
    """A PATCH that promises more than it sends, then leaves."""
    import socket

    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = (
            f"PATCH {url.removeprefix(server.url)} HTTP/1.1\r\nHost: {host}\r\nTus-Resumable: 1.0.0\r\n"
            f"Authorization: Bearer {server.token}\r\nUpload-Offset: {offset}\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {promised}\r\n\r\n"
        )
        line.sendall(head.encode() + part)


def killed_servers(folder: Path, seed: int, count: int) -> int:
    """kill -9 at a random moment of a PATCH; the offset is right and the resumed file verifies."""
    dice, ran = random.Random(seed), 0
    server = Server(folder).start()
    try:
        for _ in range(count):
            content = dice.randbytes(dice.randrange(500_000, 4_000_000))
            session = create(server, content, file_name="a.bin")
            url = upload_url(server, session["session_id"])

            def send(url: str = url, content: bytes = content) -> None:
                try:
                    patch(server, url, content)
                except requests.exceptions.RequestException:
                    return  # the server was killed under it

            sender = threading.Thread(target=send)
            sender.start()
            sender.join(dice.random() * 0.05)
            server.kill()
            sender.join(10)
            server.restart()
            offset = int(server.tus("HEAD", url).headers["Upload-Offset"])
            assert 0 <= offset <= len(content), seed
            answer = patch(server, url, content[offset:], offset)
            assert answer.headers["Packhorse-Status"] == "SYNCED", (seed, answer.text)
            ran += 1
        sound(server)
    finally:
        server.stop()
    return ran


def identical_creations(folder: Path, seed: int, count: int) -> int:
    """Pairs of identical creations at once; each pair makes one row."""
    dice, ran = random.Random(seed), 0
    server = Server(folder).start()
    try:
        for _ in range(count):
            content, answers = dice.randbytes(16), []
            threads = [
                threading.Thread(
                    target=lambda content=content, answers=answers: answers.append(
                        create(server, content)["session_id"]
                    )
                )
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(answers) == 2 and len(set(answers)) == 1, seed
            ran += 1
        sound(server)
    finally:
        server.stop()
    return ran


def dicom_objects(folder: Path, seed: int, count: int) -> int:
    """DICOM objects by tus, some twice: each is one image, and a second one is its duplicate."""
    dice, ran = random.Random(seed), 0
    server = Server(folder).start()
    images = set()
    try:
        for number in range(count):
            content = builders.ct(folder / "one.dcm", rows=16, columns=16, seed=dice.randrange(2**31)).read_bytes()
            for order in (str(number), uuid.UUID(int=dice.getrandbits(128)).hex)[: 1 + (dice.random() < 0.3)]:
                session = create(server, content, radiology_order_id=order)
                answer = patch(server, upload_url(server, session["session_id"]), content)
                assert answer.headers["Packhorse-Status"] == "SYNCED", (seed, answer.text)
                images.add(server.api("GET", f"/upload-sessions/{session['session_id']}/").json()["server_image_id"])
            ran += 1
        assert len(images) == count
        sound(server)
    finally:
        server.stop()
    return ran
