"""Every call of gc and copy failed in every way: what collects, and what carries to another registry.

Whatever happens, the registry holds the old state or the new one or, of what is only added or only removed, a part of
the way between; what is said is true; and the next run succeeds. What gc stops at while it deletes waits an hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.context import Context
from bundlectl.actions.copying import copy
from bundlectl.actions.gc import LEASE, Collected, gc, gc_spare
from bundlectl.actions.promote import promote
from bundlectl.actions.retaining import Retention
from bundlectl.model.canonical import hex_of
from bundlectl.model.components import Retrieval
from bundlectl.model.errors import BackendUnavailable, BundlectlError, VerificationFailed
from bundlectl.model.keyring import Gate
from bundlectl.registry.layout import gc_key
from bundlectl.registry.registry import Registry
from bundlectl.registry.tables import put_tables
from bundlectl.storage.faults import FaultKind, FaultyStore, Plan, no_faults, once
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import OutcomeUnknown
from tests.support.ceremony import Ceremony
from tests.support.world import entry, tiny_bundle

APP = "support"
SHORT = Retention(releases=1, window="1d")
READ_KINDS = [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.CUT]
WRITE_KINDS = [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.DUPLICATE, FaultKind.FULL]
Objects = dict[str, bytes]
Act = Callable[[Any], Any]


def store_of(objects: Objects) -> MemoryStore:
    store = MemoryStore()
    for key, data in objects.items():
        store.create(key, data)
    return store


def objects_in(store: MemoryStore) -> Objects:
    return {key: store.get(key).data for key in store.list("")}


def plans_of(act: Act, objects: Objects) -> tuple[list[Plan], Objects]:
    """Run without faults; give the plan of every fault of every call, and the new state."""
    store = store_of(objects)
    faulty = FaultyStore(store, no_faults)
    act(faulty)
    seen: Counter[tuple[str, str]] = Counter()
    plans: list[Plan] = []
    for method, key in faulty.calls:
        kinds = WRITE_KINDS if method in ("create", "swap", "delete") else READ_KINDS
        struck = [kind for kind in kinds if (method, kind) != ("list", FaultKind.CUT)]
        plans += [once(method, key, kind, nth=seen[method, key]) for kind in struck]
        seen[method, key] += 1
    return plans, objects_in(store)


def attempt(act: Act, store: Any) -> BundlectlError | None:
    """Run a verb and give what it complains of: that the backend failed, or that what was read is damaged."""
    try:
        act(store)
    except BundlectlError as error:
        assert isinstance(error, BackendUnavailable | VerificationFailed), error
        assert error.exit_code in (6, 4)
        assert error.what
        return error
    return None


# ---------------------------------------------------------------- gc


class Collecting:
    """A registry in which one bundle is unreachable, before it was marked and a day after."""

    def __init__(self, folder: Path) -> None:
        self.ceremony = Ceremony(folder, store=MemoryStore(), gates={"dev": Gate()})
        world = self.ceremony.world
        self.bundles = []
        for text in ("v1", "v2", "v3"):
            self.bundles.append(world.bundle(text).digest)
            promote(self.context(world.store), f"{APP}@{self.bundles[-1]}", environment="dev", reason="in a test")
            self.ceremony.later(days=10)
        assert isinstance(world.store, MemoryStore)
        self.unmarked = objects_in(world.store)
        self.collect(world.store)
        self.marked = objects_in(world.store)
        self.before = world.clock

    def context(self, store: Any) -> Context:
        ctx = self.ceremony.context(new_id=lambda: "one")
        ctx.__dict__["registry"] = Registry(store, on_warning=lambda told: None)
        return ctx

    def collect(self, store: Any) -> Collected:
        return gc(self.context(store), APP, retention=SHORT, delete=True)

    def spare(self, store: Any) -> Collected:
        return gc_spare(self.context(store), APP, f"{APP}@{self.bundles[0]}")

    @contextmanager
    def later(self, span: timedelta) -> Iterator[None]:
        clock = self.ceremony.world.clock
        self.ceremony.world.clock = clock + span
        try:
            yield
        finally:
            self.ceremony.world.clock = clock

    def reachable_is_whole(self, store: MemoryStore) -> None:
        registry = Registry(store, on_warning=lambda told: pytest.fail(told))
        for bundle in self.bundles[1:]:
            assert registry.get_bundle(APP, bundle).digest == bundle
            assert len(registry.attestations(APP, bundle)) == 3


@pytest.fixture(scope="module")
def collecting(tmp_path_factory: pytest.TempPathFactory) -> Collecting:
    return Collecting(tmp_path_factory.mktemp("collecting"))


@pytest.mark.parametrize("name", ["mark", "spare"])
def test_marking_and_sparing(collecting: Collecting, name: str) -> None:
    act = collecting.collect if name == "mark" else collecting.spare
    old = collecting.unmarked if name == "mark" else collecting.marked
    plans, new = plans_of(act, old)
    assert {key for key in new if new[key] != old.get(key)} == {gc_key(APP)}
    assert len(plans) >= 10
    for plan in plans:
        store = store_of(old)
        said = attempt(act, FaultyStore(store, plan))
        found = objects_in(store)
        assert found in (old, new)
        if said is None:
            assert found == new
        elif not isinstance(said, OutcomeUnknown):
            assert found == old, said
        assert attempt(act, store) is None
        assert objects_in(store)[gc_key(APP)] == new[gc_key(APP)]


def test_sweeping(collecting: Collecting) -> None:
    with collecting.later(timedelta(days=1)):
        old = collecting.marked
        plans, new = plans_of(collecting.collect, old)
        gone = {key for key in old if key not in new}
        assert {key.split("/")[2] for key in gone} == {"packs", "blobs", "referrers"}
        stopped = 0
        for plan in plans:
            store = store_of(old)
            said = attempt(collecting.collect, FaultyStore(store, plan))
            found = objects_in(store)
            assert found.keys() - gone == new.keys()
            collecting.reachable_is_whole(store)
            if said is None:
                assert found == new
            elif found.keys() != old.keys():
                # Some of it is gone, and this says so, and until when to wait.
                assert isinstance(said, BackendUnavailable) and "stopped while it was deleting" in said.what
                assert "Repeat it after" in said.fix
                stopped += 1
            with collecting.later(LEASE):
                assert attempt(collecting.collect, store) is None
                assert objects_in(store).keys() == new.keys(), said
            collecting.reachable_is_whole(store)
        assert stopped > len(gone)


# ---------------------------------------------------------------- copy


class Copying:
    """A source with a release of a bundle that pins a snapshot, and a target that knows the app."""

    def __init__(self, folder: Path) -> None:
        (folder / "source").mkdir()
        (folder / "target").mkdir()
        self.source = Ceremony(folder / "source", store=MemoryStore(), gates={"dev": Gate()})
        self.target = Ceremony(
            folder / "target", store=MemoryStore(), gates={"dev": Gate()}, principals={"person": entry("person")}
        )
        world, store = self.source.world, self.source.world.store
        snapshot = world.registry.put_blob(APP, b'{"a": "snapshot"}')
        tables = folder / "tables"
        tables.mkdir()
        (tables / "rows.lance").write_bytes(b"rows")
        put_tables(store, APP, "docs", hex_of(snapshot), tables)
        bundle = tiny_bundle("v1", retrieval={"docs": Retrieval(index="docs", snapshot=snapshot)})
        world.registry.put_bundle(APP, bundle)
        for envelope in world.evidence(bundle):
            world.registry.attach(APP, bundle.digest, "attestation", envelope)
        world.promote("dev", bundle)
        self.bundle, self.snapshot = bundle, snapshot
        for ceremony in (self.source, self.target):
            ceremony.later(hours=1)
        assert isinstance(store, MemoryStore) and isinstance(self.target.world.store, MemoryStore)
        self.theirs, self.ours = objects_in(store), objects_in(self.target.world.store)

    def run(self, source: Any, target: Any) -> Any:
        contexts = []
        for ceremony, store in ((self.source, source), (self.target, target)):
            ctx = ceremony.context()
            ctx.__dict__["registry"] = Registry(store, on_warning=lambda told: None)
            contexts.append(ctx)
        return copy(contexts[0], contexts[1], f"{APP}@{self.bundle.digest}")

    def whole(self, store: MemoryStore) -> None:
        """What the target says that it holds, it holds whole."""
        registry = Registry(store, on_warning=lambda told: pytest.fail(told))
        for bundle in registry.bundles(APP):
            assert registry.get_bundle(APP, bundle).blobs == self.bundle.blobs
            registry.attestations(APP, bundle)
            assert registry.get_blob(APP, self.snapshot)


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Copying:
    return Copying(tmp_path_factory.mktemp("copying"))


def test_copy_into_a_target_that_fails(copying: Copying) -> None:
    source = store_of(copying.theirs)
    plans, new = plans_of(lambda target: copying.run(source, target), copying.ours)
    added = new.keys() - copying.ours.keys()
    assert {key.split("/")[2] for key in added} == {"packs", "blobs", "referrers", "sources", "indexes"}
    assert len(plans) > 60
    for plan in plans:
        store = store_of(copying.ours)
        said = attempt(lambda target: copying.run(source, target), FaultyStore(store, plan))
        found = objects_in(store)
        assert copying.ours.items() <= found.items() and found.keys() <= new.keys()
        if said is None:
            assert found == new, "done means that all of it is there"
        elif not isinstance(said, OutcomeUnknown):
            assert len(found) < len(new), said
        copying.whole(store)
        assert attempt(lambda target: copying.run(source, target), store) is None
        assert objects_in(store) == new


def test_copy_from_a_source_that_fails(copying: Copying) -> None:
    plans, after = plans_of(lambda source: copying.run(source, store_of(copying.ours)), copying.theirs)
    assert after == copying.theirs, "nothing is written to the source"
    done = store_of(copying.ours)
    copying.run(store_of(copying.theirs), done)
    new = objects_in(done)
    for plan in plans:
        source, target = store_of(copying.theirs), store_of(copying.ours)
        said = attempt(lambda reads, target=target: copying.run(reads, target), FaultyStore(source, plan))
        assert objects_in(source) == copying.theirs
        found = objects_in(target)
        assert found.items() <= new.items()
        if said is None:
            assert found == new
        copying.whole(target)
        assert attempt(lambda reads, target=target: copying.run(reads, target), source) is None
        assert objects_in(target) == new
