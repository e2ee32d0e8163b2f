"""Campaigns of bad lines: breaks by FIN, RST and silence, takeovers, races for one offset, kills under load."""

import random
import socket
import statistics
import struct
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import requests

from tests.campaigns.soundness import sound
from tests.server import Server, patch, sha256, upload_metadata

OFFSET_TYPE = "application/offset+octet-stream"


def begin(server: Server, content: bytes, **metadata: str) -> str:
    """The URL of a fresh upload of `content`, its checksum declared."""
    told = {"filename": "a.bin", "checksum_sha256": sha256(content), "radiology_order_id": uuid.uuid4().hex, **metadata}
    answer = server.tus("POST", "/files", Upload_Length=str(len(content)), Upload_Metadata=upload_metadata(**told))
    assert answer.status_code == 201, answer.text
    return str(answer.headers["Location"])


def open_patch(server: Server, url: str, offset: int, promised: int) -> socket.socket:
    """A connection on which the header of a PATCH was sent."""
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=30)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = (
        f"PATCH {url.removeprefix(server.url)} HTTP/1.1\r\nHost: {host}\r\nTus-Resumable: 1.0.0\r\n"
        f"Authorization: Bearer {server.token}\r\nUpload-Offset: {offset}\r\n"
        f"Content-Type: {OFFSET_TYPE}\r\nContent-Length: {promised}\r\n\r\n"
    )
    line.sendall(head.encode())
    return line


def offset_of(server: Server, url: str) -> int:
    """What HEAD says."""
    return int(server.tus("HEAD", url).headers["Upload-Offset"])


def finish(server: Server, url: str, content: bytes, seed: int) -> None:
    """Send what is missing and see the whole stored."""
    while True:
        offset = offset_of(server, url)
        answer = patch(server, url, content[offset:], offset)
        if answer.status_code not in (409, 503):
            break
    assert answer.headers.get("Packhorse-Status") == "SYNCED", (seed, answer.status_code, answer.text)
    assert server.tus("GET", url).content == content, seed


def broken_lines(folder: Path, seed: int, count: int) -> int:
    """Bodies that end at a random byte by FIN, RST or silence: the offset is exact, the content right at the end."""
    dice, ran, silent = random.Random(seed), 0, []
    server = Server(folder).start()
    try:
        for _ in range(count):
            # short bodies go through the loop, long ones past it
            content = dice.randbytes(dice.choice([dice.randrange(1, 200_000), dice.randrange(1_000_000, 3_000_000)]))
            url, end, how = begin(server, content), dice.randrange(len(content)), dice.choice(["fin", "rst", "silent"])
            line = open_patch(server, url, 0, len(content))
            line.sendall(content[:end])
            if how == "fin":
                line.close()
            elif how == "rst":
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line.close()
            else:
                silent.append(line)
            deadline = time.monotonic() + 10
            before = -1
            while (offset := offset_of(server, url)) < end and how != "rst":
                assert before <= offset and time.monotonic() < deadline, (seed, how, offset, end)
                before = offset
            assert offset <= end, (seed, how)
            finish(server, url, content, seed)
            ran += 1
        sound(server)
    finally:
        server.stop()
        for line in silent:
            line.close()
    return ran


def takeovers(folder: Path, seed: int, count: int) -> int:
    """HEAD, then PATCH, while another connection still holds the upload: never 423, the worst within a second."""
    dice, ran, waits = random.Random(seed), 0, []
    server = Server(folder, arguments=("--workers", "2")).start()
    session = requests.Session()
    session.headers.update({**server.auth, "Tus-Resumable": "1.0.0"})
    try:
        for _ in range(count):
            content = dice.randbytes(dice.choice([50_000, 2_000_000]))
            url, sent = begin(server, content), dice.randrange(len(content))
            with open_patch(server, url, 0, len(content)) as line:
                line.sendall(content[:sent])
                began = time.monotonic()
                head = session.head(url, timeout=10)
                waits.append(time.monotonic() - began)
                assert head.status_code == 200, (seed, head.status_code)
                finish(server, url, content, seed)
            ran += 1
        print(f"takeovers: median {statistics.median(waits):.3f} s, worst {max(waits):.3f} s", flush=True)
        assert max(waits) <= 1.0, seed
        sound(server)
    finally:
        session.close()
        server.stop()
    return ran


