"""Who is calling, and which tenants and roles they may claim."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bundlectl.model.bindings import ApiKey
from bundlectl.model.canonical import hex_of

ANY: Final = "*"
MAX_KEY = 512


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. ``tenants`` and ``roles`` are what it may claim; ``*`` among them is any."""

    name: str
    tenants: frozenset[str]
    roles: frozenset[str]

    def may_claim(self, tenant: str, role: str) -> bool:
        """Say whether a contract of this caller may name the tenant and the role."""
        return _holds(self.tenants, tenant) and _holds(self.roles, role)


LOCAL: Final = Identity("local", frozenset({ANY}), frozenset({ANY}))
"""The caller on this machine: the command line, and loopback where no identities are configured."""


def _holds(claimable: frozenset[str], value: str) -> bool:
    return ANY in claimable or value in claimable


class KnownIdentities:
    """The identities of an environment's bindings."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [
            (bytes.fromhex(hex_of(key.hash)), Identity(key.id, frozenset(key.tenants), frozenset(key.roles)))
            for key in keys
        ]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def of_key(self, presented: str | None) -> Identity | None:
        """Give the identity of an API key; every stored hash is compared, each in constant time.

        Without configured identities everyone is :data:`LOCAL`, which is why such a server stays on loopback.
        """
        if not self._keys:
            return LOCAL
        if not presented or len(presented) > MAX_KEY:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found: Identity | None = None
        for held, identity in self._keys:
            if hmac.compare_digest(held, digest):
                found = identity
        return found


def presented_key(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Give the API key of a request: ``Authorization: Bearer …``, else ``x-api-key``. Names are in lower case."""
    other: str | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return rest.strip()
        elif name == b"x-api-key":
            other = value.decode("latin-1").strip()
    return other
