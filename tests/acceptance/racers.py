"""Long-lived processes that promote at once: ``python -m tests.acceptance.racers REGISTRY PROCESSES ROUNDS``.

Each has its own context, imports nothing after the start, and waits at a barrier before each round. In every
second round they wait once more with their release made and signed and nothing written, so that all of them
rest on the same head; in the others they run as they like, and some see the winner and succeed it.

A line of JSON for each round: ``contended``, and for each process ``code``, ``serial`` and ``seconds``.
"""

from __future__ import annotations

import json
import multiprocessing
import secrets
import sys
import time
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from typing import Any

from bundlectl.actions.context import Context
from bundlectl.actions.promote import promote
from bundlectl.model.errors import BundlectlError
from bundlectl.storage import store as stores
from bundlectl.storage.store import Store
from tests.support.workspace import APP

WAIT = 60


class Gathering:
    """A store that waits for everybody before its first write of a contended round."""

    def __init__(self, store: Store, barrier: Barrier) -> None:
        self._store = store
        self._barrier = barrier
        self.contended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _gather(self) -> None:
        if self.contended:
            self.contended = False
            self._barrier.wait(WAIT)

    def create(self, key: str, data: bytes) -> str:
        self._gather()
        return self._store.create(key, data)

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        self._gather()
        return self._store.swap(key, data, expected)


def race(registry: str, me: int, rounds: int, barrier: Barrier, results: Any) -> None:
    """Promote once a round."""
    context = Context(
        registry_url=registry,
        clock=lambda: datetime.now(UTC),
        new_id=lambda: secrets.token_hex(12),
        environ={},
    )
    gathering = Gathering(stores.open_store(registry), barrier)
    stores.open_store = lambda _url: gathering  # type: ignore[assignment]
    for number in range(rounds):
        gathering.contended = number % 2 == 0
        barrier.wait(WAIT)
        started = time.perf_counter()
        code, serial, message = 0, 0, ""
        try:
            done = promote(context, f"{APP}:staging", environment="dev", reason=f"round {number}, racer {me}")
            serial = done.released.serial if done.released else 0
        except BundlectlError as error:
            code, message = error.exit_code, f"{error.what} {error.why}"
        seconds = time.perf_counter() - started
        results.put((number, {"racer": me, "code": code, "serial": serial, "seconds": seconds, "message": message}))
        barrier.wait(WAIT)


def main() -> None:
    """Run the race."""
    registry, processes, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(processes), fork.Queue()
    racers = [fork.Process(target=race, args=(registry, me, rounds, barrier, results)) for me in range(processes)]
    for racer in racers:
        racer.start()
    outcome: list[list[dict[str, Any]]] = [[] for _ in range(rounds)]
    for _ in range(rounds * processes):
        number, result = results.get(timeout=WAIT)
        outcome[number].append(result)
    for racer in racers:
        racer.join(WAIT)
    for number, one in enumerate(outcome):
        print(json.dumps({"contended": number % 2 == 0, "results": one}))
    sys.exit(any(racer.exitcode for racer in racers))


if __name__ == "__main__":
    main()
