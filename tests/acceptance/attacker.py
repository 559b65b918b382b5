"""An attacker who may write everything in a registry and has no key, beside a client that goes on asking.

Whatever ``tests.support.attacks`` does is prepared on a copy in memory and then written over the real registry,
heads last; and afterwards everything is put back as it was.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from bundlectl.registry.registry import Registry
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import KeyMissing, Store
from tests.acceptance.serving import Client
from tests.support.attacks import ATTACKS, put
from tests.support.world import World

REQUEST: dict[str, Any] = {
    "task": "answer",
    "user_role": "support_agent",
    "data_scope": [],
    "policy_profile": "plain",
}
"""What the world's bundle is asked, beside what every request carries."""


class Attacker:
    """Has the registry's store, and what stood in it before."""

    def __init__(self, world: World, store: Store) -> None:
        self._world = world
        self._store = store
        self._clock = world.clock
        self._keyring, self._policy = world.keyring, (world.policy, world.policy_document)
        self.before = {key: store.get(key).data for key in store.list("")}

    def attack(self, name: str) -> None:
        """Do one row of the table."""
        memory = MemoryStore()
        for key, data in self.before.items():
            memory.create(key, data)
        self._world.store, self._world.registry = memory, Registry(memory)
        self._world.clock, self._world.keyring = self._clock, self._keyring
        self._world.policy, self._world.policy_document = self._policy
        ATTACKS[name][1](self._world)
        self._write({key: memory.get(key).data for key in memory.list("")})

    def undo(self) -> None:
        """Put everything back."""
        self._write(self.before)

    def _write(self, wanted: dict[str, bytes]) -> None:
        """Make the registry hold exactly this. What nothing points to yet comes first."""
        there = set(self._store.list(""))
        for key in sorted(wanted, key=lambda key: key.endswith("head.json")):
            if key not in there or self._read(key) != wanted[key]:
                put(self._store, key, wanted[key])
        for key in there - set(wanted):
            self._store.delete(key)

    def _read(self, key: str) -> bytes | None:
        try:
            return self._store.get(key).data
        except KeyMissing:
            return None


class Asking:
    """A client that sends one request after another until told to stop; counts what it got."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._over = threading.Event()
        self.bundles: Counter[str] = Counter()
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                reply = self._client.ask(**REQUEST)
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
                continue
            if reply.status == 200:
                self.bundles[reply.json["release"]["bundle"]] += 1
            else:
                self.failed.append(f"{reply.status} {reply.text}")
            time.sleep(0.01)


def complaints(client: Client) -> str:
    """Give everything that the server complains of now."""
    [state] = client.get("/v1/releases").json["releases"]
    return " | ".join([state.get("last_error") or "", *state.get("alarms", [])])


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Say whether something held within some seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
