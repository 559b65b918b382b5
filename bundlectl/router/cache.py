"""Answers that are given again to the same question: off unless an environment's bindings switch it on.

An answer is found again only by who asks exactly the same of exactly the same: tool version, app, environment, bundle,
bindings, task, tenant, role, scopes, profile, latency class, format, the index snapshot that is searched now, and the
input as the input guard left it. All of it goes into one keyed digest (HMAC), so that who reads a store's names cannot
guess short questions. Identity, limits, access and the input guard come before. Kept is what was answered by the
route's first choice: no refusal, no error, nothing degraded, cut off or blocked. An entry dies by its time to live and
in no other way that can be counted on; so does what a document said that was erased meanwhile.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections import OrderedDict
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pydantic_core import from_json, to_json

from bundlectl import __version__
from bundlectl.inference.credentials import resolve_credential
from bundlectl.model.bindings import AnswerCaching
from bundlectl.model.contract import Citation, ReleaseRef
from bundlectl.model.errors import UsageError
from bundlectl.model.types import seconds

if TYPE_CHECKING:
    from bundlectl.router.assemble import World
    from bundlectl.router.record import Outcome
    from bundlectl.router.run import Run

Caching = Literal["use", "renew", "off"]
"""What a caller lets be done: ``renew`` looks nothing up and keeps the new answer, ``off`` neither."""

LARGEST: Final = 256 * 1024
"""Bytes of the largest answer that is kept."""

SHORTEST_KEY: Final = 16
_OVERHEAD: Final = 256


def caching_of(headers: Sequence[tuple[bytes, bytes]]) -> Caching:
    """Read ``Cache-Control`` (RFC 9111 section 5.2.1) of a request: ``no-store`` is off, ``no-cache`` renews."""
    found: Caching = "use"
    for name, value in headers:
        if name == b"cache-control":
            asked = {part.strip().lower() for part in value.split(b",")}
            if b"no-store" in asked:
                return "off"
            if b"no-cache" in asked:
                found = "renew"
    return found


@dataclass(frozen=True, slots=True)
class CompiledCaching:
    """One release's way of keeping answers. ``ttl`` in seconds; ``secret`` keys the names and what is kept."""

    ttl: float
    max_entries: int
    max_bytes: int
    secret: bytes
    base: tuple[str, ...]


def compile_caching(bound: AnswerCaching | None, ref: ReleaseRef, world: World) -> CompiledCaching | None:
    """Give the way of keeping answers that bindings ask for; it may wait for AWS, so not on the event loop.

    Raises:
        UsageError: the key is too short to be one.
        NotFound: the key is missing.
        BackendUnavailable: AWS cannot be reached for it.
    """
    if bound is None:
        return None
    material = world.input_key
    if bound.key is not None:
        material = resolve_credential(bound.key, world.environ).encode()
        if len(material) < SHORTEST_KEY:
            raise UsageError(
                f"The key of the cache at {bound.key} has fewer than {SHORTEST_KEY} characters.",
                why="Who reads the cache could guess it, and with it questions.",
                fix="Put a random value there, e.g. what `openssl rand -hex 32` prints.",
            )
    secret = hmac.digest(material, b"bundlectl cache", "sha256")
    base = (__version__, ref.app, ref.environment, ref.bundle, ref.bindings)
    return CompiledCaching(seconds(bound.ttl), bound.max_entries, bound.max_bytes, secret, base)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is kept: ``tenant`` is a keyed digest of its tenant, ``name`` of everything."""

    tenant: str
    name: str
    snapshot: str | None


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer that was kept, and the receipt of the request that it was made for."""

    receipt: str
    output: Any
    citations: list[Citation]
    route: str | None
    model: str | None


class AnswerCache(Protocol):
    """Who keeps answers."""

    def get(self, caching: CompiledCaching, place: Place) -> bytes | Coroutine[Any, Any, bytes | None] | None:
        """Give what is kept there."""
        ...

    def put(self, caching: CompiledCaching, place: Place, data: bytes) -> None:
        """Keep it there for the time to live; it does not wait."""
        ...


