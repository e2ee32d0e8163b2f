"""`/metrics` and `/readyz` of real servers: what they count, to whom they tell it, and over how many processes."""

import base64
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from server.metrics.counts import REQUEST_S, Counts
from server.metrics.sharing import Shared, added
from tests.server import Server, create, patch, upload_metadata, upload_url
from tests.support import eventually


def samples(server: Server, headers: dict[str, str] | None = None) -> dict[tuple[str, ...], float]:
    """Every sample of the page: (name, label values in the labels' order) → value."""
    answer = requests.get(f"{server.url}/metrics", headers=headers or server.auth, timeout=10)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_what_happened_is_counted(server: Server, ct: bytes) -> None:
    session = create(server, ct)
    url = upload_url(server, session["session_id"])
    assert patch(server, url, ct).headers["Packhorse-Status"] == "SYNCED"
    create(server, b"another", file_name="a.bin")
    long = bytes(3 * 1024 * 1024)
    answer = requests.post(
        f"{server.url}/files", data=long, timeout=10, headers={**server.auth, "Upload-Complete": "?1"}
    )
    assert answer.status_code == 201
    requests.get(f"{server.url}/api/v1/nowhere/at/all", headers=server.auth, timeout=5)
    requests.request("PROPFIND", f"{server.url}/api/v1/", headers=server.auth, timeout=5)
    found = samples(server)
    assert found["packhorse_received_bytes_total", "tus"] == len(ct)
    assert found["packhorse_received_bytes_total", "rufh"] == len(long)
    assert found["packhorse_http_requests_total", "PATCH", "/files/{upload_id}", "204"] == 1
    assert found["packhorse_http_requests_total", "GET", "unknown", "404"] == 1
    assert found["packhorse_http_requests_total", "other", "unknown", "405"] == 1
    assert found["packhorse_http_request_seconds_count", "PATCH", "/files/{upload_id}"] == 1
    assert found["packhorse_sessions", "SYNCED"] == 2 and found["packhorse_sessions", "QUEUED"] == 1
    assert found["packhorse_ingest_seconds_count", "tus", "read"] == 2
    assert found["packhorse_ingest_seconds_count", "tus", "file"] == 2
    assert found["packhorse_commit_seconds_count",] >= 4 and found["packhorse_fsync_seconds_count",] >= 2
    assert found["packhorse_disk_free_bytes", "blobs"] > 0 and found["packhorse_uploads_open",] == 0
    # the places of a histogram only ever grow, up to the count
    places = [value for name, value in found.items() if name[0] == "packhorse_commit_seconds_bucket"]
    assert places == sorted(places) and places[-1] == found["packhorse_commit_seconds_count",]


def test_an_open_upload_and_its_failure_are_counted(server: Server) -> None:
    session = create(server, b"12345", file_name="a.bin")
    upload_url(server, session["session_id"])
    assert samples(server)["packhorse_uploads_open",] == 1
    assert server.api("POST", f"/upload-sessions/{session['session_id']}/cancel/", {"reason": "x"}).status_code == 200
    time.sleep(1.1)  # figures are looked up once a second
    found = samples(server)
    assert found["packhorse_uploads_open",] == 0 and found["packhorse_sessions", "FAILED"] == 1


