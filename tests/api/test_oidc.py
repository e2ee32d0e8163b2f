"""JWTs of an issuer as bearers: a real issuer whose keys rotate, and everything that must not be taken."""

import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey

from server.identity import jwks
from server.identity.jwks import IssuerKeys
from tests import builders
from tests.issuer import AUDIENCE, Issuer, twin
from tests.server import Server, patch, sha256, upload_metadata

EC = ECKey.generate_key("P-256", {"kid": "ec", "use": "sig", "alg": "ES256"})
STRANGER = RSAKey.generate_key(2048, {"kid": "first"})
with warnings.catch_warnings(action="ignore"):
    SMALL = RSAKey.generate_key(1024, {"kid": "small", "use": "sig"})
FOR_ENCRYPTION = RSAKey.generate_key(2048, {"kid": "enc", "use": "enc"})
FOR_PS256 = RSAKey.generate_key(2048, {"kid": "ps", "use": "sig", "alg": "PS256"})


def config(issuer: Issuer, more: str = "") -> str:
    return f'[auth.oidc]\nissuer = "{issuer.url}"\naudience = "{AUDIENCE}"\n{more}'


CLAIMS = 'site_claim = "clinic.site"\nvisit_claim = "visit"\norder_claim = "order"\nuser_claim = "user"\n'


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    running.keys += [EC, SMALL, FOR_ENCRYPTION, FOR_PS256]
    running.published = [{"kty": "oct", "kid": "oct", "k": "c2VjcmV0"}, {"kty": "XYZ", "kid": "odd"}, {"kty": "RSA"}]
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("oidc") / "server", extra=config(issuer)).start()
    yield running
    running.stop()


def who(server: Server, token: str) -> Any:
    return server.api("GET", "/login", token=token)


def test_a_jwt_is_taken_as_a_token_is(server: Server, issuer: Issuer) -> None:
    told = who(server, issuer.token()).json()
    assert (told["token_id"], told["role"], told["site"]) == ("oidc:anna", "uploader", "default")
    content = b"of anna"
    metadata = upload_metadata(filename="a.bin")
    made = server.tus("POST", "/files", token=issuer.token(), Upload_Length="7", Upload_Metadata=metadata)
    bearer = {"Authorization": f"Bearer {issuer.token()}"}  # the next JWT of the same person
    assert patch(server, made.headers["Location"], content, **bearer).headers["Packhorse-Status"] == "SYNCED"
    listed = server.api("GET", "/upload-sessions/", token=issuer.token()).json()["results"]
    assert [one["checksum_sha256"] for one in listed] == [sha256(content)]
    assert server.api("GET", "/upload-sessions/", token=issuer.token(sub="ben")).json()["results"] == []
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db")) as database:
        actors = database.execute("SELECT DISTINCT actor FROM audit WHERE action = 'session.created'").fetchall()
    assert ("oidc:anna",) in actors


@pytest.mark.parametrize("key", [EC, None], ids=["ES256", "no kid"])
def test_other_keys_and_jwts_without_a_kid_are_taken(server: Server, issuer: Issuer, key: Any) -> None:
    token = issuer.token(key, "ES256") if key is EC else issuer.token(kid=None)
    assert who(server, token).status_code == 200


FORGED: dict[str, Callable[[Issuer], str]] = {
    "unsigned": lambda one: one.unsigned(),
    "HMAC with the public key": lambda one: one.signed_with_the_public_key(),
    "another key under the same kid": lambda one: one.token(STRANGER),
    "another key without a kid": lambda one: one.token(STRANGER, kid=None),
    "a kid that is nobody's": lambda one: one.token(kid="../../etc/passwd"),
    "a small key": lambda one: one.token(SMALL),
    "a key for encryption": lambda one: one.token(twin(FOR_ENCRYPTION)),
    "a key for another algorithm": lambda one: one.token(twin(FOR_PS256)),
    "an algorithm that is not listed": lambda one: one.token(alg="RS384"),
    "another issuer": lambda one: one.token(iss="https://evil.example"),
    "the issuer with a slash": lambda one: one.token(iss=one.url + "/"),
    "no issuer": lambda one: one.token(iss=None),
    "another audience": lambda one: one.token(aud="other"),
    "other audiences": lambda one: one.token(aud=["other", "packhorse2"]),
    "an audience that is no text": lambda one: one.token(aud={"packhorse": 1}),
    "no audience": lambda one: one.token(aud=None),
    "no expiry": lambda one: one.token(exp=None),
    "an expiry that is no number": lambda one: one.token(exp="2099"),
    "an expiry that is true": lambda one: one.token(exp=True),
    "an expiry beyond the calendar": lambda one: one.token(exp=10**15),
    "expired": lambda one: one.token(exp=int(time.time()) - 61),
    "not valid yet": lambda one: one.token(nbf=int(time.time()) + 90),
    "issued in the future": lambda one: one.token(iat=int(time.time()) + 90),
    "no subject": lambda one: one.token(sub=None),
    "a subject that is no text": lambda one: one.token(sub=7),
    "no role": lambda one: one.token(packhorse_role=None),
    "an unknown role": lambda one: one.token(packhorse_role="root"),
    "roles that do not go together": lambda one: one.token(packhorse_role=["viewer", "auditor"]),
    "no claims": lambda one: one.token()[: one.token().rindex(".")],
    "a changed claim": lambda one: one.token()[:-8] + "AAAAAAAA",
    "no JWT": lambda one: "a.b.c",
    "an empty one": lambda one: "..",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_what_is_not_genuine_is_refused(server: Server, issuer: Issuer, forge: Callable[[Issuer], str]) -> None:
    assert who(server, issuer.token()).status_code == 200  # so that it is not for want of keys
    answer = who(server, forge(issuer))
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), answer.text


