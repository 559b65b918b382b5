"""A soak is believed of the newest head only: where Parameter Store witnesses, promote asks it for the other one too.

Whoever writes to the bucket can put back the head under which a bundle was live that was rolled back since, and remove
what the history held. Nothing that is signed tells then; only the witness does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.context import Silent
from bundlectl.actions.promote import Promoted, promote
from bundlectl.model.errors import GateNotPassed
from bundlectl.model.keyring import Soak
from bundlectl.model.types import format_time
from bundlectl.registry import layout
from bundlectl.registry.located import Located
from bundlectl.registry.registry import Registry
from bundlectl.registry.witness import Locator, Witness, to_text, witness_name
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Stored
from tests.support.ceremony import Ceremony
from tests.support.world import default_gates

APP, NAME = "support", "team"


class Parameters:
    """Parameter Store, and what it was asked for."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.asked: list[list[str]] = []

    def read(self, names: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(names))
        return {name: self.held[name] for name in names if name in self.held}

    def write(self, name: str, value: str, description: str) -> None:
        self.held[name] = value


class Behind(MemoryStore):
    """Gives an older version of one key when it is read for the first time: it was read before the witness was."""

    def __init__(self, other: MemoryStore, key: str, old: Stored) -> None:
        super().__init__()
        self._other, self._key, self._old = other, key, [old]
        for one in other.list(""):
            self.create(one, other.get(one).data)

    def get(self, key: str) -> Stored:
        return self._old.pop() if key == self._key and self._old else super().get(key)


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    gates = default_gates()
    soaked = gates["prod"].model_copy(update={"soak": Soak(environment="staging", at_least="1m")})
    return Ceremony(tmp_path, store=MemoryStore(), gates={**gates, "prod": soaked})


@pytest.fixture
def parameters() -> Parameters:
    return Parameters()


def witnessed(ceremony: Ceremony, parameters: Parameters, environment: str) -> None:
    state, _, release = ceremony.world.head_of(environment)
    witness = Witness(epoch=release.epoch, serial=release.serial, digest=state.digest)
    parameters.write(witness_name(NAME, APP, environment), to_text(witness), "")


def release(
    ceremony: Ceremony, parameters: Parameters, reference: str, store: MemoryStore | None = None
) -> tuple[Promoted, list[str]]:
    pin = ceremony.world.pin
    reporter = Silent()
    ctx = ceremony.context(reporter=reporter)
    locator = Locator(url="s3://bucket", pin=pin, registry=pin)
    ctx.use(Located("s3://bucket", name=NAME, locator=locator, parameters=parameters))  # type: ignore[arg-type]
    ctx.__dict__["registry"] = Registry(store or ceremony.world.store)
    return promote(ctx, reference, environment="prod", reason="in a test"), reporter.warnings


def put_back(ceremony: Ceremony, environment: str, serial: int) -> None:
    store = ceremony.world.store
    key = layout.head_key(APP, environment)
    former = layout.history_key(APP, environment, 1, serial)
    store.swap(key, store.get(former).data, store.get(key).tag)
    for one in list(store.list(layout.history_prefix(APP, environment))):
        if one >= former:
            store.delete(one)


def test_a_soak_under_a_head_that_was_put_back_is_no_soak(ceremony: Ceremony, parameters: Parameters) -> None:
    world = ceremony.world
    bad, good = world.bundle("v1"), world.bundle("v2")
    for bundle in (bad, good):
        world.promote("staging", bundle)
        ceremony.later(hours=1)
    witnessed(ceremony, parameters, "staging")
    put_back(ceremony, "staging", 1)
    with pytest.raises(GateNotPassed, match="says inconclusive") as caught:
        release(ceremony, parameters, f"{APP}@{bad.digest}")
    assert "soak" in caught.value.why
    world.store.delete(layout.head_key(APP, "staging"))
    with pytest.raises(GateNotPassed) as caught:
        release(ceremony, parameters, f"{APP}@{bad.digest}")
    assert "soak" in caught.value.why


def test_a_soak_under_the_head_that_was_witnessed_counts(ceremony: Ceremony, parameters: Parameters) -> None:
    bundle = ceremony.world.bundle("v1")
    ceremony.world.promote("staging", bundle)
    witnessed(ceremony, parameters, "staging")
    ceremony.later(hours=1)
    done, warnings = release(ceremony, parameters, f"{APP}@{bundle.digest}")
    assert (done.plan.verdict, warnings) == ("pass", [])


@pytest.mark.parametrize(("past_expiry", "verdict"), [("serve", "pass"), ("refuse", "inconclusive")])
def test_what_resolvers_refuse_to_serve_by_now_soaks_no_longer(tmp_path: Path, past_expiry: Any, verdict: str) -> None:
    """Where nothing witnesses, its expiry is all that ends a head that is held back or put back."""
    gates = default_gates()
    staging = gates["staging"].model_copy(update={"expires_after": "1d", "past_expiry": past_expiry})
    prod = gates["prod"].model_copy(update={"soak": Soak(environment="staging", at_least="1m")})
    ceremony = Ceremony(tmp_path, gates={**gates, "staging": staging, "prod": prod})
    bundle = ceremony.world.bundle("v1")
    ceremony.world.promote("staging", bundle, expires=format_time(ceremony.world.now() + timedelta(days=1)))
    ceremony.later(days=2)
    for reference in (f"{APP}@{bundle.digest}", f"{APP}:staging"):
        plan = promote(ceremony.context(), reference, environment="prod", reason="in a test", plan_only=True).plan
        assert {check.name: check.verdict for check in plan.checks}["soak"] == verdict


def test_a_head_that_was_read_before_its_witness_is_read_again(ceremony: Ceremony, parameters: Parameters) -> None:
    """Somebody released to staging between the two reads: nothing was put back."""
    world = ceremony.world
    bundle = world.bundle("v1")
    world.promote("staging", bundle)
    key = layout.head_key(APP, "staging")
    old = world.store.get(key)
    world.renew("staging")
    witnessed(ceremony, parameters, "staging")
    ceremony.later(hours=1)
    assert isinstance(world.store, MemoryStore)
    done, warnings = release(ceremony, parameters, f"{APP}@{bundle.digest}", Behind(world.store, key, old))
    assert (done.plan.verdict, warnings) == ("pass", [])
