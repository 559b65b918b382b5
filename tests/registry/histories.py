"""Seeded histories of verbs and readers that run at once on a store that fails, and the model they are held to.

    python -m tests.registry.histories FIRST COUNT      # a line of JSON: histories, faults by kind, violations
    python -m tests.registry.histories 139 1            # one of them again

Each history: two to eight people promote, roll back, renew and rebind through the real verbs, and follow as a
resolver does, some restarted from their last good; one at a time, in an order that the seed decides (``turns``).
Below them calls fail before and after, come late, twice or cut, hit a full disk, and writes land long after they
were given up. The model is the order in which heads were in fact stored:

- the history that is found in the end is that order, one winner a serial, and its chain verifies;
- a verb that succeeded is live at the serial it names; one that failed is nowhere; one that said "unknown" may be;
- nobody is told of tampering where there was none, unless cut bytes were read;
- a reader only ever goes forward, and to what was stored; and the next promotion succeeds.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from bundlectl.actions.bind import bind
from bundlectl.actions.context import Context
from bundlectl.actions.promote import promote
from bundlectl.actions.releasing import Released
from bundlectl.actions.renew import renew
from bundlectl.actions.rollback import rollback
from bundlectl.model.errors import (
    BackendUnavailable,
    BundlectlError,
    Conflict,
    NotFound,
    UsageError,
    VerificationFailed,
)
from bundlectl.registry.head import place
from bundlectl.registry.layout import Place, head_key
from bundlectl.registry.registry import Registry
from bundlectl.registry.releases import Releases
from bundlectl.resolver.chain import verify_chain, verify_former
from bundlectl.resolver.follower import Follower
from bundlectl.resolver.lastgood import LastGood, Saved
from bundlectl.resolver.trusted import VerifiedRelease
from bundlectl.storage.faults import Call, Fault, FaultKind, FaultyStore
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import OutcomeUnknown, Store, Tag
from tests.registry.turns import AtOnce, InTurns, Turns
from tests.support.ceremony import Ceremony
from tests.support.workspace import ROOT, environment

APP = "support"
ENVIRONMENTS = ("dev", "prod", "staging")
"""Two releases are in dev and prod; staging is empty, so that the first release is fought for as well."""
WRITE_KINDS = [
    FaultKind.FAIL_BEFORE,
    FaultKind.FAIL_AFTER,
    FaultKind.DELAY,
    FaultKind.DUPLICATE,
    FaultKind.FULL,
    "late",
    "late",
]
READ_KINDS = [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.DELAY, FaultKind.CUT]


class Ground:
    """What every history begins with; made once, and copied."""

    def __init__(self, folder: Path) -> None:
        store = MemoryStore()
        self.ceremony = Ceremony(folder, store=store)
        world = self.ceremony.world
        self.bundles = [world.bundle(f"v{number}").digest for number in range(4)]
        for name in ("dev", "prod"):
            for bundle in self.bundles[:2]:
                world.promote(name, bundle)
        self.objects = [(key, store.get(key).data) for key in store.list("")]
        self.start = world.tick()
        self.bindings = [folder / f"bindings-{number}.yaml" for number in range(8)]
        for number, file in enumerate(self.bindings, 1):
            limits = f"limits: {{tenants: {{default: {{requests_per_minute: {number}}}}}}}\n"
            file.write_text(f"apiVersion: bundlectl/v1\nkind: Bindings\n{limits}")
        self._known: dict[bytes, VerifiedRelease] = {}

    def verified(self, environment: str, data: bytes) -> VerifiedRelease:
        """Verify a former release; those that all histories share only once."""
        world = self.ceremony.world
        if data in self._known:
            return self._known[data]
        how = {"app": APP, "environment": environment, "registry_id": world.registry_id}
        release = verify_former(data, keyring=world.keyring, **how)
        if release.release.serial <= 2 and release.release.reason.endswith("in a test"):
            self._known[data] = release
        return release


class Truth(MemoryStore):
    """Holds the objects, remembers every head that was ever stored, and lets writes land after they were given up."""

    def __init__(self, ground: Ground, environment: str) -> None:
        super().__init__()
        for key, data in ground.objects:
            self.create(key, data)
        self._head = head_key(APP, environment)
        self.heads: list[bytes] = []
        self.late: list[tuple[float, str, bytes, Tag | None]] = []

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``."""
        tag = super().swap(key, data, expected)
        if key == self._head:
            self.heads.append(data)
        return tag

    def land(self, until: float) -> None:
        """Do the late writes whose time has come."""
        due, self.late = [w for w in self.late if w[0] <= until], [w for w in self.late if w[0] > until]
        for _, key, data, expected in sorted(due, key=lambda write: write[0]):
            try:
                self.swap(key, data, expected)
            except Conflict:
                continue  # the condition that it was sent with does not hold any more


