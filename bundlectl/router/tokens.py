"""Whether an OIDC token (JWT, RFC 7519; RFC 8725) is believed, and whose it is.

A token is believed when a key of its issuer signed it with an algorithm that the bindings allow, it names this
audience, and now lies within its times. Nothing in the token chooses how it is judged: ``alg`` only picks among what
is allowed, and addresses of keys in it (``jku``, ``x5u``) are never looked at.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from bundlectl.model.bindings import TokenIssuer
from bundlectl.model.types import seconds
from bundlectl.router.identity import ANY, Identity, Stranger
from bundlectl.router.key_sets import KeySets, KeySource, PublicKey

MAX_TOKEN: Final = 16 * 1024
BELIEVED: Final = 4096
"""How many tokens that were verified are remembered, by their digests."""

MAX_CLAIMED: Final = 200
_SUBJECT: Final = re.compile(r"[!-~]{1,512}")
_CLAIMED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class _Believed:
    """A token that was verified: whose it is, until when, and by which state of its issuer's keys."""

    identity: Identity
    until: float
    issuer: _Issuer
    changes: int


class _Issuer:
    """An issuer's rules, compiled."""

    def __init__(self, bound: TokenIssuer, source: KeySource) -> None:
        self.bound = bound
        self.source = source
        self.leeway = seconds(bound.leeway)
        self.ttl = seconds(bound.keys_ttl)
        self.max_age = seconds(bound.keys_max_age)

    def outdated(self) -> bool:
        age = self.source.age()
        return age is None or age > self.max_age

    def judge(self, token: str, header: Mapping[str, Any]) -> tuple[Identity, float] | Stranger:
        """Give whose the token is and until when (seconds since 1970)."""
        algorithm = header.get("alg")
        if algorithm not in self.bound.algorithms:
            return Stranger("the token is signed in a way that is not allowed here")
        if "crit" in header:
            return Stranger("the token asks for an extension that is not known here")
        kid = header.get("kid")
        if self.outdated():
            return Stranger("the keys of the token's issuer cannot be fetched", later=True)
        keys = [key for key in self.source.keys if kid is None or key.kid == kid]
        if not keys:
            return Stranger("the token's key is not among its issuer's", later=self.source.failed)
        claims = self._claims(token, str(algorithm), [key for key in keys if algorithm in key.algorithms])
        if isinstance(claims, Stranger):
            return claims
        subject = claims["sub"]
        if not _SUBJECT.fullmatch(subject):
            return Stranger("the token's subject is not a name")
        for caller in self.bound.callers:
            if _fits(caller.subject, subject):
                identity = Identity(
                    f"{self.bound.id}:{subject}",
                    _claimable(caller.tenants, caller.tenants_claim, claims),
                    _claimable(caller.roles, caller.roles_claim, claims),
                    caller.may_pin is True,
                )
                return identity, float(claims["exp"]) + self.leeway
        return Stranger("the token's subject is not among the callers of this environment")

    def _claims(self, token: str, algorithm: str, keys: Sequence[PublicKey]) -> dict[str, Any] | Stranger:
        why = "the token's key is of another kind than its signature"
        for key in keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.key,
                    algorithms=[algorithm],
                    audience=self.bound.audience,
                    issuer=self.bound.issuer,
                    leeway=self.leeway,
                    options={"require": ["exp", "iss", "aud", "sub"]},
                )
            except jwt.InvalidSignatureError:
                why = "the token's signature is not its issuer's"
            except jwt.PyJWTError as error:
                return Stranger(_WHY.get(type(error), "the token is not a valid JWT"))
            else:
                return claims
        return Stranger(why)


_WHY: Final = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is of another issuer",
    jwt.MissingRequiredClaimError: "the token lacks exp, iss, aud or sub",
}


