"""Threads that take turns, in an order that a seed decides: the same seed gives the same run.

One thread runs at a time. It gives its turn away at each call of its store and whenever it sleeps; time is what
the turns make of it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from bundlectl.storage.store import Store, Stored, Tag

STEP = 0.01
"""Seconds of the clock that a turn takes."""


class Turns:
    """The order of the turns, and the clock.

    Args:
        choice: decides who is next.
        tick: called at the start of each turn, by whoever has it.
    """

    def __init__(self, choice: random.Random, tick: Callable[[], None] = lambda: None) -> None:
        self.clock = 0.0
        self._choice = choice
        self._tick = tick
        self._waiting: dict[int, float] = {}
        self._signals: dict[int, threading.Semaphore] = {}
        self._me = threading.local()
        self._over = threading.Semaphore(0)
        self._failed: list[BaseException] = []

    def run(self, works: list[Callable[[], None]]) -> None:
        """Do the works, each in a thread; raise the first exception that one of them let out."""
        threads = [threading.Thread(target=self._work, args=(number, work)) for number, work in enumerate(works)]
        for number, thread in enumerate(threads):
            self._waiting[number] = 0.0
            self._signals[number] = threading.Semaphore(0)
            thread.start()
        self._next()
        self._over.acquire()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def sleep(self, seconds: float = 0.0) -> None:
        """Give the turn away, and take none before the time is over. Outside of ``run`` only the clock moves."""
        me = getattr(self._me, "number", None)
        if me is None:
            self.clock += seconds
            return
        self._waiting[me] = self.clock + seconds
        if self._next() != me:
            self._signals[me].acquire()
        self._tick()

    def monotonic(self) -> float:
        """Read the clock, in seconds."""
        return self.clock

    def _work(self, number: int, work: Callable[[], None]) -> None:
        self._me.number = number
        self._signals[number].acquire()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by run
            self._failed.append(error)
        finally:
            self._next()

    def _next(self) -> int | None:
        """Wake who is next; None if nobody is left. Who calls it and is next itself goes on without waiting."""
        self.clock += STEP
        if not self._waiting:
            self._over.release()
            return None
        ready = [number for number, wakes in self._waiting.items() if wakes <= self.clock]
        if not ready:
            self.clock = min(self._waiting.values())
            ready = [number for number, wakes in self._waiting.items() if wakes <= self.clock]
        number = self._choice.choice(sorted(ready))
        del self._waiting[number]
        if number != getattr(self._me, "number", None):
            self._signals[number].release()
        return number


class InTurns:
    """Implements ``Store`` on top of another; each call takes a turn."""

    def __init__(self, store: Store, turns: Turns) -> None:
        self.url = store.url
        self._store = store
        self._turns = turns

    def get(self, key: str) -> Stored:
        """See ``Store.get``."""
        self._turns.sleep()
        return self._store.get(key)

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """See ``Store.get_if_changed``."""
        self._turns.sleep()
        return self._store.get_if_changed(key, tag)

    def create(self, key: str, data: bytes) -> Tag:
        """See ``Store.create``."""
        self._turns.sleep()
        return self._store.create(key, data)

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``."""
        self._turns.sleep()
        return self._store.swap(key, data, expected)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See ``Store.list``."""
        self._turns.sleep()
        return self._store.list(prefix, after)

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self._turns.sleep()
        self._store.delete(key)


class AtOnce:
    """In place of the pool that reads ahead: what is begun is done by whoever has the turn."""

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Do it, and keep what came of it."""
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - kept for whoever asks for the result, as a pool does
            done.set_exception(error)
        return done
