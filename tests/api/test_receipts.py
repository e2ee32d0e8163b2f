"""Receipts of images of every door, keys that rotate, and the verifier that needs nothing of ours."""

import ast
import json
import os
import sqlite3
import stat
import sys
import uuid
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from joserfc import jws
from joserfc.jwk import OKPKey

from server.errors import AppError
from server.sessions.receipts import keep_key, new_key, open_signer
from storage.records import now
from tests import builders
from tests.alone import VERIFIER, keys_file, verify_alone
from tests.dcmtk import status_of, storescu
from tests.server import Server, create, patch, sha256, upload_url


@pytest.fixture
def content() -> bytes:
    """Bytes of its own for each test, no DICOM."""
    return uuid.uuid4().bytes * 100


def stored(server: Server, content: bytes, **fields: Any) -> dict[str, Any]:
    session = create(server, content, **{"file_name": "a.bin", **fields})
    patch(server, upload_url(server, session["session_id"]), content)
    return dict(server.api("GET", f"/upload-sessions/{session['session_id']}/").json())


def receipt_of(server: Server, session: dict[str, Any]) -> str:
    return str(server.api("GET", f"/upload-sessions/{session['session_id']}/receipt/").json()["receipt"])


def claims_of(receipt: str) -> dict[str, Any]:
    return dict(json.loads(jws.extract_compact(receipt.encode()).payload))


def kid_of(receipt: str) -> str:
    return str(jws.extract_compact(receipt.encode()).headers()["kid"])


def published(server: Server) -> list[str]:
    return [key["kid"] for key in requests.get(f"{server.url}/.well-known/jwks.json", timeout=10).json()["keys"]]


def token(server: Server, *words: str) -> str:
    answer = server.command("token", "create", *words)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_a_new_key_signs_without_a_restart_and_the_old_ones_stay_published(
    tmp_path: Path, content: bytes, arguments: tuple[str, ...]
) -> None:
    server = Server(tmp_path / "server", arguments=arguments).start()
    try:
        old = receipt_of(server, stored(server, content))
        for turn in range(3):
            told = server.command("keys", "rotate", "--reason", "yearly")
            assert told.returncode == 0, told.stderr
            for again in range(4):  # of several workers, each
                new = receipt_of(server, stored(server, content + bytes([turn, again])))
                assert kid_of(new) == published(server)[-1] and kid_of(new) in told.stdout
        assert len(set(published(server))) == 4 and published(server)[0] == kid_of(old)
        server.stop()
        server.restart()
        assert kid_of(receipt_of(server, stored(server, content + b"later"))) == kid_of(new)
        for number, receipt in enumerate((old, new)):
            (tmp_path / f"{number}.jws").write_text(receipt)
        told = verify_alone("--keys", keys_file(server, tmp_path / "jwks.json"), *map(str, tmp_path.glob("*.jws")))
        assert told.returncode == 0 and "2 genuine, 0 refused" in told.stderr
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (server.folder / "data" / "keys").iterdir()]
        assert modes == [0o600] * 4
        listed = server.command("keys", "list").stdout.splitlines()
        assert [line.split()[0] for line in listed] == published(server)
        assert [line for line in listed if "signs" in line] == [f"{kid_of(new)}  signs"]
    finally:
        server.stop()


def test_the_newest_key_signs_whatever_its_name(tmp_path: Path) -> None:
    keys = [new_key() for _ in range(12)]
    for number, key in enumerate(keys):
        key_values = {**key.as_dict(private=True), "created_at": f"2026-01-{number + 1:02}T00:00:00.000Z"}
        keep_key(tmp_path, type(key).import_key(key_values))
    signer = open_signer(tmp_path)
    assert signer.kid == keys[-1].thumbprint()
    keep_key(tmp_path, newest := new_key())
    assert signer.kid == kid_of(signer.sign({})) == newest.thumbprint()
    assert [jwk["kid"] for jwk in signer.public_jwks()] == [key.thumbprint() for key in [*keys, newest]]
    assert not any({"d", "created_at"} & set(jwk) for jwk in signer.public_jwks())


def test_a_key_of_the_first_release_goes_on_signing_until_it_is_rotated(tmp_path: Path) -> None:
    old = new_key()
    values = {name: value for name, value in old.as_dict(private=True).items() if name != "created_at"}
    tmp_path.joinpath(f"{old.thumbprint()}.json").write_text(json.dumps(values))
    assert open_signer(tmp_path).kid == old.thumbprint()
    keep_key(tmp_path, newer := new_key())
    assert open_signer(tmp_path).kid == newer.thumbprint()