def test_clocks_may_differ_by_a_minute(server: Server, issuer: Issuer) -> None:
    moment = int(time.time())
    for claims in ({"exp": moment - 50}, {"iat": moment + 50}, {"nbf": moment + 50}, {"aud": ["x", AUDIENCE]}):
        assert who(server, issuer.token(**claims)).status_code == 200, claims


def test_an_expired_jwt_hears_of_its_own_upload_only(server: Server, issuer: Issuer) -> None:
    url = server.tus("POST", "/files", token=issuer.token(sub="cleo"), Upload_Length="9").headers["Location"]
    late = int(time.time()) - 100
    mine, other = issuer.token(sub="cleo", exp=late), issuer.token(sub="ben", exp=late)
    assert server.tus("HEAD", url, token=mine).headers["Upload-Offset"] == "0"
    assert server.tus("HEAD", url, token=other).status_code == 401
    assert patch(server, url, b"123456789", Authorization=f"Bearer {mine}").status_code == 401


@pytest.mark.parametrize(
    ("told", "role"),
    [("admin", "admin"), (["viewer", "offline_access", "operator"], "operator"), (["auditor", 7], "auditor")],
)
def test_the_role_is_the_one_that_covers_the_others(server: Server, issuer: Issuer, told: Any, role: str) -> None:
    assert who(server, issuer.token(packhorse_role=told)).json()["role"] == role


def test_a_subject_that_is_long_or_odd_has_a_name_of_its_own(server: Server, issuer: Issuer) -> None:
    names = [who(server, issuer.token(sub=sub)).json()["token_id"] for sub in ("x" * 200, "x" * 201, "a b\n", "ärztin")]
    assert len(set(names)) == 4 and all(name.startswith("oidc:sha256:") and len(name) <= 64 for name in names)


