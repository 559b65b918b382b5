"""A store that fails as told: the layer under which claims about crashes and lost replies are proved.

``FaultyStore`` asks its plan before every call. A plan is a function of the call alone, so the same plan and
the same calls give the same faults; ``seeded`` makes plans from a seed.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from bundlectl.model.errors import BundlectlError
from bundlectl.storage.store import OutcomeUnknown, Store, Stored, StoreUnavailable, Tag

Reply = TypeVar("Reply")

WRITES = frozenset({"create", "swap", "delete"})
METHODS = frozenset({"get", "get_if_changed", "list"}) | WRITES


class FaultKind(StrEnum):
    """What happens to one call. A kind that has no meaning for a method lets it pass."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL_BEFORE = "fail_before"
    """The store is never asked: ``StoreUnavailable``."""
    FAIL_AFTER = "fail_after"
    """The store did it and the reply is lost: ``OutcomeUnknown`` for writes, ``StoreUnavailable`` for reads."""
    DELAY = "delay"
    """It is done ``seconds`` late."""
    CUT = "cut"
    """Reads give only the first ``keep`` of the bytes, under the whole object's tag."""
    DUPLICATE = "duplicate"
    """A write is sent twice and the second reply counts, as when a client retries by itself."""
    FULL = "full"
    """Writes fail with ENOSPC as their cause: ``StoreUnavailable``."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    kind: FaultKind
    seconds: float = 0.01
    """How late a DELAY is."""
    keep: float = 0.5
    """Which share of the bytes a CUT leaves, in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as a plan sees it."""

    number: int
    """How many calls this store took before, of any kind."""
    method: str
    key: str
    """The key, or the prefix of ``list``."""
    nth: int
    """How many calls of this method with this key came before. Unlike ``number``, threads do not change it."""


Plan = Callable[[Call], Fault]


class Crash(BaseException):
    """The process is dead from here on. Not an ``Exception``, so that no handler of the code under test runs."""


def no_faults(call: Call) -> Fault:
    """Let every call pass."""
    return Fault(FaultKind.PASS)


def scripted(faults: Mapping[int, FaultKind | Fault]) -> Plan:
    """Make the plan that gives the call of each number its fault, and lets the others pass."""
    return lambda call: _as_fault(faults.get(call.number, FaultKind.PASS))


def once(method: str, key: str, fault: FaultKind | Fault, *, nth: int = 0) -> Plan:
    """Make the plan that strikes one call: the ``nth`` (from 0) of a method with a key."""
    return lambda call: _as_fault(fault if (call.method, call.key, call.nth) == (method, key, nth) else FaultKind.PASS)


def seeded(
    seed: int, rates: Mapping[FaultKind, float], *, methods: Collection[str] = METHODS, seconds: float = 0.001
) -> Plan:
    """Make the plan that strikes at random, the same for the same seed, in whatever order threads call.

    Args:
        seed: which of all such plans.
        rates: the probability of each kind; the rest passes.
        methods: the methods that may be struck.
        seconds: how late a DELAY is.
    """
    kinds = sorted(rates)
    weights = [rates[kind] for kind in kinds]
    if min(weights, default=0.0) < 0 or sum(weights) > 1 + 1e-9:
        raise ValueError(f"rates must be probabilities that sum to at most 1, not {dict(rates)}")

    def plan(call: Call) -> Fault:
        if call.method not in methods:
            return Fault(FaultKind.PASS)
        draw = random.Random(f"{seed}/{call.method}/{call.key}/{call.nth}")  # noqa: S311 - repeatable on purpose
        [kind] = draw.choices([*kinds, FaultKind.PASS], [*weights, max(0.0, 1 - sum(weights))])
        return Fault(kind, seconds=seconds, keep=draw.random())

    return plan


class FaultyStore:
    """Implements ``Store`` on top of another, and counts what it was asked.

    Args:
        store: what holds the objects.
        plan: what to do to each call.
        sleep: how a DELAY waits; takes seconds.
    """

    def __init__(self, store: Store, plan: Plan = no_faults, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url = store.url
        self.counts: Counter[str] = Counter()
        """Calls per method, struck ones too."""
        self.calls: list[tuple[str, str]] = []
        """Each call's method and key, in order."""
        self._store = store
        self._plan = plan
        self._sleep = sleep
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._writes = 0
        self._crash_at: int | None = None
        self._dead = False

    @property
    def writes(self) -> int:
        """How many write calls there were."""
        return self._writes

    def crash_after(self, writes: int) -> None:
        """Raise ``Crash`` once that many more writes were done (0: instead of the next), and ever after.

        A write that failed counts too. The objects live on in the store underneath, for whoever comes next.
        """
        with self._lock:
            self._crash_at = self._writes + writes

    def get(self, key: str) -> Stored:
        """See ``Store.get``."""
        fault = self._begin("get", key)
        return _cut(self._read(fault, lambda: self._store.get(key)), fault)

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """See ``Store.get_if_changed``."""
        fault = self._begin("get_if_changed", key)
        stored = self._read(fault, lambda: self._store.get_if_changed(key, tag))
        return None if stored is None else _cut(stored, fault)

    def create(self, key: str, data: bytes) -> Tag:
        """See ``Store.create``."""
        return self._write("create", key, lambda: self._store.create(key, data))

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``."""
        return self._write("swap", key, lambda: self._store.swap(key, data, expected))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See ``Store.list``; faults strike at the call, not between keys."""
        return self._read(self._begin("list", prefix), lambda: self._store.list(prefix, after))

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self._write("delete", key, lambda: self._store.delete(key))

    def _begin(self, method: str, key: str) -> Fault:
        with self._lock:
            self._raise_if_dead()
            if method in WRITES:
                if self._writes == self._crash_at:
                    self._dead = True
                    self._raise_if_dead()
                self._writes += 1
            call = Call(len(self.calls), method, key, self._seen[method, key])
            self._seen[method, key] += 1
            self.counts[method] += 1
            self.calls.append((method, key))
            fault = self._plan(call)
        if fault.kind is FaultKind.FAIL_BEFORE:
            raise StoreUnavailable(f"{method} {key}: the store does not answer (injected).")
        if fault.kind is FaultKind.DELAY:
            self._sleep(fault.seconds)
        return fault

    def _read(self, fault: Fault, read: Callable[[], Reply]) -> Reply:
        reply = read()
        if fault.kind is FaultKind.FAIL_AFTER:
            raise StoreUnavailable("The reply to a read was lost (injected).")
        return reply

    def _write(self, method: str, key: str, write: Callable[[], Reply]) -> Reply:
        try:
            return _struck(self._begin(method, key), f"{method} {key}", write)
        finally:
            # In the finally, so that a crash takes the place of the reply, whatever that was.
            with self._lock:
                if self._crash_at == self._writes:
                    self._dead = True
                self._raise_if_dead()

    def _raise_if_dead(self) -> None:
        if self._dead:
            raise Crash(f"dead since write {self._writes}")


def _struck(fault: Fault, what: str, write: Callable[[], Reply]) -> Reply:
    match fault.kind:
        case FaultKind.FULL:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise StoreUnavailable(f"{what}: nothing was written (injected).", why=str(full.strerror)) from full
        case FaultKind.FAIL_AFTER:
            try:
                write()
            except BundlectlError as error:
                raise OutcomeUnknown(f"{what}: the reply was lost (injected).") from error
            raise OutcomeUnknown(f"{what}: the reply was lost (injected).")
        case FaultKind.DUPLICATE:
            write()
            return write()
        case _:
            return write()


def _cut(stored: Stored, fault: Fault) -> Stored:
    if fault.kind is not FaultKind.CUT:
        return stored
    # At least one byte goes, or short objects would come whole.
    keep = min(int(len(stored.data) * fault.keep), max(0, len(stored.data) - 1))
    return Stored(stored.data[:keep], stored.tag)


def _as_fault(fault: FaultKind | Fault) -> Fault:
    return fault if isinstance(fault, Fault) else Fault(fault)
