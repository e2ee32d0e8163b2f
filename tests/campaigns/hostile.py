"""Campaigns of hostile input: fuzzed requests, names that want out, connections that never say what they want."""

import random
import socket
import statistics
import time
from contextlib import suppress
from pathlib import Path

from tests.campaigns.lines import begin, open_patch
from tests.campaigns.soundness import sound
from tests.server import Server, patch, upload_metadata

METHODS = ["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT", "TRACE", "patch", "", "\x00", "POST" * 50]
FIELDS = [
    "Tus-Resumable", "Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata", "Upload-Checksum",
    "Upload-Concat", "Upload-Complete", "Content-Type", "Content-Length", "Transfer-Encoding", "Content-Encoding",
    "Expect", "X-HTTP-Method-Override", "Content-Digest", "Repr-Digest", "Content-Disposition", "Connection", "Range",
    "Upload-Draft-Interop-Version", "Trailer", "Authorization", "Host", "Origin", "If-None-Match", "X-Forwarded-Host",
    "Forwarded", "Upgrade",
]  # fmt: skip
VALUES = [
    "1.0.0", "0", "1", "-1", "5", "99999999999999999999", "1e9", "?1", "?0", "partial", "final;",
    "final;/files/x", "gzip",
    "zstd", "chunked", "identity", "application/offset+octet-stream", "application/partial-upload",
    "text/plain", "close",
    "keep-alive", "100-continue", "PATCH", "DELETE", "HEAD", "sha1 AAAA", "md5 " + "A" * 24, "sha-256=:AAAA:", "9", "8",
    "filename YQ==", "filename !!", "a YQ==,a YQ==", "bytes=0-", "bytes=5-1,0-0", "Bearer x", "*",
    "\xff\xfe", "x" * 9000, "",
    "attachment; filename*=UTF-8''%00..%2f", "for=1.2.3.4;host=\"a", "websocket", "Upload-Checksum",
]  # fmt: skip
ALLOWED_5XX = {501, 503, 507}


