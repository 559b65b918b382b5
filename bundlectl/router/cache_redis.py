"""Answers kept in Redis, for all processes of an environment.

``bundlectl:{app:environment}:cache:<tenant>:<name>``, both keyed digests, with the time to live as expiry. The value is
sealed (AES-256-GCM) with a key that Redis never sees, bound to its name and to when it was kept: who reads Redis
learns how many answers of how many tenants there are, how long and since when; who writes to it can make nobody believe
an answer, nor move one to another question, nor make it live longer. While Redis is away nothing is found or kept.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bundlectl.router.cache import CompiledCaching, Place
from bundlectl.router.redis_link import RedisAway, RedisLink

_NONCE: Final = 12
_AT: Final = struct.Struct(">d")


class RedisCache:
    """The answers of one environment. ``on_event`` is told, once, that something in Redis is not of this router."""

    def __init__(self, link: RedisLink, app: str, environment: str, on_event: Callable[[str], None]) -> None:
        self._link = link
        self._prefix = f"bundlectl:{{{app}:{environment}}}:cache:"
        self._on_event = on_event
        self._told = False

    def get(self, caching: CompiledCaching, place: Place) -> Coroutine[Any, Any, bytes | None] | None:
        """Give what is kept there."""
        return self._found(caching, place) if self._link.up else None

    def put(self, caching: CompiledCaching, place: Place, data: bytes) -> None:
        """Keep it there, in place of what was."""
        self._link.later(self._kept(caching, place, data))

    async def _found(self, caching: CompiledCaching, place: Place) -> bytes | None:
        name = self._name(place)
        try:
            sealed = await self._link.call(self._link.client.get(name))
        except RedisAway:
            return None
        if not isinstance(sealed, bytes):
            return None
        head, body = sealed[: _AT.size + _NONCE], sealed[_AT.size + _NONCE :]
        try:
            data = AESGCM(caching.secret).decrypt(head[_AT.size :], body, head[: _AT.size] + name.encode())
        except (InvalidTag, ValueError):
            if not self._told:
                self._told = True
                self._on_event("the cache in Redis holds an entry that was not put there by this environment's routers")
            return None
        return data if abs(time.time() - _AT.unpack(head[: _AT.size])[0]) <= caching.ttl else None

    async def _kept(self, caching: CompiledCaching, place: Place, data: bytes) -> None:
        name, at, nonce = self._name(place), _AT.pack(time.time()), os.urandom(_NONCE)
        sealed = at + nonce + AESGCM(caching.secret).encrypt(nonce, data, at + name.encode())
        await self._link.call(self._link.client.set(name, sealed, px=max(1, int(caching.ttl * 1000))))

    def _name(self, place: Place) -> str:
        return f"{self._prefix}{place.tenant}:{place.name}"
