"""Every attack of ``tests.support.attacks`` on a running resolver: refused, reported, and nothing stops serving.

On every kind of store, and again after a restart from the last good: what serves is a bundle that the right people
released, and the complaint says which attack it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundlectl.model.errors import BundlectlError
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Event, Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Store, open_store
from tests.support.attacks import APP, ATTACKS, ENV
from tests.support.aws import stand_in
from tests.support.world import World, tiny_bundle

EVIL = tiny_bundle("evil").digest
_prefixes = itertools.count()


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "folder":
        yield DirectoryStore(tmp_path / "registry")
    else:
        aws = stand_in("moto")
        for name, value in aws.environ.items():
            monkeypatch.setenv(name, value)
        yield open_store(f"s3://{_bucket()}/attack-{next(_prefixes)}")


def _bucket(made: list[str] = []) -> str:  # noqa: B006  # one bucket for the whole run
    if not made:
        made.append(stand_in("moto").bucket("attacks"))
    return made[0]


def at_release_two() -> World:
    """Make the world that every attack is made on; in memory, since it is a hundred calls."""
    world = World()
    world.promote(ENV, world.bundle("v1"))
    world.promote(ENV, world.bundle("v2"))
    return world


async def prepare(bundle: VerifiedBundle) -> str:
    return bundle.bundle.digest


def heard(resolver: Resolver[str], events: list[Event]) -> str:
    return " | ".join([resolver.status.last_error or "", *resolver.status.alarms, *(event.message for event in events)])


@pytest.mark.parametrize("name", ATTACKS)
async def test_refused_reported_and_serving_goes_on(store: Store, name: str, tmp_path: Path) -> None:
    complaint, attack = ATTACKS[name]
    world = at_release_two()
    for key in world.store.list(""):
        store.create(key, world.store.get(key).data)
    world.store, world.registry = store, Registry(store)
    events: list[Event] = []

    def resolver() -> Resolver[str]:
        return Resolver(
            Registry(store),
            APP,
            ENV,
            world.pin,
            prepare,
            state_dir=tmp_path / "state",
            poll=3600,
            clock=world.now,
            on_event=events.append,
        )

    running = resolver()
    await running.start()
    good = running.current()
    assert good == tiny_bundle("v2").digest
    events.clear()
    try:
        attack(world)
        for _ in range(2):
            await running.poll_now()
            assert running.current() == good
        assert complaint in heard(running, events)
    finally:
        await running.stop()
    events.clear()
    again = resolver()
    await again.start()
    try:
        assert again.current() == good
        assert complaint in heard(again, events)
    finally:
        await again.stop()


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_resolver_that_never_saw_it_serves_nothing_evil(name: str) -> None:
    """A cold start has no state: it may be shown something old, never what nobody released."""
    world = at_release_two()
    ATTACKS[name][1](world)
    cold = Resolver(Registry(world.store), APP, ENV, world.pin, prepare, poll=3600, clock=world.now)
    try:
        await cold.start()
        assert cold.current() in {tiny_bundle("v1").digest, tiny_bundle("v2").digest}
    except BundlectlError:
        with pytest.raises(BundlectlError):
            cold.current()
    finally:
        await cold.stop()
