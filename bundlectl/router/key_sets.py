"""The public keys of token issuers (JWKS, RFC 7517): fetched, kept, and asked for again when they change.

Keys outlive releases. Nobody waits for a fetch but the first request and one whose key is not known yet; a fetch
is made once for all who wait, and at most every :data:`UNKNOWN_KEY_PAUSE` seconds because of keys that nobody knows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from pydantic_core import from_json

from bundlectl.inference.client import HttpClient
from bundlectl.inference.http import read_capped
from bundlectl.inference.provider import ProviderError
from bundlectl.model.bindings import is_secure

MAX_KEY_SET: Final = 256 * 1024
MAX_KEYS: Final = 100
FETCH_SECONDS: Final = 5.0
UNKNOWN_KEY_PAUSE: Final = 30.0
FAILURE_PAUSE: Final = 5.0
DISCOVERY: Final = "/.well-known/openid-configuration"
RSA_BITS: Final = range(2048, 8193)
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
_PUBLIC: Final = ("kty", "kid", "n", "e", "crv", "x", "y")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, and the algorithms that it may verify."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any


class KeysUnavailable(Exception):
    """An issuer's keys could not be fetched; the message says why, and quotes nothing of the reply."""


def parse_key_set(data: bytes) -> tuple[PublicKey, ...]:
    """Read a JWKS; keys that cannot verify signatures (other uses, secrets, weak or unknown ones) are left out.

    Raises:
        KeysUnavailable: it is no JWKS, or holds more than :data:`MAX_KEYS` keys.
    """
    try:
        found = from_json(data)
    except ValueError as error:
        raise KeysUnavailable("its keys are not JSON") from error
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise KeysUnavailable("its keys are no JWKS")
    if len(listed) > MAX_KEYS:
        raise KeysUnavailable(f"it has more than {MAX_KEYS} keys")
    return tuple(key for one in listed if isinstance(one, dict) and (key := _public_key(one)) is not None)


