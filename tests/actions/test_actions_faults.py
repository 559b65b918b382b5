"""Every call of every verb that writes bundles, evidence, indexes and releases, failed in every way.

Whatever happens, the registry holds the old state or the new one, what is said is true, and the next run succeeds.
Keyrings, policies and overrides are held to the same in ``tests/keyrings/test_keyrings_faults.py``.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.attest import approve, sign
from bundlectl.actions.bind import bind
from bundlectl.actions.build import build
from bundlectl.actions.context import Context
from bundlectl.actions.evaluate import evaluate
from bundlectl.actions.index import index_build
from bundlectl.actions.promote import promote
from bundlectl.actions.renew import renew
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import history
from bundlectl.actions.transfer import export, import_
from bundlectl.model.errors import BackendUnavailable, BundlectlError, UsageError, VerificationFailed
from bundlectl.registry.head import parse_head
from bundlectl.registry.layout import head_key
from bundlectl.registry.registry import Registry
from bundlectl.registry.releases import Releases
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.faults import FaultKind, FaultyStore, Plan, no_faults, once
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import OutcomeUnknown
from tests.support.workspace import APP, Workspace

READ_KINDS = [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.CUT]
WRITE_KINDS = [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.DUPLICATE, FaultKind.FULL]
NOW = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
Objects = dict[str, bytes]


class Bench:
    """A workspace on disk, and registries in memory: what is released there is v1, then v2 in dev."""

    def __init__(self, folder: Path) -> None:
        self.work = Workspace.at(folder, live=True)
        self.v1 = history(self.work.context(), f"{APP}:dev").entries[0].bundle
        self.v2 = self.work.next_version()
        self.work.release("dev", reason="second")
        stored = DirectoryStore(self.work.registry)
        self.objects = {key: stored.get(key).data for key in stored.list("")}
        self.work.edit("prompts/answer.yaml", "nothing else at all", "nothing else in the world")
        store = self.store(self.objects)
        self.v3 = build(self.context(store, now=NOW - timedelta(minutes=1)), self.work.folder).bundle
        self.built = self.read(store)
        self.layout = f"oci:{folder / 'layout'}"
        export(self.context(store), f"{APP}@{self.v3}", self.layout)

    def store(self, objects: Objects) -> MemoryStore:
        """Make a registry that holds the objects."""
        store = MemoryStore()
        for key, data in objects.items():
            store.create(key, data)
        return store

    def read(self, store: MemoryStore) -> Objects:
        """Give what a registry holds."""
        return {key: store.get(key).data for key in store.list("")}

    def context(self, store: Any, url: str | None = None, *, now: datetime = NOW) -> Context:
        """Give a context on a store; its clock stands still and its ids repeat, so that a run can be repeated."""
        ids = itertools.count()
        context = Context(url or str(self.work.registry), lambda: now, lambda: f"id-{next(ids)}")
        registry = Registry(store, on_warning=lambda told: None)
        waited = itertools.count()
        registry.releases = Releases(registry.store, monotonic=lambda: float(next(waited)), sleep=lambda _: None)
        context.__dict__["registry"] = registry
        return context


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def elsewhere(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be in the workspace: there a registry that is no folder keeps its caches."""
    monkeypatch.chdir(bench.work.folder)
    yield
    shutil.rmtree(bench.work.home / "cache", ignore_errors=True)


Act = Callable[[Bench, Context], Any]
RELEASES: dict[str, Act] = {
    "promote": lambda bench, ctx: promote(ctx, f"{APP}@{bench.v1}", environment="dev", reason="x"),
    "rollback": lambda bench, ctx: rollback(ctx, f"{APP}:dev", reason="x"),
    "renew": lambda bench, ctx: renew(ctx, f"{APP}:prod", reason="x"),
    "bind": lambda bench, ctx: bind(ctx, f"{APP}:dev", reason="x", file=bench.work.folder / "limits.yaml"),
}
ADDITIONS: dict[str, Act] = {
    "build": lambda bench, ctx: build(ctx, bench.work.folder),
    "import": lambda bench, ctx: import_(ctx, bench.layout),
}
EVIDENCE: dict[str, Act] = {
    "sign": lambda bench, ctx: sign(ctx, f"{APP}@{bench.v3}", source=bench.work.folder),
    "approve": lambda bench, ctx: approve(ctx, f"{APP}@{bench.v3}", environment="prod", reason="x"),
    "eval": lambda bench, ctx: evaluate(ctx, str(bench.work.folder)),
}


