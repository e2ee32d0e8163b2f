"""Receipts: the server's signed word that it holds an image (contract §8). Owns the signing keys.

A receipt is a compact JWS (RFC 7515), `alg: Ed25519` (RFC 9864). Any JOSE library verifies it offline.

Facts: each key is a file of its own, never changed, that tells when it was made; the newest signs. A signer looks into
the folder at every signature, so a new key is taken up at once by every process, without a word between them. Before
a private key is there to sign with, its public one is a row: no receipt is ever out whose key is not published.
"""

import json
import os
from pathlib import Path
from typing import Any

import structlog
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from server.errors import AppError, RequestError
from server.filing import Inspection
from server.private_files import replace_durably
from storage.records import AuditPosition, ImageRecord, SessionRecord, timestamp

log = structlog.get_logger()
ALGORITHMS = ["Ed25519", "EdDSA"]
"""What verifiers accept; we sign with the first."""
CREATED_AT = "created_at"
"""A member of a private key's JWK, which RFC 7517 §4 leaves to us: when it was made."""


class Signer:
    """Signs with the newest private key of a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: frozenset[str] = frozenset()
        self._newest: tuple[str, OKPKey] | None = None

    @property
    def kid(self) -> str:
        """The id of the key that signs now (RFC 7638)."""
        return self._key()[0]

    def public_jwks(self) -> list[dict[str, Any]]:
        """The public key of every private one that is here, the one that signs last."""
        return [public_jwk(key) for key in _keys(self._directory)]

    def sign(self, claims: dict[str, Any], typ: str = "packhorse-receipt+jws") -> str:
        """`claims` as a compact JWS."""
        kid, key = self._key()
        header = {"alg": "Ed25519", "kid": kid, "typ": typ}
        return jws.serialize_compact(header, json.dumps(claims, separators=(",", ":")), key, ALGORITHMS)

    def _key(self) -> tuple[str, OKPKey]:
        names = frozenset(os.listdir(self._directory))  # noqa: PTH208 - a hundredth of what the signature costs
        if self._newest is None:
            self._take(_keys(self._directory), names)
        elif names != self._names:
            try:
                self._take(_keys(self._directory), names)
            except AppError as error:  # what is stored must get its receipt: the key from before is as good
                log.error("key.unreadable", reason=error.detail, signs=self._newest[0])
                self._names = names
        assert self._newest is not None, "open_signer made one, and what was read stays in memory"
        return self._newest

    def _take(self, keys: list[OKPKey], names: frozenset[str]) -> None:
        if keys:
            self._newest = keys[-1].thumbprint(), keys[-1]
        self._names = names


def public_jwk(key: OKPKey) -> dict[str, Any]:
    """The public key as a JWK (RFC 8037), with `kid`, `alg` and `use`."""
    public = {name: value for name, value in key.as_dict(private=False).items() if name != CREATED_AT}
    return {**public, "kid": key.thumbprint(), "alg": "Ed25519", "use": "sig"}


def new_key() -> OKPKey:
    """A key that tells when it was made."""
    values = OKPKey.generate_key("Ed25519").as_dict(private=True)
    return OKPKey.import_key({**values, CREATED_AT: timestamp()})


def keep_key(directory: Path, key: OKPKey) -> None:
    """Put a private key into the folder, 0600 and fsynced; it signs from now on."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_durably(directory / f"{key.thumbprint()}.json", json.dumps(key.as_dict(private=True)).encode())


def open_signer(directory: Path) -> Signer:
    """The signer of a folder of keys; one is made when there is none. AppError where a key cannot be read."""
    if not any(directory.glob("*.json")):
        keep_key(directory, new_key())
    return Signer(directory)


def _keys(directory: Path) -> list[OKPKey]:
    """The private keys of a folder, the newest last; those of the first releases tell no time."""
    found = [(_read_key(path), path.name) for path in directory.glob("*.json")]
    return [key for key, _ in sorted(found, key=lambda one: (str(one[0].as_dict().get(CREATED_AT, "")), one[1]))]


def _read_key(path: Path) -> OKPKey:
    try:
        return OKPKey.import_key(json.loads(path.read_text()))
    except OSError as error:
        raise AppError(f"the signing key {path} cannot be read: {error.strerror}") from error
    except (ValueError, JoseError) as error:
        raise AppError(f"{path} is no signing key: put the right file back, or take it away") from error


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


def image_claims(image: ImageRecord, verified_at: str, position: AuditPosition) -> dict[str, Any]:
    """What the receipt of an image without a session says; its bytes were read back at `verified_at`."""
    return {
        "site": image.site, "file_sha256": image.blob_sha256, "dataset_sha256": image.dataset_sha256,
        "size": image.size_bytes, "image_id": image.id, "sop_instance_uid": image.sop_instance_uid,
        "stored_at": image.stored_at, "verified_at": verified_at,
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