def test_a_key_that_cannot_be_read_stops_no_server_that_signs(tmp_path: Path) -> None:
    keep_key(tmp_path, good := new_key())
    signer = open_signer(tmp_path)
    assert signer.kid == good.thumbprint()
    (tmp_path / "broken.json").write_text("{}")
    assert kid_of(signer.sign({})) == good.thumbprint()
    for path in tmp_path.iterdir():
        path.unlink()
    assert kid_of(signer.sign({})) == good.thumbprint()


def strays() -> dict[str, str]:
    """What may lie in the folder of keys and is none: each claims to be the newest."""
    first, second = (new_key().as_dict(private=True) | {"created_at": "2099-01-01T00:00:00.000Z"} for _ in range(2))
    exchange = OKPKey.generate_key("X25519").as_dict(private=True) | {"created_at": "2099-01-01T00:00:00.000Z"}
    return {
        "null": "null", "list": "[]", "empty": "{}", "no text": "nonsense", "nested": "[" * 50_000,
        "public": json.dumps({name: value for name, value in first.items() if name != "d"}),
        "for exchange": json.dumps(exchange),
        "of another": json.dumps(first | {"x": second["x"]}),
        "short": json.dumps(first | {"d": "AA"}),
    }


@pytest.mark.parametrize("stray", strays().values(), ids=strays())
def test_what_is_no_key_among_the_keys_is_passed_over(tmp_path: Path, stray: str) -> None:
    keep_key(tmp_path, good := new_key())
    running = open_signer(tmp_path)
    assert running.kid == good.thumbprint()
    (tmp_path / "stray.json").write_text(stray)
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for signer in (running, open_signer(tmp_path)):
        assert kid_of(signer.sign({})) == signer.kid == good.thumbprint()
        assert [jwk["kid"] for jwk in signer.public_jwks()] == [good.thumbprint()]
    (tmp_path / f"{good.thumbprint()}.json").unlink()
    assert running.kid == good.thumbprint(), "the key from before is as good"
    with pytest.raises(AppError, match=r"json is no signing key: put the right file back, or take it away"):
        open_signer(tmp_path).public_jwks()


def test_a_stray_file_among_the_keys_costs_no_upload_and_is_named_once(server: Server, content: bytes) -> None:
    keys = server.folder / "data" / "keys"
    (keys / "stray.json").write_text("null")
    for number in range(3):
        assert stored(server, content + bytes([number]))["status"] == "SYNCED"
    assert server.command("keys", "rotate", "--reason", "tried").returncode == 0
    assert kid_of(receipt_of(server, stored(server, content))) == published(server)[-1]
    assert (server.folder / "server.log").read_text().count("key.passed_over") == 1
    server.stop()
    server.restart()
    server.stop()
    for path in keys.iterdir():
        path.unlink() if path.name != "stray.json" else None
    with pytest.raises(AssertionError, match=r"stray\.json is no signing key"):
        server.restart()
    assert "Traceback" not in (server.folder / "server.log").read_text()


def test_a_rotation_takes_effect_although_the_clock_was_ahead_before(server: Server, content: bytes) -> None:
    keys = server.folder / "data" / "keys"
    keep_key(keys, ahead := new_key(after=now() + timedelta(days=1)))
    assert open_signer(keys).kid == ahead.thumbprint()
    for _ in range(2):
        told = server.command("keys", "rotate", "--reason", "tried")
        assert told.returncode == 0, told.stderr
        assert f"signed with the key {kid_of(receipt_of(server, stored(server, content)))} from now on" in told.stdout
        content += b"another"
    assert len(list(keys.glob("*.json"))) == 4


def test_a_rotation_is_audited_with_its_reason(server: Server) -> None:
    assert server.command("keys", "rotate", "--reason", "somebody left").returncode == 0
    rows = [json.loads(line) for line in server.command("audit", "export").stdout.splitlines()]
    (row,) = [one for one in rows if one["action"] == "key.rotated"]
    assert (row["actor"], row["detail"]["reason"]) == ("command line", "somebody left")
    kid = kid_of(open_signer(server.folder / "data" / "keys").sign({}))
    assert row["subject"] == f"key/{kid}"


def test_no_key_shows_its_private_part(server: Server) -> None:
    told = server.command("keys", "rotate", "--reason", "somebody left")
    private = [json.loads(path.read_text())["d"] for path in (server.folder / "data" / "keys").glob("*.json")]
    everything = told.stdout + told.stderr + server.command("keys", "list").stdout
    everything += requests.get(f"{server.url}/.well-known/jwks.json", timeout=10).text
    assert len(private) == 2 and not any(one in everything for one in private)


# --- images of every door -----------------------------------------------------------------------------------