class Late:
    """Implements ``Store`` on top of the truth: a swap that ``strikes`` lands later, and says that nobody knows."""

    def __init__(self, store: Truth, turns: Turns, strikes: Callable[[], float | None]) -> None:
        self._store = store
        self._turns = turns
        self._strikes = strikes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``."""
        seconds = self._strikes()
        if seconds is not None:
            self._store.late.append((self._turns.clock + seconds, key, data, expected))
            raise OutcomeUnknown(f"swap {key}: no reply (injected; it lands in {seconds:.1f} s).")
        return self._store.swap(key, data, expected)


class Kept:
    """A last good in memory: what ``LastGood`` keeps on disk."""

    def __init__(self) -> None:
        self.saved: Saved | None = None

    def save(self, saved: Saved) -> None:
        """Keep it."""
        self.saved = saved

    def load(self) -> Saved | None:
        """Give it back."""
        return self.saved


@dataclass
class Done:
    """What a verb said, and what of it is claimed."""

    reason: str
    verb: str
    said: str
    claim: str
    """``live``, ``not`` or ``either``."""
    serial: int = 0
    release: str = ""


@dataclass
class Outcome:
    """What became of one history."""

    seed: int
    violations: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    releases: int = 0


class History:
    """One history."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self.ground = ground
        self.out = Outcome(seed)
        self._random = random.Random(seed)
        [self.environment] = self._random.choices(ENVIRONMENTS, [3, 1, 1])
        self._storm = self._random.choice([0.0, 0.1, 0.3, 0.5])
        self.store = Truth(ground, self.environment)
        self._turns = Turns(random.Random(f"{seed}/turns"), lambda: self.store.land(self._turns.clock))
        self._done: list[Done] = []
        self._first = ground.ceremony.world.registry.releases.read_head(APP, self.environment)

    def run(self) -> Outcome:
        """Run it and judge it."""
        [actors] = self._random.choices(range(2, 9), [3, 4, 4, 3, 2, 1, 2])
        works = [self._actor(number) for number in range(actors)]
        try:
            self._turns.run(works)
            self.store.land(float("inf"))
            self._judge()
        except Exception:  # noqa: BLE001 - a defect that nobody foresaw is what this looks for
            self._violated("an exception that nobody foresaw", traceback.format_exc())
        return self.out

    # ------------------------------------------------------------ who acts

    def _actor(self, number: int) -> Callable[[], None]:
        choice = random.Random(f"{self.out.seed}/{number}")
        faulty, cuts = self._faulty(number, choice)
        kind = choice.choices(["promote", "rollback", "renew", "bind", "read"], [5, 2, 1, 2, 4])[0]
        if kind == "read":
            return lambda: self._read(number, faulty, cuts, choice)
        return lambda: self._write(kind, number, faulty, cuts, choice)

    def _faulty(self, number: int, choice: random.Random) -> tuple[Store, list[str]]:
        """Give the store as one actor sees it, and the list of the keys of which it will have read cut bytes."""
        cuts: list[str] = []
        storm = self._storm
        late: list[float] = []

        def plan(call: Call) -> Fault:
            writes = call.method in ("create", "swap")
            if choice.random() >= (storm if writes else storm / 2):
                return Fault(FaultKind.PASS)
            kind = choice.choice(WRITE_KINDS if writes else READ_KINDS)
            if kind == "late" and call.method == "swap":
                late.append(choice.uniform(0, 45))
                self.out.faults["late"] += 1
                return Fault(FaultKind.PASS)
            if kind == "late" or (kind is FaultKind.CUT and call.method == "list"):
                kind = FaultKind.FAIL_BEFORE
            if kind is FaultKind.CUT:
                cuts.append(call.key)
            assert isinstance(kind, FaultKind)
            self.out.faults[kind.value] += 1
            return Fault(kind, seconds=choice.uniform(0.01, 2), keep=choice.random())

        under = Late(self.store, self._turns, lambda: late.pop() if late else None)
        return InTurns(FaultyStore(cast(Store, under), plan, sleep=self._turns.sleep), self._turns), cuts

    def _now(self) -> datetime:
        return self.ground.start + timedelta(seconds=int(self._turns.clock))

    def _context(self, store: Store) -> Context:
        context = self.ground.ceremony.context(clock=self._now)
        registry = Registry(store, on_warning=lambda told: None)
        registry.store._pool = cast(Any, AtOnce())
        registry.releases = Releases(registry.store, monotonic=self._turns.monotonic, sleep=self._turns.sleep)
        context.__dict__["registry"] = registry
        return context

    # ------------------------------------------------------------ verbs

    def _write(self, verb: str, number: int, store: Store, cuts: list[str], choice: random.Random) -> None:
        for turn in range(choice.randint(1, 2)):
            cuts.clear()
            reason = f"{verb} {number}.{turn}"
            try:
                released = self._act(verb, number, self._context(store), reason, choice)
            except BundlectlError as error:
                unknown = bool(error.details.get("unknown"))
                self._done.append(Done(reason, verb, type(error).__name__, "either" if unknown else "not"))
                self.out.said["unknown" if unknown else type(error).__name__] += 1
                self._check_complaint(reason, error, cuts)
            else:
                self._done.append(Done(reason, verb, "done", "live", released.serial, released.release))
                self.out.said["done"] += 1

    def _act(self, verb: str, number: int, ctx: Context, reason: str, choice: random.Random) -> Released:
        reference = f"{APP}:{self.environment}"
        where = self.environment
        match verb:
            case "promote":
                bundle = choice.choice(self.ground.bundles)
                done = promote(ctx, f"{APP}@{bundle}", environment=where, reason=reason, confirmed=where).released
                assert done is not None
                return done
            case "rollback":
                serial = choice.choice(["", "", "@1"])
                return rollback(ctx, reference + serial, reason=reason, confirmed=where).released
            case "renew":
                return renew(ctx, reference, reason=reason)
            case _:
                return bind(ctx, reference, file=self.ground.bindings[number], reason=reason, confirmed=where).released

    def _check_complaint(self, who: str, error: BundlectlError, cuts: list[str]) -> None:
        """Nobody is told of damage or tampering, unless cut bytes were read; and each complaint says something."""
        if not error.what or not isinstance(
            error, BackendUnavailable | Conflict | NotFound | UsageError | VerificationFailed
        ):
            self._violated(f"{who} says {type(error).__name__}", str(error))
        if isinstance(error, VerificationFailed) and not cuts:
            self._violated(f"{who} is told of tampering that never was", f"{error.what} {error.why}")
        if isinstance(error, NotFound | UsageError) and self._first is not None and "these bindings" not in error.what:
            self._violated(f"{who} is told of a wrong use", f"{error.what} {error.why}")

    # ------------------------------------------------------------ readers

    def _read(self, number: int, store: Store, cuts: list[str], choice: random.Random) -> None:
        kept = Kept()
        seen: Place | None = None
        follower = self._follower(store, kept)
        for _ in range(choice.randint(2, 4)):
            if choice.random() < 0.25:
                follower = self._follower(store, kept)
                again = follower.recall()
                if again is not None:
                    follower.accept(again)
            cuts.clear()
            step = follower.step()
            who = f"reader {number}"
            if step.stop is not None:
                self._violated(f"{who} must stop", step.stop.what)
            for doubt in (*step.doubts, *step.alarms):
                if not cuts:
                    self._violated(f"{who} doubts", doubt)
            if step.error is not None:
                self._check_complaint(who, step.error, cuts)
            if step.candidate is not None:
                release = step.candidate.release
                assert release is not None
                there = place(release.release)
                if seen is not None and there < seen:
                    self._violated(f"{who} goes back", f"from {seen} to {there}")
                known = [self._first.data] if self._first else []
                if release.data not in (*known, *self.store.heads):
                    self._violated(f"{who} serves what was never stored", str(there))
                if step.candidate.bundle.digest != release.release.bundle:
                    self._violated(f"{who} serves another bundle than it says", str(there))
                seen = there
                follower.accept(step.candidate)
            self._turns.sleep(choice.uniform(0, 3))

    def _follower(self, store: Store, kept: Kept) -> Follower:
        registry = self._context(store).registry
        pin = self.ground.ceremony.world.pin
        return Follower(
            registry, APP, self.environment, pin, lastgood=cast(LastGood, kept), clock=self._now, witness=None
        )

    # ------------------------------------------------------------ the model

    def _judge(self) -> None:
        """Hold what is stored and what was said to the order in which heads were stored."""
        ctx = self._context(self.store)
        reason = "the next"
        self._turns.clock += 1
        last = promote(
            ctx, f"{APP}@{self.ground.bundles[3]}", environment=self.environment, reason=reason, confirmed=None
        ).released
        assert last is not None
        self._done.append(Done(reason, "promote", "done", "live", last.serial, last.release))
        entries = list(ctx.registry.releases.history(APP, self.environment))
        chain = list(verify_chain(self.ground.verified(self.environment, entry.data) for entry in entries))
        found = [one.data for one in reversed(chain)]
        before = len(found) - len(self.store.heads)
        if found[before:] != self.store.heads or before != (2 if self._first else 0):
            self._violated("a release was lost", f"{len(self.store.heads)} heads were stored, {len(found)} are found")
        serials = [one.release.serial for one in reversed(chain)]
        if serials != list(range(1, len(serials) + 1)):
            self._violated("a serial has two winners, or none", str(serials))
        self.out.releases = len(self.store.heads)
        reasons: dict[str, list[tuple[int, str]]] = {}
        for one in chain:
            reasons.setdefault(one.release.reason, []).append((one.release.serial, one.digest))
        for done in self._done:
            there = reasons.get(done.reason, [])
            if done.claim == "live" and there != [(done.serial, done.release)]:
                self._violated(f"{done.reason} says that it is live at {done.serial}", f"it is {there}")
            if done.claim == "not" and there:
                self._violated(f"{done.reason} says {done.said}", f"it is live: {there}")
            if len(there) > 1:
                self._violated(f"{done.reason} is live twice", str(there))

    def _violated(self, what: str, why: str) -> None:
        self.out.violations.append(f"history {self.out.seed}, {self.environment}: {what}: {why}")