def racing_patches(folder: Path, seed: int, count: int) -> int:
    """PATCHes of different content at one offset: what is stored is one writer's from there on, never mixed."""
    dice, ran = random.Random(seed), 0
    server = Server(folder, arguments=("--workers", "2")).start()
    try:
        for _ in range(count):
            size, writers = dice.choice([1000, 100_000, 1_500_000]), dice.randrange(2, 5)
            versions = [bytes([number]) * size for number in range(writers)]
            told = upload_metadata(filename="a.bin")
            url = server.tus("POST", "/files", Upload_Length=str(size), Upload_Metadata=told).headers["Location"]
            answers = _at_once([partial(patch, server, url, body) for body in versions])
            assert all(one is None or one.status_code in (204, 409, 503) for one in answers), (seed, answers)
            offset = offset_of(server, url)
            while offset < size:  # those that lost took the holder's place and then found another offset
                body = versions[_writer(server, url, offset)]
                patch(server, url, body[offset:], offset)
                offset = offset_of(server, url)
            stored = server.tus("GET", url)
            assert stored.status_code == 200, (seed, stored.status_code, stored.text)
            assert stored.content in versions, (seed, ran, sorted(set(stored.content)))
            ran += 1
        sound(server)
    finally:
        server.stop()
    return ran


def _writer(server: Server, url: str, offset: int) -> int:
    """Whose bytes are staged: all of them are one writer's."""
    if offset == 0:
        return 0
    staged = server.folder / "data" / "blobs" / "staging" / "site-default" / url.rsplit("/", 1)[1]
    seen = set(staged.read_bytes()[:offset])
    assert len(seen) == 1, seen
    return int(seen.pop())


def _at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    answers: list[Any] = [None] * len(calls)

    def run(number: int, call: Callable[[], Any]) -> None:
        try:
            answers[number] = call()
        except requests.exceptions.RequestException:
            return  # its connection was closed when another took the upload over

    threads = [threading.Thread(target=run, args=(number, call)) for number, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def kills_under_load(folder: Path, seed: int, count: int) -> int:
    """kill -9 under eight uploads: nothing below an offset that was ever told is lost, and it is back in 3 s."""
    dice, ran, waits = random.Random(seed), 0, []
    server = Server(folder).start()
    try:
        for _ in range(count):
            contents = [dice.randbytes(dice.randrange(500_000, 3_000_000)) for _ in range(8)]
            urls = [begin(server, content) for content in contents]
            told = [0] * 8

            def send(
                number: int, urls: list[str] = urls, contents: list[bytes] = contents, told: list[int] = told
            ) -> None:
                size = 200_000
                try:
                    for start in range(0, len(contents[number]), size):
                        answer = patch(server, urls[number], contents[number][start : start + size], start)
                        if answer.status_code != 204:
                            return
                        told[number] = int(answer.headers["Upload-Offset"])
                except requests.exceptions.RequestException:
                    return  # the server was killed under it

            threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            threads[0].join(dice.random() * 0.3)
            server.kill()
            for thread in threads:
                thread.join()
            began = time.monotonic()
            server.restart()
            waits.append(time.monotonic() - began)
            for number, url in enumerate(urls):
                offset = offset_of(server, url)
                assert offset >= told[number], (seed, number, offset, told[number])
                finish(server, url, contents[number], seed)
            ran += 1
        print(f"ready again: median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s", flush=True)
        assert statistics.median(waits) <= 3.0, seed
        sound(server)
    finally:
        server.stop()
    return ran
