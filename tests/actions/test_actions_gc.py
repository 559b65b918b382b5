"""registry gc: what is kept, what is marked, what goes a day later; and who meets whom in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.gc import Collected, gc, gc_spare
from bundlectl.actions.promote import promote
from bundlectl.actions.retaining import Retention
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import history
from bundlectl.model.canonical import canonical
from bundlectl.model.collecting import GcState
from bundlectl.model.errors import BackendUnavailable, Conflict, UsageError, VerificationFailed
from bundlectl.model.keyring import EvaluationRequirement, Gate
from bundlectl.registry.collecting import needs_of, read_marks, spare
from bundlectl.registry.layout import gc_key, head_key, history_key, index_folder
from bundlectl.registry.registry import Registry
from bundlectl.storage.faults import Fault, FaultKind, FaultyStore
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Store, Tag, open_store
from tests.support.ceremony import Ceremony
from tests.support.workspace import Workspace

APP = "support"
GATES = {"dev": Gate(), "prod": Gate()}
SHORT = Retention(releases=1, window="1d")


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    return Ceremony(tmp_path, store=MemoryStore(), gates=GATES)


def context(ceremony: Ceremony, store: Store | None = None, **how: Any) -> Any:
    """Give a context on the store in memory."""
    ctx = ceremony.context(**how)
    ctx.__dict__["registry"] = Registry(store or ceremony.world.store)
    return ctx


def go(ceremony: Ceremony, bundle: str, environment: str = "dev", store: Store | None = None) -> None:
    ctx = context(ceremony, store)
    promote(ctx, f"{APP}@{bundle}", environment=environment, reason="in a test")


def collect(ceremony: Ceremony, *, store: Store | None = None, retention: Retention = SHORT, **how: Any) -> Collected:
    return gc(context(ceremony, store), APP, retention=retention, delete=how.pop("delete", True), **how)


def three(ceremony: Ceremony) -> list[str]:
    """Release three bundles, ten days apart: the last is live, the second its target, the first is history."""
    made = []
    for text in ("v1", "v2", "v3"):
        made.append(ceremony.world.bundle(text).digest)
        go(ceremony, made[-1])
        ceremony.later(days=10)
    return made


def whole(ceremony: Ceremony, bundle: str) -> bool:
    return ceremony.world.registry.has_bundle(APP, bundle)


def keys(ceremony: Ceremony) -> set[str]:
    return set(ceremony.world.store.list("apps/"))


def test_shown_then_marked_then_deleted_a_day_later(ceremony: Ceremony) -> None:
    first, second, third = three(ceremony)
    before = keys(ceremony)
    shown = collect(ceremony, delete=False)
    assert (shown.step, shown.done, shown.bundles) == ("mark", False, [first])
    assert keys(ceremony) == before, "a dry run writes nothing"
    assert {one.bundle for one in shown.kept} == {second, third}

    assert collect(ceremony).done
    assert keys(ceremony) == before | {gc_key(APP)}, "marking deletes nothing"
    ceremony.later(hours=23)
    assert collect(ceremony).step == "wait"
    assert keys(ceremony) == before | {gc_key(APP)}
    ceremony.later(hours=1)
    assert collect(ceremony, delete=False).step == "delete"
    done = collect(ceremony)
    assert (done.step, done.done, done.bundles) == ("delete", True, [first])
    assert not whole(ceremony, first) and whole(ceremony, second) and whole(ceremony, third)
    gone = before - keys(ceremony)
    assert {key.split("/")[2] for key in gone} == {"packs", "blobs", "referrers"}
    assert collect(ceremony).step == "nothing"
    # The chain is whole, and the way back is open.
    assert [one.serial for one in history(context(ceremony), f"{APP}:dev", verify=True).entries] == [3, 2, 1]
    assert rollback(context(ceremony), f"{APP}:dev", reason="x").released.bundle == second
    # From its source it comes back, byte for byte.
    assert ceremony.world.bundle("v1").digest == first and whole(ceremony, first)


def test_what_is_shared_or_within_retention_stays(ceremony: Ceremony) -> None:
    first, _, third = three(ceremony)
    for retention in (Retention(releases=3, window="1d"), Retention(releases=1, window="30d"), Retention()):
        assert collect(ceremony, delete=False, retention=retention).step == "nothing"
    go(ceremony, first, "prod")
    assert collect(ceremony, delete=False).step == "nothing", "live in another environment"
    ceremony.later(days=1)
    never = ceremony.world.bundle("never released").digest
    assert collect(ceremony, delete=False).step == "nothing", "built today"
    ceremony.later(days=2)
    assert collect(ceremony, delete=False).bundles == [never]
    unsigned = ceremony.world.bundle("nobody signed it", evidence=False).digest
    assert sorted(collect(ceremony, delete=False).bundles) == sorted([never, unsigned])
    assert whole(ceremony, third)


def test_the_anchor_of_a_policy_stays(ceremony: Ceremony) -> None:
    first, _, _ = three(ceremony)
    asks = EvaluationRequirement(suite="support", no_worse={"hit": 0.05}, anchor=first)
    ceremony.world.next_policy({**GATES, "lab": Gate(evaluations=[asks])})
    assert collect(ceremony, delete=False).step == "nothing"
    ceremony.world.next_policy(GATES)
    assert collect(ceremony, delete=False).bundles == [first]


def test_reports_of_kept_bundles_stay_and_others_go(ceremony: Ceremony) -> None:
    world = ceremony.world
    bundle = world.bundle("v1", evidence=False)
    kept, lost = (world.registry.put_blob(APP, data) for data in (b"the report", b"another's"))
    world.registry.attach(APP, bundle.digest, "evaluation", world.evaluation(bundle, report=kept))
    go(ceremony, bundle.digest)
    ceremony.later(days=10)
    assert collect(ceremony).objects == {"blobs": 1}
    ceremony.later(days=1)
    collect(ceremony)
    assert world.registry.get_blob(APP, kept) == b"the report"
    assert f"apps/{APP}/blobs/sha256/{lost.removeprefix('sha256:')}" not in keys(ceremony)


def test_a_marked_bundle_is_not_promoted_until_it_is_built_or_spared(ceremony: Ceremony) -> None:
    first, *_ = three(ceremony)
    collect(ceremony)
    with pytest.raises(Conflict, match="marked for collection") as refused:
        go(ceremony, first)
    assert f"--spare {APP}@{first}" in refused.value.fix
    lifted = gc_spare(context(ceremony), APP, f"{APP}@{first}")
    assert (lifted.step, lifted.bundles) == ("spare", [first])
    go(ceremony, first)
    ceremony.later(days=1)
    assert collect(ceremony).objects == {}
    assert whole(ceremony, first)
    assert gc_spare(context(ceremony), APP, f"{APP}@{first}").step == "nothing"


def test_a_rollback_to_a_marked_bundle_lifts_the_mark(ceremony: Ceremony) -> None:
    first, *_ = three(ceremony)
    collect(ceremony)
    assert rollback(context(ceremony), f"{APP}:dev@1", reason="night").released.bundle == first
    ceremony.later(days=1)
    collect(ceremony)
    assert whole(ceremony, first)


def test_a_promotion_between_mark_and_sweep_keeps_its_bundle(ceremony: Ceremony) -> None:
    """It looked before the mark was made, and commits after: the sweep computes the roots again."""
    first, *_ = three(ceremony)

    def mark() -> None:
        assert collect(ceremony).bundles == [first]

    go(ceremony, first, store=Between(ceremony.world.store, head_key(APP, "dev"), mark))
    ceremony.later(days=1)
    done = collect(ceremony)
    assert done.reached_again and not done.bundles
    assert whole(ceremony, first)


def test_whoever_needs_it_meets_the_sweep_in_one_order_or_the_other(ceremony: Ceremony) -> None:
    first, *_ = three(ceremony)
    collect(ceremony)
    ceremony.later(days=1)
    store, bundle = ceremony.world.store, ceremony.world.registry.get_bundle(APP, first)
    # Spared just before the sweep's swap: the sweep is the loser, and nothing is deleted.
    before = keys(ceremony)
    with pytest.raises(Conflict, match="changed meanwhile"):
        collect(ceremony, store=Between(store, gc_key(APP), lambda: spare(store, APP, needs_of(bundle))))
    assert keys(ceremony) == before
    assert collect(ceremony).bundles == []

    # The sweep has begun: who needs it is told, whatever was deleted by then.
    ceremony.later(days=2)
    collect(ceremony)
    ceremony.later(days=1)
    met: list[Conflict] = []

    def need() -> None:
        for act in (lambda: spare(store, APP, needs_of(bundle)), lambda: go(ceremony, first)):
            with pytest.raises(Conflict) as refused:
                act()
            met.append(refused.value)

    collect(ceremony, store=Between(store, f"apps/{APP}/packs/{first.removeprefix('sha256:')}", need))
    assert ["collected at this moment" in met[0].what, "marked for collection" in met[1].what] == [True, True]
    assert not whole(ceremony, first)


@pytest.mark.parametrize("kind", [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.DUPLICATE])
def test_every_call_of_mark_and_sweep_fails_once(ceremony: Ceremony, kind: FaultKind) -> None:
    """Nothing kept is ever lost, and the next run goes on; a sweep that died is taken over after its lease."""
    first, second, third = three(ceremony)
    for step in ("mark", "delete"):
        start = {key: ceremony.world.store.get(key) for key in ceremony.world.store.list("")}
        calls = 0
        while True:
            copy = MemoryStore()
            for key, stored in start.items():
                copy.create(key, stored.data)
            struck, n = [False], calls

            def plan(call: Any, n: int = n, struck: list[bool] = struck) -> Any:
                struck[0] |= call.number == n
                return Fault(kind if call.number == n else FaultKind.PASS)

            with suppress(BackendUnavailable, Conflict):
                collect(ceremony, store=FaultyStore(copy, plan))
            if not struck[0]:
                break
            saved = ceremony.world.clock
            for _ in range(3):
                ceremony.later(hours=25)
                collect(ceremony, store=copy)
            ceremony.world.clock = saved
            registry = Registry(copy)
            assert (registry.has_bundle(APP, second), registry.has_bundle(APP, third)) == (True, True), (step, calls)
            assert not registry.has_bundle(APP, first), (step, calls)
            calls += 1
        assert calls > 10
        collect(ceremony)
        ceremony.later(days=1)


def test_a_second_sweep_waits_for_the_first(ceremony: Ceremony) -> None:
    first, *_ = three(ceremony)
    collect(ceremony)
    ceremony.later(days=1)
    store = ceremony.world.store

    def other() -> None:
        with pytest.raises(Conflict, match="Another gc"):
            collect(ceremony)
        ceremony.later(minutes=40)

    slow = Between(store, f"apps/{APP}/packs/{first.removeprefix('sha256:')}", other)
    collect(ceremony, store=slow)
    assert not whole(ceremony, first)


def test_a_mark_that_gc_did_not_sign_deletes_nothing(ceremony: Ceremony) -> None:
    first, *_ = three(ceremony)
    collect(ceremony)
    store = ceremony.world.store
    marks = read_marks(store, APP)
    assert marks.state.mark is not None
    forged = marks.state.mark.model_copy(update={"signatures": []})
    store.swap(gc_key(APP), canonical(GcState(mark=forged).form()), marks.tag)
    ceremony.later(days=1)
    with pytest.raises(VerificationFailed, match="does not count"):
        collect(ceremony)
    assert whole(ceremony, first)
    with pytest.raises(UsageError, match="not a gc"):
        store.delete(gc_key(APP))
        gc(context(ceremony, signer="promoter"), APP, retention=SHORT, delete=True)


def test_where_the_past_is_not_whole_nothing_is_collected(ceremony: Ceremony) -> None:
    three(ceremony)
    store = ceremony.world.store
    for key in (head_key(APP, "dev"), history_key(APP, "dev", 1, 2)):
        kept = store.get(key).data
        store.delete(key)
        with pytest.raises(VerificationFailed):
            collect(ceremony, delete=False)
        store.create(key, kept)
    assert collect(ceremony, delete=False).step == "mark"


def test_pinned_and_newest_snapshots_stay_and_other_tables_go(work: Workspace) -> None:
    found = gc(work.context(), "hello", retention=SHORT)
    assert (found.step, len(found.kept)) == ("nothing", 1), "every file of the index is reached"
    index = next((work.registry / "apps" / "hello" / "indexes").iterdir()).name
    store = open_store(str(work.registry))
    store.create(f"{index_folder('hello', index)}/{'ab' * 32}/chunks.lance/data", b"of a snapshot that nothing pins")
    assert gc(work.context(), "hello", retention=SHORT).objects == {"indexes": 1}


def test_nonsense_is_refused(ceremony: Ceremony) -> None:
    with pytest.raises(UsageError, match="At least one"):
        Retention(releases=0)
    with pytest.raises(UsageError, match="no time to keep"):
        collect(ceremony, retention=Retention(window="soon"))


class Between:
    """A store that lets someone else act just before the first write to one key."""

    def __init__(self, store: Store, key: str, act: Callable[[], object]) -> None:
        self.url, self._store, self._key = store.url, store, key
        self._act: Callable[[], object] | None = act

    def _meet(self, key: str) -> None:
        if key == self._key and self._act is not None:
            act, self._act = self._act, None
            act()

    def get(self, key: str) -> Any:
        return self._store.get(key)

    def get_if_changed(self, key: str, tag: Tag) -> Any:
        return self._store.get_if_changed(key, tag)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        return self._store.list(prefix, after)

    def create(self, key: str, data: bytes) -> Tag:
        self._meet(key)
        return self._store.create(key, data)

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        self._meet(key)
        return self._store.swap(key, data, expected)

    def delete(self, key: str) -> None:
        self._meet(key)
        self._store.delete(key)
