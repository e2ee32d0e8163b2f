"""Receipts: the server's signed word that it holds an image (contract §8). Owns the signing key.

A receipt is a compact JWS (RFC 7515), `alg: Ed25519` (RFC 9864). Any JOSE library verifies it offline.
"""

import json
import os
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from server.errors import RequestError
from server.filing import Inspection
from storage.records import AuditPosition, ImageRecord, SessionRecord, timestamp

ALGORITHMS = ["Ed25519", "EdDSA"]
"""What verifiers accept; we sign with the first."""


class Signer:
    """Signs with the one private key of this server."""

    def __init__(self, key: OKPKey) -> None:
        self._key = key
        self.kid = key.thumbprint()

    def public_jwk(self) -> dict[str, Any]:
        """The public key as a JWK (RFC 8037), with `kid`, `alg` and `use`."""
        return {**self._key.as_dict(private=False), "kid": self.kid, "alg": "Ed25519", "use": "sig"}

    def sign(self, claims: dict[str, Any]) -> str:
        """`claims` as a compact JWS."""
        header = {"alg": "Ed25519", "kid": self.kid, "typ": "packhorse-receipt+jws"}
        return jws.serialize_compact(header, json.dumps(claims, separators=(",", ":")), self._key, ALGORITHMS)


def open_signer(directory: Path) -> Signer:
    """The signer of a data directory; its key is made, 0600 and fsynced, when there is none."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in sorted(directory.glob("*.json")):
        return Signer(OKPKey.import_key(json.loads(path.read_text())))
    signer = Signer(OKPKey.generate_key("Ed25519"))
    partial = directory / ".new-key"
    descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(signer._key.as_dict(private=True), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / f"{signer.kid}.json")
    parent = os.open(directory, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)
    return signer


def session_claims(
    record: SessionRecord, image: ImageRecord, inspection: Inspection, position: AuditPosition
) -> dict[str, Any]:
    """What a session's receipt says: digests of its own file, size in bytes, image, time, place in the audit chain."""
    return {
        "session_id": record.session_id, "site": record.site, "file_sha256": inspection.sha256,
        "dataset_sha256": inspection.dataset_sha256, "size": inspection.size_bytes, "image_id": image.id,
        "sop_instance_uid": image.sop_instance_uid, "stored_at": timestamp(),
        "audit_seq": position.seq, "audit_hash": position.row_hash,
    }


def verify(receipt: str, public_jwks: list[dict[str, Any]]) -> dict[str, Any]:
    """The claims of a genuine receipt: a JWS, or the JSON that a server answered with it.

    RequestError `bad_request`, which tells apart what is no receipt, one of another server, and one that was changed.
    """
    text = _bare(receipt.strip())
    try:
        kid = jws.extract_compact(text.encode()).headers()["kid"]
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise RequestError("bad_request", "this is no receipt: neither a JWS nor JSON that holds one") from error
    if all(kid != key["kid"] for key in public_jwks):
        raise RequestError("bad_request", "this receipt was signed by another server, whose keys are not here")
    try:
        signed = jws.deserialize_compact(text, KeySet.import_key_set({"keys": public_jwks}), ALGORITHMS)
        claims = json.loads(signed.payload)
    except (JoseError, ValueError, KeyError) as error:
        raise RequestError("bad_request", "this receipt is not genuine: the signature is of another text") from error
    if not isinstance(claims, dict):
        raise RequestError("bad_request", "this receipt does not hold an object")
    return claims


def _bare(text: str) -> str:
    """The JWS in an answer such as `{"receipt": …}`, or in quotes; any other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    found = value.get("receipt") if isinstance(value, dict) else value
    return found if isinstance(found, str) else text
