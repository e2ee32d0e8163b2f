"""Campaigns of the word that lets a clinic delete: damaged blobs, and receipts that strangers verify."""

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests import builders
from tests.alone import keys_file, verify_alone
from tests.campaigns.soundness import sound
from tests.server import Server, sha256, upload_metadata

ROOT = "/api/v1/upload-sessions"
BATCH = 50
"""Blobs that are damaged before `fsck` and `scrub` are asked to find them."""
ROTATIONS = 5


class Client:
    """One connection that is kept, for thousands of small calls."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http = requests.Session()
        self._http.headers.update(server.auth)

    def send(self, content: bytes) -> str:
        """A file with its session in one request, under an order of its own; gives the session's id."""
        metadata = {"filename": "a.bin", "radiology_order_id": order_of(content), "visit_id": "77"}
        answer = self._http.post(
            f"{self._server.url}/files",
            data=content,
            timeout=60,
            headers={
                "Tus-Resumable": "1.0.0",
                "Upload-Length": str(len(content)),
                "Content-Type": "application/offset+octet-stream",
                "Upload-Metadata": upload_metadata(checksum_sha256=sha256(content), **metadata),
            },
        )
        assert answer.status_code == 201 and answer.headers["Packhorse-Status"] == "SYNCED", answer.text
        found = self.listed(content)[0]
        assert found["checksum_sha256"] == sha256(content)
        return str(found["session_id"])

    def listed(self, content: bytes) -> list[dict[str, Any]]:
        """The sessions of a file, the newest first."""
        return list(self.get(f"{ROOT}/?radiology_order_id={order_of(content)}")["results"])

    def get(self, path: str) -> dict[str, Any]:
        """A GET that is answered."""
        answer = self._http.get(f"{self._server.url}{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def acknowledge(self, session: dict[str, Any], device: str) -> requests.Response:
        """`acknowledge/` of one device."""
        return self._http.post(
            f"{self._server.url}{ROOT}/{session['session_id']}/acknowledge/",
            json={"server_image_id": session["server_image_id"], "device_id": device},
            timeout=60,
        )


def order_of(content: bytes) -> str:
    """The order that a file is for."""
    return sha256(content)[:16]


@dataclass
class Stored:
    """A file at the server, and what was done to it there."""

    content: bytes
    session: dict[str, Any]
    acknowledged: bool
    damage: str = ""


def damaged_blobs(folder: Path, seed: int, count: int) -> int:
    """Blobs damaged by one bit, cut or removed, before and after the ACK, on two workers; none may be deleted for.

    Half are found by acknowledge/, the others by fsck or scrub; each is put right by sending the file again.
    """
    dice, ran = random.Random(seed), 0
    server = Server(folder, arguments=("--workers", "2")).start()
    try:
        while ran < count:
            batch = [_stored_and_damaged(server, dice) for _ in range(min(BATCH, count - ran))]
            asked = [one for one in batch if dice.random() < 0.5]
            for one in asked:
                _no_ack(server, one, seed)
            _found_by_commands(server, batch, seed)
            for one in batch:
                _no_ack(server, one, seed)
                _put_right(server, one, seed)
            ran += len(batch)
        sound(server)
        assert server.command("scrub", "--mib-per-s", "1000").returncode == 0, seed
    finally:
        server.stop()
    return ran


def _stored_and_damaged(server: Server, dice: random.Random) -> Stored:
    client = Client(server)
    content = _object(dice) if dice.random() < 0.5 else dice.randbytes(dice.randrange(2, 20_000))
    one = Stored(content, client.get(f"{ROOT}/{client.send(content)}/"), dice.random() < 0.5)
    if one.acknowledged:
        for device in ("tab1", "tab2"):
            assert client.acknowledge(one.session, device).json()["safe_to_delete_local"] is True
    path = _blob(server, content)
    one.damage = dice.choice(["bit", "cut", "removed"])
    if one.damage == "bit":
        changed = bytearray(content)
        changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
    elif one.damage == "cut":
        os.truncate(path, dice.randrange(len(content)))
    else:
        path.unlink()
    return one


def _object(dice: random.Random) -> bytes:
    """A DICOM object that nobody else has, with a private element of random bytes."""
    uid = f"1.2.826.0.1.{dice.randrange(10**20)}"
    private = builders.element(0x29, 0x1001, b"OB", dice.randbytes(2 * dice.randrange(1, 10_000)))
    return builders.part10(builders.identified(uid, private), sop_instance_uid=uid)


def _blob(server: Server, content: bytes) -> Path:
    digest = sha256(content)
    return server.folder / "data/blobs/sealed/site-default" / digest[:2] / digest


def _no_ack(server: Server, one: Stored, seed: int) -> None:
    """Neither acknowledge/, first or again, nor any answer after it."""
    for device in ("tab1", "tab2", "tab3", "tab1"):
        client = Client(server)  # a connection of its own: any worker
        refused = client.acknowledge(one.session, device)
        assert refused.status_code == 503 and refused.json()["code"] == "readback_failed", (seed, one.damage)
        assert "safe_to_delete_local" not in refused.json(), (seed, one.damage)
        _not_safe(client, one, device, seed)


def _not_safe(client: Client, one: Stored, device: str, seed: int) -> None:
    session_id = one.session["session_id"]
    shown = [client.get(f"{ROOT}/{session_id}/?device_id={device}"), client.get(f"{ROOT}/{session_id}/")]
    shown += client.listed(one.content)
    for answer in shown:
        assert answer["safe_to_delete_local"] is False, (seed, one.damage)
        assert "safe to delete" not in answer["status_text"], (seed, one.damage)


def _found_by_commands(server: Server, batch: list[Stored], seed: int) -> None:
    """fsck names every blob that is gone or cut, and scrub every one that is damaged; then no answer is safe."""
    told = server.command("fsck")
    named = set(re.findall(r"blob ([0-9a-f]{64}) of site default (?:is gone|has another size)", told.stdout))
    short = {sha256(one.content) for one in batch if one.damage != "bit"}
    assert named == short and told.returncode == (1 if short else 0), (seed, told.stdout)
    client = Client(server)
    for one in (one for one in batch if one.damage != "bit"):
        _not_safe(client, one, "tab1", seed)
    told = server.command("scrub", "--mib-per-s", "1000")
    named = set(re.findall(r"blob ([0-9a-f]{64}) of site default: ", told.stdout))
    assert named == {sha256(one.content) for one in batch} and told.returncode == 1, (seed, told.stdout)
    for one in batch:
        _not_safe(client, one, "tab1", seed)


def _put_right(server: Server, one: Stored, seed: int) -> None:
    client = Client(server)
    again = client.get(f"{ROOT}/{client.send(one.content)}/")
    assert again["supersedes"] == one.session["session_id"], seed
    assert _blob(server, one.content).read_bytes() == one.content, seed
    assert client.acknowledge(again, "tab1").json()["safe_to_delete_local"] is True, seed
    old = client.get(f"{ROOT}/{one.session['session_id']}/?device_id=tab1")
    assert old["safe_to_delete_local"] is one.acknowledged, seed


def receipts_of_strangers(folder: Path, seed: int, count: int) -> int:
    """Receipts under keys that rotate; a process that has nothing of ours verifies each, and no forgery."""
    dice, ran = random.Random(seed), 0
    server = Server(folder).start()
    try:
        client, receipts = Client(server), []
        for number in range(count):
            if number % max(1, count // ROTATIONS) == 1:
                assert server.command("keys", "rotate", "--reason", "the campaign").returncode == 0
            content = dice.randbytes(dice.randrange(1, 500)) + number.to_bytes(4, "big")
            session_id = client.send(content)
            path = f"{ROOT}/{session_id}" if dice.random() < 0.5 else (
                f"/api/v1/images/{client.get(f'{ROOT}/{session_id}/')['server_image_id']}")
            receipts.append(str(client.get(f"{path}/receipt")["receipt"]))
        keys = keys_file(server, folder / "jwks.json")
        (folder / "receipts.txt").write_text("\n".join(receipts))
        told = verify_alone("--keys", keys, "--quiet", str(folder / "receipts.txt"))
        assert told.returncode == 0 and f"{count} genuine, 0 refused" in told.stderr, (seed, told.stderr)
        assert len(set(receipts)) == count
        (folder / "forged.txt").write_text("\n".join(_forged(one, dice) for one in receipts))
        told = verify_alone("--keys", keys, "--quiet", str(folder / "forged.txt"))
        assert f"0 genuine, {count} refused" in told.stderr, (seed, told.stderr)
        ran = count
        sound(server)
    finally:
        server.stop()
    return ran


def _forged(receipt: str, dice: random.Random) -> str:
    """One sign of the claims or the signature is another; the last one of each holds bits that mean nothing."""
    parts = receipt.split(".")
    which = dice.randrange(1, 3)
    place = dice.randrange(len(parts[which]) - 1)
    others = [sign for sign in "ABCDEFGHabcdefgh01234567-_" if sign != parts[which][place]]
    parts[which] = parts[which][:place] + dice.choice(others) + parts[which][place + 1 :]
    return ".".join(parts)
