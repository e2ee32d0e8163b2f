"""Receipts: the server's signed word that it holds an image (contract §8). Owns the signing keys.

A receipt is a compact JWS (RFC 7515), `alg: Ed25519` (RFC 9864). Any JOSE library verifies it offline.

Facts: each key is a file of its own, never changed, that tells when it was made; the newest signs. A signer looks into
the folder at every signature, so a new key is taken up at once by every process, without a word between them. Before
a private key is there to sign with, its public one is a row: no receipt is ever out whose key is not published.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from server.errors import AppError, RequestError
from server.filing import Inspection
from server.private_files import replace_durably
from storage.records import AuditPosition, ImageRecord, SessionRecord, now, timestamp

log = structlog.get_logger()
ALGORITHMS = ["Ed25519", "EdDSA"]
"""What verifiers accept; we sign with the first."""
CREATED_AT = "created_at"
"""A member of a private key's JWK, which RFC 7517 §4 leaves to us: when it was made."""


class Signer:
    """Signs with the newest private key of a folder. What is no such key is named in the log, once, and passed over."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: frozenset[str] = frozenset()
        self._keys: dict[str, OKPKey] = {}
        self._newest: tuple[str, OKPKey] | None = None
        self._passed_over: set[str] = set()

    @property
    def kid(self) -> str:
        """The id of the key that signs now (RFC 7638)."""
        return self._key()[0]

    @property
    def made_at(self) -> datetime:
        """When the newest key was made, as it tells."""
        return _made_at(self._key()[1])

    def public_jwks(self) -> list[dict[str, Any]]:
        """The public key of every private one that is here, the one that signs last. AppError where none is good."""
        self._look(self._listed())
        return [public_jwk(key) for key in self._in_order()]

    def sign(self, claims: dict[str, Any], typ: str = "packhorse-receipt+jws") -> str:
        """`claims` as a compact JWS."""
        kid, key = self._key()
        header = {"alg": "Ed25519", "kid": kid, "typ": typ}
        return jws.serialize_compact(header, json.dumps(claims, separators=(",", ":")), key, ALGORITHMS)

    def genuine(self, text: str, published: list[dict[str, Any]]) -> dict[str, Any]:
        """The claims of a JWS that a `published` key signed, or one that is here. RequestError `bad_request`."""
        try:
            own = {jwk["kid"]: jwk for jwk in self.public_jwks()}
        except (AppError, OSError):  # those that are published are enough
            own = {}
        return verify(text, list({**own, **{jwk["kid"]: jwk for jwk in published}}.values()))

    def _key(self) -> tuple[str, OKPKey]:
        names = self._listed()
        if self._newest is None or names != self._names:
            try:
                self._look(names)
            except AppError as error:  # what is stored must get its receipt: the key from before is as good
                if self._newest is None:
                    raise
                log.error("key.unreadable", reason=error.detail, signs=self._newest[0])
        assert self._newest is not None, "there is a good one, or _look() raised"
        return self._newest

    def _listed(self) -> frozenset[str]:
        return frozenset(os.listdir(self._directory))  # noqa: PTH208 - a hundredth of what the signature costs

    def _look(self, names: frozenset[str]) -> None:
        """Read what is new: a key never changes. AppError where none is good."""
        self._names = names
        found, why = {}, f"{self._directory} holds no signing key: put one back from a backup"
        for name in names:
            if name.endswith(".json"):
                try:
                    found[name] = self._keys.get(name) or _read_key(self._directory / name)
                except AppError as error:
                    why = error.detail
                    if name not in self._passed_over:
                        self._passed_over.add(name)
                        log.error("key.passed_over", reason=why)
        if not found:
            raise AppError(why)
        self._keys = found
        newest = self._in_order()[-1]
        self._newest = newest.thumbprint(), newest

    def _in_order(self) -> list[OKPKey]:
        """The newest last; those of the first releases tell no time."""
        return [key for _, key in sorted(self._keys.items(), key=lambda one: (_made_at(one[1]), one[0]))]


def public_jwk(key: OKPKey) -> dict[str, Any]:
    """The public key as a JWK (RFC 8037), with `kid`, `alg` and `use`."""
    public = {name: value for name, value in key.as_dict(private=False).items() if name != CREATED_AT}
    return {**public, "kid": key.thumbprint(), "alg": "Ed25519", "use": "sig"}


def new_key(after: datetime | None = None) -> OKPKey:
    """A key that tells when it was made: later than `after`, when the newest was, whatever the clock says now."""
    values = OKPKey.generate_key("Ed25519").as_dict(private=True)
    moment = now() if after is None else max(now(), after + timedelta(milliseconds=1))
    return OKPKey.import_key({**values, CREATED_AT: timestamp(moment)})


def keep_key(directory: Path, key: OKPKey) -> None:
    """Put a private key into the folder, 0600 and fsynced; it signs from now on."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_durably(directory / f"{key.thumbprint()}.json", json.dumps(key.as_dict(private=True)).encode())


def open_signer(directory: Path) -> Signer:
    """The signer of a folder of keys; one is made when there is none."""
    if not any(directory.glob("*.json")):
        keep_key(directory, new_key())
    return Signer(directory)


def _made_at(key: OKPKey) -> datetime:
    """When a key was made, as it tells; the begin of time where it does not."""
    try:
        return datetime.fromisoformat(str(key.as_dict().get(CREATED_AT))).astimezone(UTC)
    except (ValueError, OverflowError):
        return _BEGIN


_BEGIN = datetime.min.replace(tzinfo=UTC)


def _read_key(path: Path) -> OKPKey:
    """A private key that signs what its public one verifies. AppError."""
    no_key = AppError(f"{path} is no signing key: put the right file back, or take it away")
    if not path.is_file():
        raise no_key
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or (values.get("kty"), values.get("crv")) != ("OKP", "Ed25519"):
            raise no_key
        key = OKPKey.import_key(values)
        signed = jws.serialize_compact({"alg": "Ed25519"}, b"", key, ALGORITHMS)
        jws.deserialize_compact(signed, OKPKey.import_key(public_jwk(key)), ALGORITHMS)
    except OSError as error:
        raise AppError(f"the signing key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, RecursionError, JoseError) as error:
        raise no_key from error
    return key


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
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError("bad_request", "this is no receipt: neither a JWS nor JSON that holds one") from error
    if all(kid != key["kid"] for key in public_jwks):
        raise RequestError("bad_request", "this receipt was signed by another server, whose keys are not here")
    try:
        signed = jws.deserialize_compact(text, KeySet.import_key_set({"keys": public_jwks}), ALGORITHMS)
        claims = json.loads(signed.payload)
    except (JoseError, ValueError, KeyError, RecursionError) as error:
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