def test_an_operator_by_jwt_mints_what_ends_with_the_jwt(server: Server, issuer: Issuer) -> None:
    exp = int(time.time()) + 120
    token = issuer.token(packhorse_role="operator", exp=exp)
    told = server.api("POST", "/tokens/", {"role": "viewer", "expires_in_s": 3600}, token=token).json()
    assert told["maker"] == "oidc:anna"
    assert abs(time.mktime(time.strptime(told["expires_at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - exp) < 2


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Issuer, Callable[[str], Server]]]:
    """An issuer that a test may break, and a way to start a server with it."""
    issuer, servers = Issuer(), []

    def start(more: str = "") -> Server:
        servers.append(Server(tmp_path / f"server{len(servers)}", extra=config(issuer, more)).start())
        return servers[-1]

    yield issuer, start
    for server in servers:
        server.stop()
    issuer.close()


def test_claims_narrow_what_a_jwt_may_touch(own: tuple[Issuer, Callable[[str], Server]]) -> None:
    issuer, start = own
    server = start(CLAIMS)
    told = who(server, issuer.token(clinic={"site": "north"}, visit=77, order="o1", user="u7")).json()
    assert (told["site"], told["visit_id"], told["radiology_order_id"], told["created_by_id"]) == (
        "north", "77", "o1", "u7")  # fmt: skip
    assert who(server, issuer.token(clinic={"site": "north"})).json()["visit_id"] is None
    for claims in (
        {},
        {"clinic": "north"},
        {"clinic": {"site": ".."}},
        {"clinic": {"site": "a/b"}},
        {"clinic": {"site": "north"}, "visit": "a b"},
        {"clinic": {"site": "north"}, "visit": ["77"]},
        {"clinic": {"site": "north"}, "order": True},
        {"clinic": {"site": "north"}, "user": ""},
    ):
        assert who(server, issuer.token(**claims)).status_code == 401, claims


def test_what_was_done_under_a_key_answers_no_other_site_and_scope(own: tuple[Issuer, Callable[[str], Server]]) -> None:
    issuer, start = own
    server = start(CLAIMS)

    def reject(uid: str, **claims: Any) -> Any:
        secret = issuer.token(packhorse_role="operator", **claims)
        body = {"code": "113001", "reason": "blurred"}
        return server.api("POST", f"/studies/{uid}/reject/", body, token=secret, Idempotency_Key="same")

    content = Path(builders.ct(server.folder / "x.dcm")).read_bytes()
    told = []
    for site in ("s1", "s2"):
        secret = issuer.token(packhorse_role="operator", clinic={"site": site})
        made = server.tus(
            "POST", "/files", content, token=secret, Upload_Length=str(len(content)),
            Upload_Metadata=upload_metadata(filename="x.dcm"), Content_Type="application/offset+octet-stream",
        )  # fmt: skip
        assert made.status_code == 201
        uid = server.api("GET", "/studies/", token=secret).json()["results"][0]["study_instance_uid"]
        told.append(reject(uid, clinic={"site": site}).json())
        assert server.api("GET", "/studies/", token=secret).json()["results"] == []
    assert told[0]["images"] != told[1]["images"]
    assert reject(uid, clinic={"site": "s2"}).json() == {**told[1], "replayed": True}
    for scope in ("visit", "order"):
        assert reject(uid, clinic={"site": "s2"}, **{scope: "7"}).status_code == 404
    assert "replayed" not in reject(uid, clinic={"site": "s2"}, user="u7").json()


def test_a_rotated_key_works_at_once_and_unknown_kids_ask_once(own: tuple[Issuer, Callable[[str], Server]]) -> None:
    issuer, start = own
    server = start("")
    before = issuer.token()
    assert who(server, before).status_code == 200 and issuer.requests.count("/keys") == 1
    issuer.rotate("second", keeps=True)
    # the look of the start was just now: the next one comes after LOOK_S, whoever asks for it
    deadline = time.monotonic() + jwks.LOOK_S + 5
    while who(server, issuer.token()).status_code != 200:
        assert time.monotonic() < deadline
    assert issuer.requests.count("/keys") == 2
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda number: who(server, issuer.token(kid=f"k{number}")).status_code, range(50)))
    assert set(statuses) <= {401, 429} and issuer.requests.count("/keys") == 2
    assert who(server, before).status_code == 200 and who(server, issuer.token()).status_code == 200


def test_an_issuer_that_is_away_locks_nobody_out_who_was_known(own: tuple[Issuer, Callable[[str], Server]]) -> None:
    issuer, start = own
    server = start("")
    issuer.is_down = True
    answer = who(server, issuer.token())
    assert (answer.status_code, answer.json()["code"]) == (503, "issuer_unavailable") and answer.headers["Retry-After"]
    assert server.api("GET", "/").status_code == 200  # our own tokens need no issuer
    issuer.is_down = False
    deadline = time.monotonic() + jwks.LOOK_S + 5
    while who(server, issuer.token()).status_code != 200:
        assert time.monotonic() < deadline
    issuer.is_down = True
    assert who(server, issuer.token(sub="ben")).status_code == 200


def test_a_discovery_that_names_another_issuer_is_not_believed(own: tuple[Issuer, Callable[[str], Server]]) -> None:
    issuer, start = own
    server = start("")
    issuer.names = "https://evil.example"
    assert who(server, issuer.token()).status_code == 503 and "/keys" not in issuer.requests


async def test_keys_are_asked_for_by_one_and_a_key_taken_away_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    issuer, clock = Issuer(), [1000.0]
    monkeypatch.setattr(jwks.time, "monotonic", lambda: clock[0])
    try:
        keys = IssuerKeys(issuer.url, "")
        found = await asyncio.gather(*(keys.candidates("first") for _ in range(50)))
        assert all(len(one) == 1 for one in found) and issuer.requests.count("/keys") == 1
        issuer.rotate("second")
        clock[0] += jwks.LOOK_S + 1
        found = await asyncio.gather(*(keys.candidates("second") for _ in range(50)))  # all wait for the one look
        assert all(len(one) == 1 for one in found) and issuer.requests.count("/keys") == 2
        assert await keys.candidates("first") == []
        issuer.is_down = True
        clock[0] += jwks.FRESH_S + 1
        assert len(await keys.candidates("second")) == 1
        clock[0] += jwks.MOST_STALE_S + 1
        with pytest.raises(Exception, match="cannot be read"):
            await keys.candidates("second")
    finally:
        issuer.close()
