"""Signatures of webhooks (Standard Webhooks 1.0): id, timestamp and body under HMAC-SHA-256. Pure."""

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"


def key_of(secret: str) -> bytes:
    """The key that a secret stands for: `whsec_` and base64, or any other text as it is. ValueError."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("after whsec_ comes base64") from error


def signed_headers(secret: str, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The header fields that a receiver verifies; `timestamp_s` counts from 1970. An empty secret signs nothing."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp_s)}
    if not secret:
        return headers
    content = f"{message_id}.{timestamp_s}.".encode() + body
    signature = base64.b64encode(hmac.digest(key_of(secret), content, hashlib.sha256)).decode()
    return {**headers, "webhook-signature": f"v1,{signature}"}