class Tokens:
    """Judges tokens by an environment's bindings."""

    def __init__(self, issuers: Sequence[TokenIssuer], key_sets: KeySets) -> None:
        self._issuers = [_Issuer(bound, key_sets.of(bound.issuer, bound.jwks)) for bound in issuers]
        self._believed: OrderedDict[bytes, _Believed] = OrderedDict()

    async def warm(self) -> None:
        """Ask for the keys of every issuer that were never fetched."""
        waits = [one.source.look(None, one.ttl, one.max_age) for one in self._issuers]
        await _all([wait for wait in waits if wait is not None])

    def look(self, token: str) -> Awaitable[None] | None:
        """Give what must be waited for before the token can be judged: a fetch of keys; ``None``: nothing."""
        held = self._believed.get(_digest(token))
        if held is not None:
            source = held.issuer.source
            return source.look(None, held.issuer.ttl, held.issuer.max_age)
        read = _read(token)
        if read is None:
            return None
        header, issuer = read
        kid = header.get("kid")
        waits = [
            found
            for one in self._issuers
            if one.bound.issuer == issuer
            and header.get("alg") in one.bound.algorithms
            and (found := one.source.look(kid if isinstance(kid, str) else None, one.ttl, one.max_age)) is not None
        ]
        return _all(waits) if waits else None

    def judge(self, token: str) -> Identity | Stranger:
        """Give whose token it is; one that was verified is believed until it expires or its issuer's keys change."""
        name = _digest(token)
        held = self._believed.get(name)
        if held is not None:
            if held.until > time.time() and held.changes == held.issuer.source.changes and not held.issuer.outdated():
                self._believed.move_to_end(name)
                return held.identity
            del self._believed[name]
        return self._verify(token, name)

    def still(self, was: Identity) -> Identity | None:
        """Give what the holder of a token that was verified before may claim now; see ``KnownIdentities.still``."""
        issuer, _, subject = was.name.partition(":")
        for one in self._issuers:
            if one.bound.id == issuer:
                for caller in one.bound.callers:
                    if _fits(caller.subject, subject):
                        tenants = was.tenants if caller.tenants is None else frozenset(caller.tenants)
                        roles = was.roles if caller.roles is None else frozenset(caller.roles)
                        return Identity(was.name, tenants, roles, caller.may_pin is True)
        return None

    def _verify(self, token: str, name: bytes) -> Identity | Stranger:
        read = _read(token)
        if read is None:
            return Stranger("it is neither an API key that is known here nor a JWT")
        header, issuer = read
        stranger = Stranger("the token's issuer is not among those of this environment")
        for one in self._issuers:
            if one.bound.issuer != issuer:
                continue
            found = one.judge(token, header)
            if isinstance(found, Stranger):
                stranger = found
                continue
            identity, until = found
            self._believed[name] = _Believed(identity, until, one, one.source.changes)
            if len(self._believed) > BELIEVED:
                self._believed.popitem(last=False)
            return identity
        return stranger


async def _all(waits: Sequence[Awaitable[None]]) -> None:
    for wait in waits:
        await wait


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read(token: str) -> tuple[dict[str, Any], object] | None:
    """Give header and issuer, unverified, to find the rules by; ``None``: it is no JWT."""
    if len(token) > MAX_TOKEN or token.count(".") != 2 or not token.isascii():
        return None
    try:
        unverified = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    kid = unverified["header"].get("kid")
    if kid is not None and not isinstance(kid, str):
        return None
    return unverified["header"], unverified["payload"].get("iss")


def _fits(pattern: str, subject: str) -> bool:
    """Say whether a subject has the form of a pattern, in time linear in both."""
    first, *rest = pattern.split("*")
    if not rest:
        return subject == pattern
    *middle, last = rest
    if not subject.startswith(first) or not subject.endswith(last) or len(subject) < len(first) + len(last):
        return False
    at, end = len(first), len(subject) - len(last)
    for part in middle:
        found = subject.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _claimable(
    named: Sequence[str] | None, path: str | Sequence[str] | None, claims: Mapping[str, Any]
) -> frozenset[str]:
    """Give what a caller may claim: what the bindings name, else what its token says. A token's ``*`` is no name."""
    if named is not None:
        return frozenset(named)
    value: Any = claims
    for step in [path] if isinstance(path, str) else path or []:
        value = value.get(step) if isinstance(value, Mapping) else None
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(one for one in listed[:MAX_CLAIMED] if isinstance(one, str) and _CLAIMED.fullmatch(one)) - {ANY}
