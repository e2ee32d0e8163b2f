"""Tells whether receipts of a Packhorse server are genuine, and whether files are the ones that they speak of.

Needs nothing of Packhorse: only Python 3.11 or newer and the JOSE library joserfc (pip install joserfc).

    curl https://packhorse.example/.well-known/jwks.json > jwks.json       # once, and kept in a safe place
    python verify_receipt.py --keys jwks.json RECEIPT.json
    python verify_receipt.py --keys jwks.json RECEIPT.json --file image.dcm

A receipt is a JWS (RFC 7515) signed with Ed25519 (RFC 9864): the text itself, or the JSON that the server answered. A
file of receipts holds one a line; - is the standard input. For each one a line of JSON is printed: what it says, or why
it is refused. With --file the file must have the receipt's size and SHA-256; a DICOM file whose file meta information
was written anew on its way (as C-STORE does) may have its data set's SHA-256 instead.

Exit status: 0 all are genuine, 1 at least one is not, 2 it could not be told.
"""

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

ALGORITHMS = ["Ed25519", "EdDSA"]  # the second is the name of before RFC 9864
TYPE = "packhorse-receipt+jws"
NEEDED = ("site", "file_sha256", "size", "image_id", "stored_at", "audit_seq", "audit_hash")
READ_BYTES = 1024 * 1024


class Refused(Exception):
    """A receipt that is not what it should be; the message says why."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("receipts", nargs="+", help="files of receipts, or - for the standard input")
    parser.add_argument("--keys", required=True, help="the server's JWK Set, a file")
    parser.add_argument("--file", help="a file that must be the one the receipts speak of")
    parser.add_argument("--quiet", action="store_true", help="print the refused ones and the counts only")
    asked = parser.parse_args()
    try:
        keys = read_keys(Path(asked.keys))
        texts = [text for name in asked.receipts for text in read_receipts(name)]
        digests = file_digests(Path(asked.file)) if asked.file else None
    except (OSError, ValueError, JoseError) as error:
        print(f"it cannot be told: {error}", file=sys.stderr)
        return 2
    refused = 0
    for text in texts:
        try:
            claims = verify(text, keys)
            if digests is not None:
                check_file(claims, digests)
        except Refused as error:
            refused += 1
            print(json.dumps({"genuine": False, "why": str(error)}))
        else:
            if not asked.quiet:
                print(json.dumps({"genuine": True, **claims}))
    print(f"{len(texts) - refused} genuine, {refused} refused", file=sys.stderr)
    return 1 if refused or not texts else 0


def read_keys(path: Path) -> KeySet:
    """The keys of a JWK Set (RFC 7517 §5), as the server gives them at /.well-known/jwks.json."""
    values = json.loads(path.read_text())
    if not isinstance(values, dict) or not isinstance(values.get("keys"), list):
        raise ValueError(f"{path} is no JWK Set")
    return KeySet.import_key_set({"keys": values["keys"]})


def read_receipts(name: str) -> Iterator[str]:
    """The receipts of a file: one JSON answer over any number of lines, or one receipt a line."""
    content = sys.stdin.read() if name == "-" else Path(name).read_text()
    try:
        json.loads(content)
    except ValueError:
        yield from (line.strip() for line in content.splitlines() if line.strip())
    else:
        yield content.strip()


def bare(text: str) -> str:
    """The JWS in an answer such as {"receipt": …}, or in quotes; any other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    found = value.get("receipt") if isinstance(value, dict) else value
    return found if isinstance(found, str) else text


def verify(text: str, keys: KeySet) -> dict[str, Any]:
    """What a genuine receipt says. Refused."""
    compact = bare(text).encode()
    try:
        header = jws.extract_compact(compact).headers()
    except (JoseError, ValueError, TypeError) as error:
        raise Refused("this is no receipt") from error
    if header.get("typ") != TYPE:
        raise Refused("this was signed as something else than a receipt")
    kid = header.get("kid")
    if not isinstance(kid, str) or all(key.kid != kid for key in keys.keys):
        raise Refused("the key that signed this is not among the keys: of another server, or newer than your copy")
    try:
        signed = jws.deserialize_compact(compact, keys, ALGORITHMS)
        claims = json.loads(signed.payload)
    except (JoseError, ValueError, KeyError) as error:
        raise Refused("the signature is not of this text: it was changed, or made up") from error
    if not isinstance(claims, dict) or any(name not in claims for name in NEEDED):
        raise Refused("it is signed, but does not say what a receipt says")
    return claims


def check_file(claims: dict[str, Any], digests: dict[str, Any]) -> None:
    """Whether the file is the one of the receipt, byte for byte or as the same DICOM data set. Refused."""
    if (claims["size"], claims["file_sha256"]) == (digests["size"], digests["file_sha256"]):
        return
    dataset = claims.get("dataset_sha256")
    if dataset is None or dataset != digests["dataset_sha256"]:
        raise Refused("the receipt is genuine, but speaks of another file")


def file_digests(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, and of its data set where it is DICOM Part 10."""
    whole, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        dataset, meta_end = _dataset_digest(file.read(READ_BYTES))
        file.seek(0)
        while chunk := file.read(READ_BYTES):
            whole.update(chunk)
            if dataset is not None:
                dataset.update(chunk[max(0, meta_end - size):])
            size += len(chunk)
    return {"size": size, "file_sha256": whole.hexdigest(),
            "dataset_sha256": dataset.hexdigest() if dataset is not None else None}


def _dataset_digest(head: bytes) -> "tuple[hashlib._Hash | None, int]":
    """A digest that has seen the transfer syntax and a zero, and where the data set begins; None for no DICOM.

    The file meta information (PS3.10 §7.1) is explicit little endian, whatever comes after it; its first element,
    (0002,0000), tells its length.
    """
    if head[128:132] != b"DICM" or head[132:138] != b"\2\0\0\0UL":
        return None, 0
    position = 144
    end = position + struct.unpack_from("<I", head, 140)[0]
    while position + 8 <= min(end, len(head)):
        group, number, vr, length = struct.unpack_from("<HH2sH", head, position)
        position += 8
        if vr in (b"OB", b"OW", b"UN", b"SQ", b"UT"):
            if position + 4 > len(head):
                break
            (length,) = struct.unpack_from("<I", head, position)
            position += 4
        if (group, number) == (2, 0x10):
            return hashlib.sha256(head[position : position + length].rstrip(b"\0 ") + b"\0"), end
        position += length
    return None, 0


if __name__ == "__main__":
    sys.exit(main())
