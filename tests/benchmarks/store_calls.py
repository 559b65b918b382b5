"""How many calls a verb makes to its store, and how many of them one after the other.

Every call is made late by a little, so that calls made side by side overlap in time: the depth is the longest
run of calls of which none began before the one before it had ended. On S3 each is a round trip. Listing more
than 1,000 keys counts as one call for each 1,000, as there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from bundlectl.actions.context import Context
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import status
from bundlectl.model.keyring import Gate
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Store, Stored, Tag
from bundlectl.trust.signers import Signer
from tests.benchmarks.measure import Effort, Result
from tests.support.world import World, default_gates, signer

T = TypeVar("T")
LATE = 0.001
PAGE = 1000
HOPED = {
    "promote": (14, 8),
    "rollback": (8, 6),
    "cold resolve": (5, 4),
    "unchanged poll": (1, 1),
}
"""Calls and depth that DESIGN section 15 allows each."""


class CountingStore:
    """A store whose calls are counted, late by a little."""

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self.calls: list[tuple[str, float, float]] = []
        self._store = store
        self._lock = threading.Lock()

    def _call(self, name: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        time.sleep(LATE)
        try:
            return call()
        finally:
            with self._lock:
                self.calls.append((name, began, time.perf_counter()))

    def get(self, key: str) -> Stored:
        return self._call("get", lambda: self._store.get(key))

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        return self._call("get_if_changed", lambda: self._store.get_if_changed(key, tag))

    def create(self, key: str, data: bytes) -> Tag:
        return self._call("create", lambda: self._store.create(key, data))

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        return self._call("swap", lambda: self._store.swap(key, data, expected))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        keys = iter(self._store.list(prefix, after))
        while True:
            page = self._call("list", lambda: [key for _, key in zip(range(PAGE), keys, strict=False)])
            yield from page
            if len(page) < PAGE:
                return

    def delete(self, key: str) -> None:
        self._call("delete", lambda: self._store.delete(key))

    def take(self) -> tuple[int, int]:
        """Give calls and depth since the last time."""
        calls, self.calls = self.calls, []
        depth, free = 0, 0.0
        for _, began, ended in sorted(calls, key=lambda call: call[2]):
            if began >= free:
                depth, free = depth + 1, ended
        return len(calls), depth


@dataclass
class Keyed(Context):
    """A context that signs with the world's keys."""

    def signer(self, role: str) -> Signer:
        return signer(role)


def registry_with(releases: int, folder: Path | None = None) -> World:
    """Make a registry with that many releases in prod, each of a bundle of its own. prod asks for all evidence."""
    gates = {**default_gates(), "prod": default_gates()["prod"].model_copy(update={"expires_after": "90d"})}
    assert isinstance(gates["prod"], Gate)
    world = World(DirectoryStore(folder) if folder else MemoryStore(), gates=gates)
    if folder is not None:
        world.clock = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)  # read by the wall clock
    for n in range(releases):
        world.promote("prod", world.bundle(f"v{n}"))
    return world


def store_calls(effort: Effort) -> list[Result]:
    few, many = 10, effort.of(1_000, 10_000)
    counted = {releases: _counts(releases) for releases in (few, many)}
    results = []
    for name in counted[few]:
        hoped = HOPED.get(name)
        for part, what in enumerate(("calls", "depth")):
            ours, against = counted[many][name][part], counted[few][name][part]
            note = f"with {many:,} releases, against {few}"
            if hoped is not None:
                note += f"; hoped for: <= {hoped[part]}"
            results.append(Result(f"store {what}, {name}", ours, against, ours / against, what, note))
    return results


def _counts(releases: int) -> dict[str, tuple[int, int]]:
    world = registry_with(releases)
    fresh = world.bundle("the next")
    store = CountingStore(world.store)
    found: dict[str, tuple[int, int]] = {}

    def context() -> Context:
        """A new command: nothing is remembered of the one before."""
        ctx = Keyed("memory:", world.now, lambda: "id", environ={"BUNDLECTL_PIN": world.pin})
        ctx.__dict__["registry"] = Registry(store)
        return ctx

    status(context(), None)
    found["status"] = store.take()
    promote(context(), f"support@{fresh.digest}", environment="prod", reason="measured")
    found["promote"] = store.take()
    rollback(context(), "support:prod", reason="measured")
    found["rollback"] = store.take()
    found |= asyncio.run(_resolve(world, store))
    return found


async def _resolve(world: World, store: CountingStore) -> dict[str, tuple[int, int]]:
    async def prepare(verified: VerifiedBundle) -> VerifiedBundle:
        return verified

    resolver = Resolver(Registry(store), "support", "prod", world.pin, prepare, clock=world.now, poll=3600)
    await resolver.start()
    try:
        cold = store.take()
        await resolver.poll_now()
        return {"cold resolve": cold, "unchanged poll": store.take()}
    finally:
        await resolver.stop()
