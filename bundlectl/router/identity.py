"""Who is calling, and which tenants and roles they may claim."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bundlectl.model.bindings import ApiKey
from bundlectl.model.canonical import hex_of

if TYPE_CHECKING:
    from bundlectl.router.tokens import Tokens

ANY: Final = "*"
MAX_KEY = 512


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. ``tenants`` and ``roles`` are what it may claim; ``*`` among them is any.

    ``may_pin``: whether it may choose the bundle that answers it.
    """

    name: str
    tenants: frozenset[str]
    roles: frozenset[str]
    may_pin: bool = False

    def may_claim(self, tenant: str, role: str) -> bool:
        """Say whether a contract of this caller may name the tenant and the role."""
        return _holds(self.tenants, tenant) and _holds(self.roles, role)


LOCAL: Final = Identity("local", frozenset({ANY}), frozenset({ANY}), may_pin=True)
"""The caller on this machine: the command line, and loopback where no identities are configured."""


def _holds(claimable: frozenset[str], value: str) -> bool:
    return ANY in claimable or value in claimable


@dataclass(frozen=True, slots=True)
class Stranger:
    """Who calls is not known, and why. ``later``: it cannot be told now, as an issuer's keys are not to be had."""

    why: str
    later: bool = False


_NOTHING: Final = Stranger("it carries neither an API key nor a token")
_UNKNOWN: Final = Stranger("it carries no API key that is known here")


class KnownIdentities:
    """The identities of an environment's bindings: API keys, and where issuers are bound, OIDC tokens."""

    def __init__(self, keys: Sequence[ApiKey], tokens: Tokens | None = None) -> None:
        self.tokens = tokens
        self._keys = [
            (
                bytes.fromhex(hex_of(key.hash)),
                Identity(key.id, frozenset(key.tenants), frozenset(key.roles), key.may_pin is True),
            )
            for key in keys
        ]

    def __bool__(self) -> bool:
        return bool(self._keys) or self.tokens is not None

    async def warm(self) -> None:
        """Ask for the keys of every token issuer; one that is away stops nothing."""
        if self.tokens is not None:
            await self.tokens.warm()

    def look(self, presented: str | None) -> Awaitable[None] | None:
        """Give what must be waited for before :meth:`of` can tell; ``None``, as nearly always: nothing."""
        if self.tokens is None or not presented:
            return None
        return self.tokens.look(presented)

    def of(self, presented: str | None) -> Identity | Stranger:
        """Give whose an API key or token is.

        Without configured identities everyone is :data:`LOCAL`, which is why such a server stays on loopback.
        """
        if not self:
            return LOCAL
        if not presented:
            return _NOTHING
        found = self.of_key(presented) if self._keys else None
        if found is not None:
            return found
        return self.tokens.judge(presented) if self.tokens is not None else _UNKNOWN

    def still(self, was: Identity) -> Identity | None:
        """Give what a caller that was known before may claim now; ``None``: it is not known any more.

        For what is done later in its name. Rights that came out of a token's own claims are as they were.
        """
        if not self:
            return was
        key = next((identity for _, identity in self._keys if identity.name == was.name), None)
        if key is not None or self.tokens is None:
            return key
        return self.tokens.still(was)

    def of_key(self, presented: str | None) -> Identity | None:
        """Give the identity of an API key; every stored hash is compared, each in constant time."""
        if not self:
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
    """Give a request's API key or token: ``Authorization: Bearer …``, else ``x-api-key``. Names are in lower case."""
    other: str | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return rest.strip()
        elif name == b"x-api-key":
            other = value.decode("latin-1").strip()
    return other