def run(first: int, count: int) -> dict[str, Any]:
    """Run histories ``first`` to ``first + count``; see the module for the form of what it gives."""
    faults: Counter[str] = Counter()
    said: Counter[str] = Counter()
    violations: list[str] = []
    releases = 0
    with tempfile.TemporaryDirectory(prefix="bundlectl-histories-") as folder:
        ground = Ground(Path(folder))
        for seed in range(first, first + count):
            out = History(ground, seed).run()
            faults += out.faults
            said += out.said
            violations += out.violations
            releases += out.releases
    return {
        "histories": count,
        "releases": releases,
        "faults": dict(sorted(faults.items())),
        "said": dict(sorted(said.items())),
        "violations": violations,
    }


def run_side_by_side(count: int, processes: int) -> dict[str, Any]:
    """Run histories 0 to ``count``, each process a share of them; see ``run``."""
    share = -(-count // processes)
    firsts = range(0, count, share)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.registry.histories", str(first), str(min(share, count - first))],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in firsts
    ]
    told = [process.communicate()[0] for process in running]
    failed = [process.returncode for process in running if process.returncode]
    if failed:
        raise RuntimeError(f"histories ended with exit codes {failed}")
    parts = [json.loads(one) for one in told]
    summed: dict[str, Any] = {key: sum(part[key] for part in parts) for key in ("histories", "releases")}
    for key in ("faults", "said"):
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part[key])
        summed[key] = dict(sorted(total.items()))
    return summed | {"violations": [one for part in parts for one in part["violations"]]}


def main() -> None:
    """Run as a command."""
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
