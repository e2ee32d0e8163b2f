"""Wrong tokens and codes are limited; whoever has the right one gets in from the same address all the same."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from server.errors import RequestError
from server.identity import attempts
from server.identity.attempts import PER_ADDRESS, PER_TOKEN, Attempts, network_of
from tests.server import Server


@pytest.fixture
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that believes who calls, so that a test may come from many addresses."""
    server = Server(tmp_path_factory.mktemp("guessing") / "server")
    server.http = 'trusted_proxies = ["127.0.0.0/8"]\n'
    server.start()
    yield server
    server.stop()


def call(server: Server, token: str, address: str, path: str = "/api/v1/", method: str = "GET", **given: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": address, "Tus-Resumable": "1.0.0"}
    return requests.request(method, server.url + path, headers=headers, timeout=30, **given)


def guesses(server: Server, address: str, count: int) -> list[int]:
    return [call(server, f"ph_{uuid.uuid4().hex[:16]}_x", address).status_code for _ in range(count)]


def test_guesses_are_slowed_and_the_right_token_gets_in_beside_them(proxied: Server) -> None:
    fresh = proxied.command("token", "create", "--role", "viewer").stdout.strip()
    statuses = guesses(proxied, "10.1.1.1", 3 * PER_ADDRESS.burst)
    assert statuses[: PER_ADDRESS.burst] == [401] * PER_ADDRESS.burst and statuses.count(429) > PER_ADDRESS.burst
    refused = call(proxied, "ph_0_0", "10.1.1.1")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert 1 <= int(refused.headers["Retry-After"]) <= 3
    assert call(proxied, fresh, "10.1.1.1").status_code == 200  # behind the same address, never seen before
    assert call(proxied, "ph_0_0", "10.1.1.2").status_code == 401  # others are not slowed
    at_files = call(proxied, "ph_0_0", "10.1.1.1", "/files", "POST")
    assert at_files.status_code == 503 and at_files.headers["Retry-After"]  # upload clients give up on 429


def test_guesses_at_one_token_stop_there_and_not_for_who_uses_it(proxied: Server) -> None:
    used, fresh = (proxied.command("token", "create", "--role", "viewer").stdout.strip() for _ in range(2))
    assert call(proxied, used, "10.2.1.1").status_code == 200
    for token in (used, fresh):
        wrong = token[:-4] + "AAAA"
        statuses = [call(proxied, wrong, "10.2.1.1").status_code for _ in range(PER_TOKEN.burst + 5)]
        assert statuses[0] == 401 and statuses[-1] == 429
    assert call(proxied, used, "10.2.1.1").status_code == 200
    delayed = call(proxied, fresh, "10.2.1.1")
    assert delayed.status_code == 429 and int(delayed.headers["Retry-After"]) <= 4
    assert call(proxied, fresh, "10.2.1.2").status_code == 200  # from anywhere else at once
    assert call(proxied, fresh, "10.2.1.1").status_code == 200  # and then it is known


def test_codes_cookies_and_signatures_count_too(proxied: Server) -> None:
    def post(code: str) -> Any:
        headers = {"X-Forwarded-For": "10.3.1.1"}
        return requests.post(f"{proxied.url}/api/v1/login", json={"code": code}, headers=headers, timeout=10)

    statuses = [post(uuid.uuid4().hex).status_code for _ in range(PER_ADDRESS.burst + 5)]
    assert statuses[0] == 401 and statuses[-1] == 429
    cookie = {"Cookie": "packhorse=x", "X-Forwarded-For": "10.3.1.1"}
    assert requests.get(f"{proxied.url}/api/v1/", headers=cookie, timeout=10).status_code == 429
    url = f"{proxied.url}/api/v1/images/1/thumbnail?signed=a.b"
    assert requests.get(url, headers={"X-Forwarded-For": "10.3.1.1"}, timeout=10).status_code == 429
    code = proxied.command("token", "code", proxied.token).stdout.strip()
    assert post(code).status_code == 200  # a good code gets in beside them


def test_a_token_whose_time_is_over_is_no_guess(proxied: Server) -> None:
    told = proxied.api("POST", "/tokens/", {"role": "viewer"}).json()
    proxied.api("DELETE", f"/tokens/{told['token_id']}/", {"reason": "lost"})
    statuses = [call(proxied, told["token"], "10.4.1.1").status_code for _ in range(2 * PER_ADDRESS.burst)]
    assert set(statuses) == {401}


def test_what_is_remembered_is_bounded_and_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: clock[0])
    ours = Attempts()

    def is_slowed(peer: str) -> bool:
        try:
            ours.failed(peer)
        except RequestError as refusal:
            assert refusal.code == "too_many_attempts" and int(str(refusal.members["retry_after_s"])) <= 3
            return True
        return False

    assert sum(is_slowed("10.0.0.1") for _ in range(2 * PER_ADDRESS.burst)) == PER_ADDRESS.burst
    clock[0] += 10 * PER_ADDRESS.refill_s
    assert [is_slowed("10.0.0.1") for _ in range(11)] == [False] * 10 + [True]
    for number in range(3 * attempts.MOST_KNOWN):
        ours.failed(f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}", "0123")
    assert len(ours._by_address._spent) <= attempts.MOST_KNOWN and len(ours._by_token._spent) <= attempts.MOST_KNOWN
    for number in range(2 * attempts.MOST_KNOWN):
        ours.good(str(number))
    assert len(ours._good) <= attempts.MOST_KNOWN


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        (None, "unknown"),
        ("unix", "unknown"),
    ],
)
def test_one_customer_counts_as_one_address(address: str | None, network: str) -> None:
    assert network_of(address) == network