def look_up(run: Run) -> str | Awaitable[str | None] | None:
    """Give the answer that is kept, if there is one, and go to the receipt; gives something to wait for with Redis."""
    caching, cache = run.compiled.caching, run.shared.cache
    if caching is None or cache is None or run.caching == "off":
        return None
    place = run.place = place_of(run, caching)
    run.cache = "miss"
    if run.caching == "renew":
        return None
    found = cache.get(caching, place)
    if found is None or isinstance(found, bytes):
        return _taken(run, found)
    return _waited(run, found)


def keep(run: Run, outcome: Outcome) -> None:
    """Keep an answer that may be given again."""
    caching, cache, place, answer = run.compiled.caching, run.shared.cache, run.place, outcome.answer
    if caching is None or cache is None or place is None or run.hit is not None or answer is None:
        return
    if answer.refused is not None or answer.degraded is not None or answer.output is None or answer.cut:
        return
    if run.retrieval is not None and run.retrieval.snapshot != place.snapshot:
        return  # a followed index moved on in between
    data = to_json(
        {
            "receipt": run.id,
            "output": answer.output,
            "citations": [citation.form() for citation in answer.citations],
            "route": answer.route,
            "model": answer.model,
        }
    )
    if len(data) <= LARGEST:
        cache.put(caching, place, data)


def place_of(run: Run, caching: CompiledCaching) -> Place:
    """Give where the answer to a request is kept."""
    request, index = run.request, run.task.index
    snapshot = index.current().snapshot if index is not None else None
    asked = [
        *caching.base,
        request.task,
        request.tenant_id,
        request.user_role,
        sorted(set(request.data_scope)),
        request.policy_profile,
        request.latency_class,
        run.task.format,
        snapshot,
        run.input,
    ]
    data = json.dumps(asked, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    tenant = hmac.digest(caching.secret, b"tenant " + request.tenant_id.encode(), "sha256").hex()[:16]
    return Place(tenant, hmac.digest(caching.secret, data, "sha256").hex(), snapshot)


async def _waited(run: Run, getting: Coroutine[Any, Any, bytes | None]) -> str | None:
    return _taken(run, await getting)


def _taken(run: Run, data: bytes | None) -> str | None:
    if data is None:
        return None
    kept = from_json(data)
    citations = [Citation.model_validate(one) for one in kept["citations"]]
    run.hit = Hit(kept["receipt"], kept["output"], citations, kept["route"], kept["model"])
    run.cache, run.output, run.citations = "hit", kept["output"], citations
    run.route_why = f"kept from receipt {kept['receipt']}"
    return "receipt"


@dataclass(slots=True)
class _Entry:
    data: bytes
    size: int
    timer: asyncio.TimerHandle


class MemoryCache:
    """Answers in this process's memory, the least used forgotten first; texts leave it when their time is over."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, caching: CompiledCaching, place: Place) -> bytes | None:
        """Give what is kept there."""
        entry = self._entries.get(place.name)
        if entry is None:
            return None
        self._entries.move_to_end(place.name)
        return entry.data

    def put(self, caching: CompiledCaching, place: Place, data: bytes) -> None:
        """Keep it there, in place of what was."""
        self._forget(place.name)
        size = len(data) + len(place.name) + _OVERHEAD
        if size > caching.max_bytes:
            return
        timer = asyncio.get_running_loop().call_later(caching.ttl, self._forget, place.name)
        self._entries[place.name] = _Entry(data, size, timer)
        self._bytes += size
        while len(self._entries) > caching.max_entries or self._bytes > caching.max_bytes:
            self._forget(next(iter(self._entries)))

    def close(self) -> None:
        """Forget everything."""
        for name in list(self._entries):
            self._forget(name)

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.timer.cancel()
            self._bytes -= entry.size