def calls_of(bench: Bench, act: Act, objects: Objects, url: str | None = None) -> tuple[list[Plan], Objects]:
    """Run a verb without faults; give the plan of every fault of every call that it made, and the new state."""
    store = bench.store(objects)
    faulty = FaultyStore(store, no_faults)
    act(bench, bench.context(faulty, url))
    seen: Counter[tuple[str, str]] = Counter()
    plans: list[Plan] = []
    alike = 0
    for method, key in faulty.calls:
        kinds = WRITE_KINDS if method in ("create", "swap", "delete") else READ_KINDS
        if "/blobs/" in key or "/tables/" in key:  # many alike, side by side: each call in one way, every way in turn
            alike += 1
            kinds = [kinds[alike % len(kinds)]]
        struck = [kind for kind in kinds if (method, kind) != ("list", FaultKind.CUT)]
        plans += [once(method, key, kind, nth=seen[method, key]) for kind in struck]
        seen[method, key] += 1
    return plans, bench.read(store)


def run(bench: Bench, act: Act, store: Any, url: str | None = None) -> BundlectlError | None:
    """Run a verb and give what it complains of: that the backend failed, or that what was read is damaged."""
    try:
        act(bench, bench.context(store, url))
    except BundlectlError as error:
        assert isinstance(error, BackendUnavailable | VerificationFailed), error
        assert error.exit_code in (6, 4)
        assert error.what
        return error
    return None


@pytest.mark.parametrize("name", RELEASES)
def test_releases(bench: Bench, name: str) -> None:
    (bench.work.folder / "limits.yaml").write_text(
        "apiVersion: bundlectl/v1\nkind: Bindings\nlimits: {tenants: {default: {requests_per_minute: 7}}}\n"
    )
    act = RELEASES[name]
    head = head_key(APP, "prod" if name == "renew" else "dev")
    plans, new = calls_of(bench, act, bench.objects)
    old = bench.objects
    serial = parse_head(old[head], "head")[1].serial
    assert parse_head(new[head], "head")[1].serial == serial + 1
    assert len(plans) > 15
    for plan in plans:
        store = bench.store(old)
        said = run(bench, act, FaultyStore(store, plan))
        found = bench.read(store)
        live = parse_head(found[head], "head")[1].serial
        if said is None:
            assert live == serial + 1
        elif not said.details.get("unknown"):
            assert found[head] == old[head], said
        assert live in (serial, serial + 1)
        try:
            act(bench, bench.context(store))
            assert parse_head(store.get(head).data, "head")[1].serial == live + 1
        except UsageError as error:
            assert name == "bind", error
            assert "already has these bindings" in error.what
        assert history(bench.context(store), f"{APP}:{head.split('/')[-2]}", verify=True).verified


@pytest.mark.parametrize("name", [*ADDITIONS, *EVIDENCE])
def test_bundles_and_evidence(bench: Bench, name: str) -> None:
    act = (ADDITIONS | EVIDENCE)[name]
    old = bench.objects if name in ADDITIONS else bench.built
    plans, new = calls_of(bench, act, old)
    added = set(new) - set(old)
    assert added
    for plan in plans:
        store = bench.store(old)
        said = run(bench, act, FaultyStore(store, plan))
        found = bench.read(store)
        assert old.items() <= found.items()
        if said is None:
            assert len(found) == len(new), "done means that all of it is there"
        elif not isinstance(said, OutcomeUnknown):
            assert len(found) < len(new) or name == "eval", said
        _whole(bench, store)
        run_again = run(bench, act, store)
        assert run_again is None
        _whole(bench, store, there=True)


def _whole(bench: Bench, store: MemoryStore, *, there: bool = False) -> None:
    """What the registry says that it holds, it holds whole."""
    registry = Registry(store, on_warning=lambda told: pytest.fail(told))
    for bundle in registry.bundles(APP):
        assert registry.get_bundle(APP, bundle).digest == bundle
        assert registry.attestations(APP, bundle) is not None
    if there:
        assert registry.attestations(APP, bench.v3)


def test_index(bench: Bench, elsewhere: None) -> None:
    def act(bench: Bench, ctx: Context) -> Any:
        return index_build(ctx, bench.work.folder / "indexes" / "help.yaml", app=APP)

    document = next((bench.work.folder / "documents").rglob("*.md"))
    kept = document.read_text()
    run(bench, act, bench.store(bench.objects), "memory:")  # what a machine keeps is kept from here on
    document.write_text(kept + "\nReturns are free on every second day of the month.\n")
    try:
        plans, new = calls_of(bench, act, bench.objects, "memory:")
        pointer = f"apps/{APP}/indexes/help/latest.json"
        assert new[pointer] != bench.objects[pointer]
        for plan in plans:
            store = bench.store(bench.objects)
            said = run(bench, act, FaultyStore(store, plan), "memory:")
            found = bench.read(store)
            assert (
                (found[pointer] == new[pointer])
                if said is None
                else found[pointer]
                in (
                    bench.objects[pointer],
                    new[pointer],
                )
            )
            if found[pointer] == new[pointer]:
                assert new.items() <= found.items(), "the pointer names only what is there whole"
            assert run(bench, act, store, "memory:") is None
            assert new.keys() <= bench.read(store).keys()
    finally:
        document.write_text(kept)