def _request(dice: random.Random, server: Server, urls: list[str]) -> bytes:
    """One request that is partly right and partly anything."""
    path = dice.choice(["/files", "/files/", "/files/x", "/files/%00", "/files/../..", *urls])
    fields = [f"Authorization: Bearer {server.token}"] if dice.random() < 0.9 else []
    body = dice.randbytes(dice.choice([0, 0, 1, 5, 100, 5000]))
    if dice.random() < 0.7:
        fields.append("Tus-Resumable: 1.0.0")
    if dice.random() < 0.6:
        fields.append(dice.choice([f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"]))
    if dice.random() < 0.5:
        fields.append("Content-Type: " + dice.choice(["application/offset+octet-stream", "application/partial-upload"]))
    if dice.random() < 0.5:
        fields.append(f"Upload-Offset: {dice.choice([0, 0, 1, 5])}")
    for _ in range(dice.randrange(4)):
        fields.append(f"{dice.choice(FIELDS)}: {dice.choice(VALUES)}")
    dice.shuffle(fields)
    if "Transfer-Encoding: chunked" in fields and dice.random() < 0.8:
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n"
    head = "\r\n".join([f"{dice.choice(METHODS[:6] * 5 + METHODS)} {path} HTTP/1.1", "Host: x", *fields])
    raw = head.encode("latin-1") + b"\r\n\r\n" + body
    if dice.random() < 0.1:
        place = dice.randrange(len(raw))
        raw = raw[:place] + dice.randbytes(dice.randrange(1, 4)) + raw[place + 1 :]
    return raw * dice.choice([1, 1, 1, 2])


def fuzzed_requests(folder: Path, seed: int, count: int) -> int:
    """Raw requests of every shape: no 5xx but 501, 503 and 507, no traceback, no leak."""
    dice, ran = random.Random(seed), 0
    server = Server(folder, extra="[uploads]\nheader_timeout_s = 1\nprogress_window_s = 1\n").start()
    try:
        urls = [begin(server, dice.randbytes(5)).removeprefix(server.url) for _ in range(20)]
        files_before = 0
        while ran < count:
            if ran % 5000 == 0:
                urls[dice.randrange(len(urls))] = begin(server, dice.randbytes(5)).removeprefix(server.url)
            if ran == min(count // 10, 5000):
                memory, files_before = server.rss_bytes(), _open_files(server)
            statuses = _exchange(server, _request(dice, server, urls))
            assert not [one for one in statuses if one >= 500 and one not in ALLOWED_5XX], (seed, ran, statuses)
            ran += 1
        assert server.api("GET", "/").status_code == 200
        deadline = time.monotonic() + 10
        while _open_files(server) > files_before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _open_files(server) <= files_before + 20, seed
        assert server.rss_bytes() - memory < 100 * 2**20, (seed, memory, server.rss_bytes())
        sound(server)
    finally:
        server.stop()
    return ran


def _open_files(server: Server) -> int:
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def _exchange(server: Server, raw: bytes) -> list[int]:
    """Send it, say that no more comes, and read the statuses of all answers."""
    host, port = server.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as line, suppress(OSError):
        line.sendall(raw)
        line.shutdown(socket.SHUT_WR)
        while chunk := line.recv(65536):
            answer += chunk
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]


NAMES = [
    "../../etc/passwd", "/etc/cron.d/x", "..\\..\\windows", "a\x00b", "\u202egnp.exe", "con", "nul.dcm", "a" * 4000, "",
    ".", "..", "~root", "$(id)", "`id`", "a\r\nSet-Cookie: x", "\U0001f4a9.dcm", "a/b/c/d", "%2e%2e%2f",
    "file:///etc", "-rf",
    "\ufeff", "a;b|c&d", "<script>alert(1)</script>", "'; DROP TABLE session; --", "COM1:", "\x7f\x1b[2J",
]  # fmt: skip
KEYS = ["filename", "name", "relativePath", "type", "filetype", "local_file_uuid", "device_id"]


def hostile_names(folder: Path, seed: int, count: int) -> int:
    """Names that want out of the blob folder: no file anywhere else, and the download's header stays one line."""
    dice, ran = random.Random(seed), 0
    server = Server(folder / "server").start()
    try:
        for number in range(count):
            name = "".join(dice.choice(NAMES) for _ in range(dice.randrange(1, 3)))
            raw = name.encode("utf-8", "surrogatepass") if dice.random() < 0.9 else dice.randbytes(30)
            told = upload_metadata(**{dice.choice(KEYS): raw, **({"filename": raw} if dice.random() < 0.5 else {})})
            answer = server.tus(
                "POST",
                "/files",
                b"%08d" % number,
                Upload_Length="8",
                Upload_Metadata=told,
                Content_Type="application/offset+octet-stream",
            )
            assert answer.status_code in (201, 400, 422), (seed, name, answer.status_code)
            if answer.status_code == 201:
                file = server.tus("GET", answer.headers["Location"])
                assert file.content == b"%08d" % number and "Set-Cookie" not in file.headers, (seed, name)
            ran += 1
        allowed = {"packhorse.toml", "server.log", "data"}
        assert {path.name for path in folder.rglob("*") if path.parent == folder / "server"} <= allowed, seed
        blobs = server.folder / "data" / "blobs"
        for path in blobs.rglob("*"):
            assert path.is_dir() or path.name.replace("-", "").isalnum(), (seed, path)
        sound(server)
    finally:
        server.stop()
    return ran


def half_open_and_slow_clients(folder: Path, seed: int, count: int) -> int:
    """Five of six send half a header and stay, the sixth one byte a second of a body; a good client is served."""
    dice = random.Random(seed)
    limits = "[uploads]\nheader_timeout_s = 8\nprogress_window_s = 4\nprogress_floor_bytes_per_s = 16\n"
    server = Server(folder, extra=limits).start()
    lines: list[socket.socket] = []
    try:
        base = _served(server, dice)
        host, port = server.url.removeprefix("http://").split(":")
        slow = []
        for number in range(count):
            if number % 6:
                line = socket.create_connection((host, int(port)), timeout=10)
                line.sendall(dice.choice([b"", b"PATCH /files", b"POST /files HTTP/1.1\r\nHost: x\r\nA: b\r\n"]))
            else:
                line = open_patch(server, begin(server, dice.randbytes(1000)), 0, 1000)
                slow.append(line)
            lines.append(line)
        for line in slow:
            with suppress(OSError):
                line.sendall(b"x")
        loaded = _served(server, dice)
        print(
            f"a good client's p99: {base * 1000:.0f} ms alone, {loaded * 1000:.0f} ms among {count} offenders",
            flush=True,
        )
        assert loaded <= max(2 * base, 0.25), (seed, base, loaded)
        deadline = time.monotonic() + 30
        for line in lines:
            line.settimeout(max(0.1, deadline - time.monotonic()))
            with suppress(ConnectionError):
                while line.recv(65536):  # an answer may come first: 503
                    pass
        sound(server)
        return len(lines)
    finally:
        for line in lines:
            line.close()
        server.stop()


def _served(server: Server, dice: random.Random) -> float:
    """The 99th percentile of a good client's small uploads, in seconds."""
    took = []
    for _ in range(100):
        content = dice.randbytes(1000)
        began = time.monotonic()
        answer = patch(server, begin(server, content), content)
        took.append(time.monotonic() - began)
        assert answer.headers["Packhorse-Status"] == "SYNCED"
    return statistics.quantiles(took, n=100)[98]