def _public_key(listed: Mapping[str, Any]) -> PublicKey | None:
    operations = listed.get("key_ops")
    if listed.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    algorithms = _algorithms(listed)
    if not algorithms:
        return None
    try:
        # Its public half only, whatever else is listed.
        key = jwt.PyJWK({name: listed[name] for name in _PUBLIC if name in listed}, min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if listed.get("kty") == "RSA" and key.key_size not in RSA_BITS:
        return None
    kid = listed.get("kid")
    return PublicKey(kid if isinstance(kid, str) else None, algorithms, key)


def _algorithms(listed: Mapping[str, Any]) -> frozenset[str]:
    if listed.get("kty") == "RSA":
        able = _RSA
    else:
        named = _CURVES.get(str(listed.get("crv"))) if listed.get("kty") in ("EC", "OKP") else None
        able = frozenset({named}) if named else frozenset()
    only = listed.get("alg")
    return able if only is None else able & {str(only)}


class KeySource:
    """One issuer's keys. ``changes`` counts how often they became other ones. Used on one event loop."""

    def __init__(self, issuer: str, jwks: str | None, http: HttpClient | None, warn: Callable[[str], None]) -> None:
        self.keys: tuple[PublicKey, ...] = ()
        self.changes = 0
        self.failed = False
        self._issuer = issuer
        self._jwks = jwks
        self._http = http
        self._warn = warn
        self._raw = b""
        self._fetched: float | None = None
        self._tried: float | None = None
        self._task: asyncio.Task[None] | None = None

    def age(self) -> float | None:
        """Give the seconds since the keys were last fetched; ``None``: never."""
        return None if self._fetched is None else time.monotonic() - self._fetched

    def holds(self, kid: str | None) -> bool:
        """Say whether a key of that id is here; without an id, whether any is."""
        return any(kid is None or key.kid == kid for key in self.keys)

    def look(self, kid: str | None, ttl: float, max_age: float) -> Awaitable[None] | None:
        """Start a fetch where one is due; give it to be waited for where nothing can be judged without it."""
        age = self.age()
        missing = age is None or age > max_age or not self.holds(kid)
        if not missing and age is not None and age <= ttl:
            return None
        if self._task is not None and self._task.done():
            self._task = None
        if self._task is None and self._may_fetch(stale=age is None or age > ttl):
            self._tried = time.monotonic()
            self._task = asyncio.create_task(self._fetch())
        return asyncio.shield(self._task) if missing and self._task is not None else None

    async def close(self) -> None:
        """Give up a fetch that is under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def _may_fetch(self, *, stale: bool) -> bool:
        if self._tried is None:
            return True
        pause = FAILURE_PAUSE if self.failed else (0.0 if stale else UNKNOWN_KEY_PAUSE)
        return time.monotonic() - self._tried >= pause

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                raw = await self._read()
            if raw != self._raw:
                self.keys = parse_key_set(raw)
                self._raw = raw
                self.changes += 1
            self._fetched = time.monotonic()
            if self.failed:
                self.failed = False
                self._warn(f"the keys of the token issuer {self._issuer} can be fetched again")
        except (KeysUnavailable, TimeoutError) as error:
            if not self.failed:
                why = str(error) or f"no answer within {FETCH_SECONDS:g} seconds"
                self._warn(f"the keys of the token issuer {self._issuer} cannot be fetched: {why}")
            self.failed = True

    async def _read(self) -> bytes:
        if self._jwks is not None and self._jwks.startswith("file:"):
            return await asyncio.to_thread(_read_file, Path(self._jwks.removeprefix("file:")))
        where = self._jwks
        if where is None:
            document = await self._get(self._issuer.rstrip("/") + DISCOVERY)
            where = _jwks_uri(document, self._issuer)
        return await self._get(where)

    async def _get(self, url: str) -> bytes:
        if self._http is None:
            raise KeysUnavailable("no HTTP client was opened for it")
        try:
            response = await self._http.get(url, f"the token issuer {self._issuer}")
            try:
                if response.status != 200:
                    raise KeysUnavailable(f"HTTP {response.status}")
                data = await read_capped(response, MAX_KEY_SET)
            finally:
                response.release()
        except ProviderError as error:
            raise KeysUnavailable(error.why or error.what) from error
        if data is None:
            raise KeysUnavailable(f"the reply is larger than {MAX_KEY_SET} bytes")
        return data


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_SET + 1)
    except OSError as error:
        raise KeysUnavailable(f"{path}: {error.strerror}") from error
    if len(data) > MAX_KEY_SET:
        raise KeysUnavailable(f"{path} is larger than {MAX_KEY_SET} bytes")
    return data


def _jwks_uri(document: bytes, issuer: str) -> str:
    """Give the address of the keys (OpenID Connect Discovery 1.0, section 4.3: the document names its issuer)."""
    try:
        found = from_json(document)
    except ValueError as error:
        raise KeysUnavailable("its discovery document is not JSON") from error
    if not isinstance(found, dict) or found.get("issuer") != issuer:
        raise KeysUnavailable("its discovery document is another issuer's")
    uri = found.get("jwks_uri")
    if not isinstance(uri, str) or not is_secure(uri):
        raise KeysUnavailable("its discovery document names no https address of keys")
    return uri


class KeySets:
    """The key sources of a process, by issuer and address."""

    def __init__(self, http: HttpClient | None = None, warn: Callable[[str], None] = lambda _: None) -> None:
        self._http = http
        self._warn = warn
        self._sources: dict[tuple[str, str | None], KeySource] = {}

    def of(self, issuer: str, jwks: str | None) -> KeySource:
        """Give an issuer's source: the same one for every release."""
        found = self._sources.get((issuer, jwks))
        if found is None:
            found = self._sources[issuer, jwks] = KeySource(issuer, jwks, self._http, self._warn)
        return found

    async def close(self) -> None:
        """Give up every fetch."""
        for source in self._sources.values():
            await source.close()
