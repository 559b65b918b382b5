"""A token issuer on 127.0.0.1: discovery, keys that rotate, and scripted misbehaviour; and the tokens it signs."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.started import started

AUDIENCE = "bundlectl"


class FakeIdp:
    """``asked`` counts by path. ``fail``: a status to answer with; ``raw``: bytes in place of the key set."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: dict[str, int] = {"discovery": 0, "keys": 0}
        self.fail: int | None = None
        self.raw: bytes | None = None
        self.named: dict[str, Any] = {}
        self._private: dict[str, Any] = {}
        self.listed: list[dict[str, Any]] = []
        self.rotate("first")

    def rotate(self, kid: str, *, keep: bool = False, curve: ec.EllipticCurve | None = None) -> None:
        """Sign with a new key from now on; without ``keep`` the keys before are no longer listed."""
        key: Any = ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, 2048)
        maker: Any = jwt.algorithms.ECAlgorithm if curve else jwt.algorithms.RSAAlgorithm
        listed = json.loads(maker.to_jwk(key.public_key()))
        self._private[kid] = key
        self.listed = [*(self.listed if keep else []), {**listed, "kid": kid, "use": "sig"}]

    def public_pem(self, kid: str = "first") -> bytes:
        pem: bytes = self._private[kid].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def token(self, kid: str = "first", *, alg: str = "RS256", header: Any = None, **claims: Any) -> str:
        """Sign a token of ``agent-7``; a claim that is ``None`` is left out."""
        now = int(time.time())
        plain = {"iss": self.url, "aud": AUDIENCE, "sub": "agent-7", "iat": now, "exp": now + 300, "tenants": ["acme"]}
        made = {name: value for name, value in {**plain, **claims}.items() if value is not None}
        return jwt.encode(made, self._private[kid], alg, headers={"kid": kid, **(header or {})})

    async def _discovery(self, _: web.Request) -> web.Response:
        self.asked["discovery"] += 1
        if self.fail is not None:
            return web.Response(status=self.fail, text="secret-of-the-idp")
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.named})

    async def _keys(self, _: web.Request) -> web.Response:
        self.asked["keys"] += 1
        if self.fail is not None:
            return web.Response(status=self.fail, text="secret-of-the-idp")
        return web.Response(body=self.raw or json.dumps({"keys": self.listed}).encode())


@contextlib.asynccontextmanager
async def fake_idp() -> AsyncIterator[FakeIdp]:
    idp = FakeIdp()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", idp._discovery)
    app.router.add_get("/keys", idp._keys)
    async with started(app) as idp.url:
        yield idp