def test_an_image_of_a_session_has_that_sessions_receipt(shared_server: Server, content: bytes) -> None:
    session = stored(shared_server, content)
    image = session["images"][0]
    answer = requests.get(image["links"]["receipt"], headers=shared_server.auth, timeout=10)
    assert answer.json()["receipt"] == receipt_of(shared_server, session)


@pytest.mark.peers
def test_an_image_that_came_by_c_store_is_signed_when_asked_for_and_once(server: Server, tmp_path: Path) -> None:
    path = builders.ct(tmp_path / "a.dcm")
    assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0
    first = server.api("GET", "/images/1/receipt")
    assert first.status_code == 200, first.text
    claims, image = claims_of(first.json()["receipt"]), server.api("GET", "/images/1/").json()
    told = {name: claims[name] for name in ("image_id", "file_sha256", "dataset_sha256", "size", "sop_instance_uid")}
    assert told == {"image_id": 1, **{name: image[name] for name in list(told)[1:]}}
    assert claims["stored_at"] == image["stored_at"] <= claims["verified_at"] and "session_id" not in claims
    (tmp_path / "r.jws").write_text(first.json()["receipt"])
    assert server.command("audit", "verify", "--receipt", str(tmp_path / "r.jws")).returncode == 0
    assert server.api("GET", "/images/1/receipt/").json() == first.json()
    with closing(sqlite3.connect(server.folder / "data" / "packhorse.db", timeout=30)) as database:
        for statement in (
            "UPDATE image_receipt SET receipt = ''",
            "DELETE FROM image_receipt",
            "INSERT OR REPLACE INTO image_receipt SELECT image_id, site, '', signed_at FROM image_receipt",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)
    # the file that was sent is told by its data set, for its meta information was written anew on the way
    keys = keys_file(server, tmp_path / "jwks.json")
    assert verify_alone("--keys", keys, str(tmp_path / "r.jws"), "--file", str(path)).returncode == 0
    other = builders.ct(tmp_path / "b.dcm", seed=1)
    told_of_another = verify_alone("--keys", keys, str(tmp_path / "r.jws"), "--file", str(other))
    assert told_of_another.returncode == 1 and "another file" in told_of_another.stdout


@pytest.mark.peers
def test_nothing_is_signed_for_bytes_that_are_damaged(server: Server, tmp_path: Path) -> None:
    path = builders.ct(tmp_path / "a.dcm")
    assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0
    blob = next(path for path in (server.folder / "data/blobs/sealed").rglob("*") if path.is_file())
    good = blob.read_bytes()
    blob.write_bytes(good[:-1])
    answer = server.api("GET", "/images/1/receipt")
    assert (answer.status_code, answer.json()["code"]) == (503, "readback_failed") and answer.headers["Retry-After"]
    assert status_of(storescu(server.dicom_port, path, "1.2.840.10008.1.2.1")) == 0  # the same object repairs it
    assert blob.read_bytes() == good and server.command("scrub").returncode == 0
    assert server.api("GET", "/images/1/receipt").status_code == 200


def test_a_receipt_of_before_is_not_given_for_an_image_while_an_alarm_is_open(server: Server, content: bytes) -> None:
    session = stored(server, content)
    image = f"/images/{session['server_image_id']}"
    told = server.api("GET", f"{image}/receipt")
    assert told.status_code == 200 and server.api("GET", f"{image}/").json()["flags"] == []
    blob = next((server.folder / "data/blobs/sealed").rglob(sha256(content)))
    blob.write_bytes(content[:-1])
    assert server.command("fsck").returncode == 1
    for _ in range(2):
        refused = server.api("GET", f"{image}/receipt")
        assert (refused.status_code, refused.json()["code"]) == (503, "readback_failed")
    assert server.api("GET", f"{image}/").json()["flags"] == ["damaged"]
    shown = server.api("GET", f"/upload-sessions/{session['session_id']}/").json()
    assert shown["images"][0]["flags"] == ["damaged"] and shown["safe_to_delete_local"] is False
    assert receipt_of(server, session) == told.json()["receipt"]  # what was said of the session once was true then
    blob.write_bytes(content)  # as from a backup: asking reads it
    assert server.api("GET", f"{image}/receipt").json() == told.json()
    assert server.api("GET", f"{image}/").json()["flags"] == []


