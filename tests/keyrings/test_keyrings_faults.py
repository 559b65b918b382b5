"""Every call of every verb that writes keyrings, policies and attestations, failed in every way; and races.

Whatever happens, the registry holds the old state or the new one, what is said is true, and the next run succeeds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions import succession
from bundlectl.actions.applying import apply
from bundlectl.actions.attest import attest
from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.actions.override import override
from bundlectl.actions.policy import set_policy
from bundlectl.actions.signing import sign_request
from bundlectl.model.canonical import digest
from bundlectl.model.errors import BackendUnavailable, BundlectlError, Conflict, UsageError, VerificationFailed
from bundlectl.model.keyring import Gate, Soak
from bundlectl.registry.registry import Registry
from bundlectl.storage.faults import Fault, FaultKind, FaultyStore, Plan, no_faults
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Store
from tests.support.ceremony import Ceremony

KINDS = [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.CUT, FaultKind.DUPLICATE, FaultKind.FULL]
POLICY = "apiVersion: bundlectl/v1\nkind: Policy\nenvironments: {dev: {}, prod: {approvals: 1}}\n"


class Verb:
    """One verb, and the registry that it is run on: a fresh copy each time, in memory."""

    def __init__(self, folder: Path, name: str) -> None:
        self.store: Store = MemoryStore()
        gates = {"dev": Gate(), "prod": Gate(soak=Soak(environment="dev"))}
        self.ceremony = Ceremony(folder, store=self.store, gates=gates)
        world = self.ceremony.world
        self.bundle = world.bundle("v1")
        world.promote("dev", self.bundle)
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "report.json").write_text(json.dumps({"conclusion": "fine"}))
        self.name = name
        self.folder = folder
        if name == "apply":
            request = folder / "change.json"
            succession.block(self.context(self.store), digest(b"x"), reason="x", request=request)
            self.signature = Path(sign_request(self.ceremony.context(), request).file)
        self.first = self.state()

    def fresh(self) -> None:
        """Put the registry back to where it was."""
        self.store = MemoryStore()
        for key, data in self.first:
            self.store.create(key, data)

    def context(self, store: Store) -> Context:
        context = self.ceremony.context()
        context.__dict__["registry"] = Registry(store)
        return context

    def run(self, plan: Plan = no_faults) -> FaultyStore:
        store = FaultyStore(self.store, plan)
        self._act(self.context(store))
        return store

    def _act(self, ctx: Context) -> None:
        ref = f"support@{self.bundle.digest}"
        acts: dict[str, Callable[[], Any]] = {
            "block": lambda: succession.block(ctx, digest(b"x"), reason="x"),
            "compromise": lambda: succession.compromise(ctx, "gc", reason="x"),
            "policy": lambda: set_policy(ctx, self.folder / "policy.yaml", app="support"),
            "apply": lambda: apply(ctx, self.folder / "change.json", [self.signature]),
            "attest": lambda: attest(
                ctx, ref, predicate_type="urn:x:y", predicate=self.folder / "report.json", role="approver"
            ),
            "override": lambda: override(ctx, ref, environment="prod", checks=["soak"], reason="x"),
        }
        acts[self.name]()

    def state(self) -> list[tuple[str, bytes]]:
        return [(key, self.store.get(key).data) for key in self.store.list("")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["block", "compromise", "policy", "apply", "attest", "override"])
def test_every_call_failed_once(tmp_path: Path, name: str, kind: FaultKind) -> None:
    verb = Verb(tmp_path, name)
    old = verb.first
    calls = len(verb.run().calls)
    new = verb.state()
    assert len(new) == len(old) + 1
    for number in range(calls):
        verb.fresh()
        said: BundlectlError | None = None
        try:
            verb.run(lambda call, at=number: Fault(kind if call.number == at else FaultKind.PASS))  # type: ignore[misc]
        except BundlectlError as error:
            said = error
        found = [key for key, _ in verb.state()]
        assert found in ([key for key, _ in old], [key for key, _ in new])
        if said is None:
            assert len(found) == len(new)
        else:
            assert isinstance(said, BackendUnavailable | VerificationFailed), said
            assert said.what
        try:
            verb.run()
        except UsageError as error:  # it was done: "is blocked already", "says already"
            assert "already" in error.what
        assert len(verb.state()) == len(new)
        assert open_trust(verb.context(verb.store)).version in (1, 2)


def test_eight_at_once_one_wins_each_version(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    outcomes: list[type | None] = []
    start = threading.Barrier(8)

    def change(number: int) -> None:
        start.wait()
        while True:
            try:
                succession.block(ceremony.context(), digest(b"%d" % number), reason=f"change {number}")
            except Conflict as error:
                outcomes.append(type(error))
                continue
            outcomes.append(None)
            return

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keyring = open_trust(ceremony.context())
    assert keyring.version == 9
    assert {entry.reason for entry in keyring.document.blocked} == {f"change {n}" for n in range(8)}
    assert outcomes.count(None) == 8