def test_metrics_are_for_operators_and_listed_addresses(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", http='trusted_proxies = ["127.0.0.1"]\nmetrics_allow = ["10.9.0.0/16"]\n')
    server.start()
    try:
        tokens = {
            role: server.command("token", "create", "--role", role).stdout.strip()
            for role in ("uploader", "viewer", "auditor", "operator")
        }
        for role, status in {"uploader": 403, "viewer": 403, "auditor": 403, "operator": 200}.items():
            headers = {"Authorization": f"Bearer {tokens[role]}"}
            assert requests.get(f"{server.url}/metrics", headers=headers, timeout=5).status_code == status
            told = requests.get(f"{server.url}/readyz", headers=headers, timeout=5).json()
            assert ("faults" in told) == (status == 200)
        refused = requests.get(f"{server.url}/metrics", timeout=5)
        assert refused.status_code == 401 and refused.json()["code"] == "unauthorized"
        for address, status in {"10.9.3.4": 200, "10.8.3.4": 401, "not an address": 401}.items():
            headers = {"X-Forwarded-For": address}
            assert requests.get(f"{server.url}/metrics", headers=headers, timeout=5).status_code == status
            assert ("backlog" in requests.get(f"{server.url}/readyz", headers=headers, timeout=5).json()) == (
                status == 200
            )
    finally:
        server.stop()


@pytest.fixture
def three_processes(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server", arguments=("--workers", "2")).start()
    yield running
    assert running.stop() == 0


async def test_any_worker_tells_the_whole_server_and_no_counter_goes_back(three_processes: Server) -> None:
    server, key = three_processes, ("packhorse_http_requests_total", "GET", "/api/v1", "200")
    for _ in range(40):  # each on a connection of its own, so that both workers get some
        assert server.api("GET", "/").status_code == 200
    await eventually(lambda: any((server.folder / "data" / "metrics").glob("*.json")))
    last = 0.0

    def all_are_told() -> bool:
        nonlocal last
        now = samples(server).get(key, 0.0)
        assert now >= last
        last = now
        return now == 40

    await eventually(all_are_told)
    for _ in range(20):
        assert all_are_told()


def test_the_counts_of_a_server_before_are_over(server: Server) -> None:
    for _ in range(5):
        server.api("GET", "/")
    assert samples(server)["packhorse_http_requests_total", "GET", "/api/v1", "200"] == 5
    server.stop()
    server.restart()
    assert ("packhorse_http_requests_total", "GET", "/api/v1", "200") not in samples(server)


async def test_where_the_disk_takes_no_file_the_own_counts_are_told_all_the_same(tmp_path: Path) -> None:
    counts = Counts()
    shared = Shared(tmp_path / "nowhere", counts)
    counts.add("x", ("a",), 3)
    assert not await shared.share()
    assert (await shared.all())[0] == {"x": {("a",): 3}}


def test_counts_of_processes_are_added_by_labels() -> None:
    one, other = Counts(), Counts()
    one.add("x", ("a",))
    other.add("x", ("a",), 2)
    other.add("x", ("b",))
    one.took(REQUEST_S, ("r", "GET"), 0.002)
    other.took(REQUEST_S, ("r", "GET"), 999.0)
    counted, took = added([one.told(), other.told()])
    assert counted == {"x": {("a",): 3, ("b",): 1}}
    places, sum_s = took[REQUEST_S]["r", "GET"]
    assert (places[1], places[-1], sum(places), sum_s) == (1, 1, 2, 999.002)


def faults(server: Server) -> dict[str, dict[str, object]]:
    time.sleep(1.1)  # looked at once a second
    answer = requests.get(f"{server.url}/readyz", headers=server.auth, timeout=10)
    told = {fault["code"]: fault for fault in answer.json()["faults"]}
    assert answer.status_code == (503 if any(fault["stops"] for fault in told.values()) else 200)
    assert all(fault["detail"] and fault["advice"] for fault in told.values())
    return told


def test_readiness_tells_each_fault_and_only_what_stops_is_a_503(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    database = server.folder / "data" / "packhorse.db"
    try:
        assert faults(server) == {}
        with sqlite3.connect(database) as tx:
            tx.execute(
                "INSERT INTO blob (site, sha256, size_bytes, sealed_at, alarm) VALUES ('default', 'x', 1, 'now', 'bad')"
            )
            tx.execute("UPDATE clock SET believed_at = '2020-01-01T00:00:00.000Z'")
            tx.execute(
                "INSERT INTO job (site, kind, subject, state, attempt, run_after) "
                "VALUES ('default', 'nobody', '1', 'waiting', 0, '2020-01-01T00:00:00.000Z')"
            )
        claims = {"kind": "audit-head", "audit_seq": 999, "audit_hash": "x", "signed_at": "", "closed": False}
        head = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        (server.folder / "data" / "audit-head.jws").write_text(f"a.{head}.b")
        create(server, b"so that a row follows")
        told = faults(server)
        assert "is no head of ours" in str(told["audit_head"]["detail"])
        assert set(told) >= {"integrity_alarms", "jobs_stuck"} and not any(one["stops"] for one in told.values())
        with sqlite3.connect(database) as tx:
            tx.execute("DROP TRIGGER audit_no_update")
        assert faults(server)["trigger_gone"]["detail"] == "the trigger audit_no_update is gone or changed"
        assert requests.get(f"{server.url}/readyz", timeout=5).json() == {"status": "not ready"}
    finally:
        server.stop()


def test_a_clock_that_jumped_is_told(tmp_path: Path) -> None:
    server = Server(tmp_path / "server").start()
    server.stop()
    with sqlite3.connect(server.folder / "data" / "packhorse.db") as tx:
        tx.execute("DELETE FROM clock")
        tx.execute(
            "INSERT INTO clock (name, site, believed_at) VALUES ('expiry', 'default', '2020-01-01T00:00:00.000Z')"
        )
    server.restart()
    try:
        assert "ahead of" in str(faults(server)["clock_distrusted"]["detail"])
        with sqlite3.connect(server.folder / "data" / "packhorse.db") as tx:
            tx.execute("UPDATE clock SET believed_at = '2090-01-01T00:00:00.000Z'")
        assert "behind" in str(faults(server)["clock_distrusted"]["detail"])
    finally:
        server.stop()


def test_a_disk_below_its_reserve_and_a_writer_that_waits_are_told(tmp_path: Path) -> None:
    reserve_bytes = shutil.disk_usage(tmp_path).total - 4096
    server = Server(tmp_path / "server", extra=f"[uploads]\nreserve_bytes = {reserve_bytes}\n").start()
    holder = sqlite3.connect(server.folder / "data" / "packhorse.db", isolation_level=None)
    try:
        assert set(faults(server)) == {"disk_below_reserve"}
        holder.execute("BEGIN IMMEDIATE")
        assert faults(server)["writer_behind"]["stops"]
        holder.execute("ROLLBACK")
        assert set(faults(server)) == {"disk_below_reserve"}
    finally:
        holder.close()
        server.stop()


def log_lines(server: Server) -> list[dict[str, object]]:
    return [json.loads(line) for line in (server.folder / "server.log").read_text().splitlines()]


def test_a_failed_session_is_one_line_of_the_log_with_its_code_and_the_request(server: Server) -> None:
    session = create(server, b"not dicom", file_name="Canary^Name.dcm")
    answer = patch(server, upload_url(server, session["session_id"]), b"not dicom")
    assert answer.status_code == 422 and answer.json()["code"] == "NOT_DICOM"
    told = [line for line in log_lines(server) if line["event"] == "session.failed"]
    assert [(one["session_id"], one["error_code"]) for one in told] == [(session["session_id"], "NOT_DICOM")]
    assert told[0]["request_id"] == answer.headers["X-Request-Id"]
    assert "Canary" not in json.dumps(told)


def test_a_wrong_token_at_the_open_routes_is_a_refused_login_and_a_probe_without_one_is_none(server: Server) -> None:
    def refused() -> list[dict[str, object]]:
        return [line for line in log_lines(server) if line["event"] == "login.refused"]

    for _ in range(2):
        assert requests.get(f"{server.url}/readyz", timeout=5).json() == {"status": "ready"}
    assert refused() == []
    wrong = {"Authorization": "Bearer ph_0123456789abcdef_no"}
    assert requests.get(f"{server.url}/readyz", headers=wrong, timeout=5).json() == {"status": "ready"}
    assert requests.get(f"{server.url}/metrics", headers=wrong, timeout=5).status_code == 401
    assert len(refused()) == 1, "once per address and minute"


def test_the_log_may_be_text_for_people(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", extra='[log]\nformat = "text"\n').start()
    try:
        requests.get(f"{server.url}/api/v1/", timeout=5)
        text = (server.folder / "server.log").read_text()
        assert re.search(r"^\S+Z WARNING +login\.refused .*peer=127\.0\.0\.1", text, re.MULTILINE), text
    finally:
        server.stop()


def test_a_tus_creation_counts_as_one_request(server: Server) -> None:
    headers = {"Upload-Length": "3", "Upload-Metadata": upload_metadata(filename="a")}
    assert server.tus("POST", "/files", **{name.replace("-", "_"): value for name, value in headers.items()}).ok
    assert samples(server)["packhorse_http_requests_total", "POST", "/files", "201"] == 1
