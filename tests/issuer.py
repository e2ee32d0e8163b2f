"""An OpenID Connect issuer as a peer: real discovery and keys over HTTP, keys that rotate, and outages."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

AUDIENCE = "packhorse"


class Issuer:
    """Serves from a thread of its own; `requests` counts who asked for what."""

    def __init__(self) -> None:
        self.keys: list[RSAKey | ECKey] = [RSAKey.generate_key(2048, {"kid": "first", "use": "sig"})]
        self.published: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.is_down = False
        self.names = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def rotate(self, kid: str, *, keeps: bool = False) -> None:
        """From now on sign with a new key; the old one is published on with `keeps`."""
        self.keys = [RSAKey.generate_key(2048, {"kid": kid, "use": "sig"}), *(self.keys if keeps else [])]

    def claims(self, **claims: Any) -> dict[str, Any]:
        """What a good JWT says; a claim that is None is left out."""
        moment = int(time.time())
        told = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "anna",
            "iat": moment,
            "exp": moment + 600,
            "packhorse_role": "uploader",
            **claims,
        }
        return {name: value for name, value in told.items() if value is not None}

    def token(self, key: Any = None, alg: str = "RS256", kid: str | None = "", **claims: Any) -> str:
        """A JWT, by default one that is good."""
        key = key or self.keys[0]
        header = {"alg": alg, "kid": key.kid if kid == "" else kid}
        header = {name: value for name, value in header.items() if value is not None}
        return jwt.encode(header, self.claims(**claims), key, [alg])

    def unsigned(self) -> str:
        """`alg: none` (RFC 8725 §2.1)."""
        return self._by_hand({"alg": "none"}, lambda _text: b"")

    def signed_with_the_public_key(self) -> str:
        """HMAC with the public key as its secret (RFC 8725 §2.1), which a library refuses to do."""
        secret = self.keys[0].as_pem(private=False)
        header = {"alg": "HS256", "kid": self.keys[0].kid}
        return self._by_hand(header, lambda text: hmac.digest(secret, text, hashlib.sha256))

    def _by_hand(self, header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
        parts = [_encoded(json.dumps(part).encode()) for part in (header, self.claims())]
        return ".".join([*parts, _encoded(sign(".".join(parts).encode()))])

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _open(self) -> None:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/keys", self._keys)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _discovery(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.is_down:
            return web.Response(status=500)
        return web.json_response({"issuer": self.names or self.url, "jwks_uri": f"{self.url}/keys"})

    async def _keys(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.is_down:
            return web.Response(status=500)
        return web.json_response({"keys": [*(key.as_dict(private=False) for key in self.keys), *self.published]})


def twin(key: RSAKey) -> RSAKey:
    """The same key without what it says that it is for: to sign what it must not sign."""
    said = key.as_dict(private=True)
    return RSAKey.import_key({name: value for name, value in said.items() if name not in ("use", "alg")})


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