def test_who_may_see_an_image_may_see_its_receipt_and_an_auditor_too(server: Server, content: bytes) -> None:
    session = stored(server, content)
    path = f"/images/{session['server_image_id']}/receipt"
    seen = {
        name: server.api("GET", path, token=token(server, *words)).status_code
        for name, words in {
            "auditor": ("--role", "auditor"),
            "viewer": ("--role", "viewer"),
            "uploader of others": ("--role", "uploader"),
            "its visit": ("--role", "uploader", "--visit", "77"),
            "another visit": ("--role", "uploader", "--visit", "78"),
            "another site": ("--role", "admin", "--site", "other"),
        }.items()
    }
    assert seen == {
        "auditor": 200,
        "viewer": 200,
        "uploader of others": 404,
        "its visit": 200,
        "another visit": 404,
        "another site": 404,
    }
    assert server.api("GET", "/images/999/receipt").status_code == 404


def test_a_session_that_may_not_be_seen_is_not_told_by_the_receipt_of_its_image(server: Server, content: bytes) -> None:
    first = stored(server, content)
    other = create(server, content, radiology_order_id=500, file_name="a.bin")
    mine = token(server, "--role", "uploader", "--visit", "88")
    body = {"file_name": "a.bin", "file_size": len(content), "checksum_sha256": sha256(content)}
    created = server.api(
        "POST", "/visits/88/radiology/upload-sessions/create_session/", {**body, "radiology_order_id": 888}, token=mine
    )
    root = f"/upload-sessions/{created.json()['session_id']}"
    server.api("POST", f"{root}/upload_metadata/", {"metadata": {}}, token=mine)
    url = server.api("POST", f"{root}/upload_binary/", {}, token=mine).json()["upload_url"]
    assert patch(server, url, content, Authorization=f"Bearer {mine}").headers["Packhorse-Status"] == "SYNCED"
    own = server.api("GET", f"{root}/", token=mine).json()
    assert own["server_image_id"] == first["server_image_id"] and other["session_id"] != own["session_id"]
    told = server.api("GET", f"/images/{own['server_image_id']}/receipt", token=mine).json()["receipt"]
    assert claims_of(told)["session_id"] == own["session_id"]


# --- the verifier -------------------------------------------------------------------------------------------


def test_the_verifier_is_short_and_needs_one_library() -> None:
    text = VERIFIER.read_text()
    assert len(text.splitlines()) <= 200
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            roots |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"joserfc"}


def test_the_verifier_takes_what_is_genuine_and_tells_why_it_refuses_the_rest(
    server: Server, tmp_path: Path, content: bytes, ct: bytes
) -> None:
    keys = keys_file(server, tmp_path / "jwks.json")
    session = stored(server, ct, file_name="ct.dcm")
    answer = server.api("GET", f"/upload-sessions/{session['session_id']}/receipt/")
    receipt = answer.json()["receipt"]
    image = tmp_path / "ct.dcm"
    image.write_bytes(ct)
    for genuine in (receipt, answer.text, json.dumps(receipt), json.dumps(answer.json(), indent=2), f"\n{receipt}\n"):
        told = verify_alone("--keys", keys, "-", "--file", str(image), given=genuine)
        assert told.returncode == 0 and json.loads(told.stdout)["file_sha256"] == sha256(ct), told.stderr
    image.write_bytes(ct[:-2] + b"xx")
    assert "another file" in verify_alone("--keys", keys, "-", "--file", str(image), given=receipt).stdout
    head, claims, signature = receipt.split(".")
    stranger = open_signer(tmp_path / "other-keys")
    ours = open_signer(server.folder / "data" / "keys")
    refused = {
        "changed": f"{head}.{claims[:-2]}AA.{signature}",
        "not of this text": f"{head}.{claims}.{'A' * 86}",
        "not among the keys": stranger.sign(claims_of(receipt)),
        "something else": ours.sign(claims_of(receipt), typ="JWT"),
        "does not say": ours.sign({"site": "default"}),
        "no receipt": "a letter",
    }
    for why, text in refused.items():
        told = verify_alone("--keys", keys, "-", given=text)
        assert told.returncode == 1 and why in json.loads(told.stdout)["why"], (why, told.stdout)
    none = "eyJhbGciOiJub25lIiwidHlwIjoicGFja2hvcnNlLXJlY2VpcHQrandzIn0"  # {"alg": "none", "typ": …}: never
    assert verify_alone("--keys", keys, "-", given=f"{none}.{claims}.").returncode == 1
    mixed = "\n".join([receipt, refused["changed"], receipt])
    told = verify_alone("--keys", keys, "-", "--quiet", given=mixed)
    assert told.returncode == 1 and "2 genuine, 1 refused" in told.stderr and len(told.stdout.splitlines()) == 1
    for unusable in ("/nowhere", str(image)):
        told = verify_alone("--keys", unusable, "-", given=receipt)
        assert told.returncode == 2 and "Traceback" not in told.stderr
    assert verify_alone("--keys", keys, "-", given="").returncode == 1
