"""Keys are rotated, stolen and revoked while four resolvers run: none stops, none trusts the revoked key afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bundlectl.model.keyring import Signers
from bundlectl.model.release import MAX_SERIAL
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Event, Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Store
from tests.support.attacks import APP, ENV, forged_keyring, put, put_head
from tests.support.world import World, entry, tiny_bundle

Served = tuple[int, int, str]
"""Epoch, serial, bundle."""
RESOLVERS = 4


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path / "registry")


async def prepare(bundle: VerifiedBundle) -> Served:
    return bundle.ref.epoch, bundle.ref.serial, bundle.bundle.digest


class Fleet:
    """Four resolvers that poll, and one reader each that asks all the time, as requests do."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.events: list[Event] = []
        self.reads: list[list[Served]] = [[] for _ in range(RESOLVERS)]
        self.resolvers = [
            Resolver(
                Registry(world.store),
                APP,
                ENV,
                world.pin,
                prepare,
                state_dir=folder / str(number),
                poll=0.01,
                clock=world.now,
                on_event=self.events.append,
            )
            for number in range(RESOLVERS)
        ]

    async def read(self, number: int) -> None:
        """Ask for ever; a resolver that serves nothing raises, and the test fails."""
        while True:
            served = self.resolvers[number].current()
            if self.reads[number][-1:] != [served]:
                self.reads[number].append(served)
            await asyncio.sleep(0.001)

    async def all(self, holds: Callable[[Resolver[Served]], bool]) -> None:
        """Wait until something is so of every resolver."""
        async with asyncio.timeout(10):
            while not all(holds(resolver) for resolver in self.resolvers):
                await asyncio.sleep(0.005)

    async def serving(self, epoch: int, serial: int) -> None:
        """Wait until every resolver serves a release, and every reader has seen it."""
        await self.all(lambda resolver: resolver.current()[:2] == (epoch, serial))
        async with asyncio.timeout(10):
            while not all(read[-1:] and read[-1][:2] == (epoch, serial) for read in self.reads):
                await asyncio.sleep(0.001)

    async def some_polls(self) -> None:
        """Let every resolver poll a few times."""
        await asyncio.sleep(0.15)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        for resolver in self.resolvers:
            await resolver.start()
        readers = [asyncio.create_task(self.read(number)) for number in range(RESOLVERS)]
        try:
            yield
            assert [task.exception() for task in readers if task.done()] == []
        finally:
            for task in readers:
                task.cancel()
            await asyncio.wait(readers)
            for resolver in self.resolvers:
                await resolver.stop()


async def test_rotation_and_revocation_of_the_promoter_s_key(store: Store, tmp_path: Path) -> None:
    world = World(store)
    world.promote(ENV, world.bundle("v1"))
    fleet = Fleet(world, tmp_path / "state")
    async with fleet.running():
        await fleet.serving(1, 1)
        # A new key enters, takes over, and the old one is retired: nobody is disturbed.
        world.add_principal("promoter-2", "promoter")
        second = world.promote(ENV, world.bundle("v2"), actor="promoter-2").data
        await fleet.serving(1, 2)
        world.set_state("promoter", "retired")
        put_head(world, world.head(ENV, world.bundle("evil"), actor="promoter", keyring=1))
        await fleet.all(lambda r: "promoter (retired)" in (r.status.last_error or ""))
        assert {r.current()[:2] for r in fleet.resolvers} == {(1, 2)}
        put_head(world, second)
        await fleet.all(lambda r: not r.status.stale)
        # The new key is stolen. It is declared compromised, the epoch raised, and a third key promotes anew.
        stolen = world.head(ENV, world.bundle("evil"), actor="promoter-2", serial=10**15, keyring=1)
        world.add_principal("promoter-3", "promoter")
        world.set_state("promoter-2", "compromised")
        world.raise_epoch(ENV, 2)
        put_head(world, stolen)
        await fleet.some_polls()
        assert {r.current()[:2] for r in fleet.resolvers} == {(1, 2)}
        put_head(world, second)
        world.promote(ENV, world.bundle("v3"), actor="promoter-3")
        await fleet.serving(2, 1)
        # What the stolen key signed for the new epoch counts no more than anything else of it.
        good = world.head_of(ENV)[0].data
        put_head(world, world.head(ENV, world.bundle("evil"), actor="promoter-2", keyring=1))
        await fleet.all(lambda r: "promoter-2 (compromised)" in (r.status.last_error or ""))
        put_head(world, good)
        await fleet.all(lambda r: not r.status.stale)
        assert {r.keyring.version for r in fleet.resolvers} == {world.keyring.version}
    wanted = [(1, 1, "v1"), (1, 2, "v2"), (2, 1, "v3")]
    assert fleet.reads == [[(e, s, tiny_bundle(text).digest) for e, s, text in wanted]] * RESOLVERS


async def test_rotation_of_root_itself(store: Store, tmp_path: Path) -> None:
    world = World(store)
    world.promote(ENV, world.bundle("v1"))
    fleet = Fleet(world, tmp_path / "state")
    async with fleet.running():
        await fleet.serving(1, 1)
        named = {**world.keyring.document.principals, "root-2": entry("root-2"), "root-3": entry("root-3")}
        root = Signers(principals=["root-2", "root-3"], threshold=2)
        world.rotate(signers=("root", "root-2", "root-3"), principals=named, root=root)
        lost = {**world.keyring.document.principals}
        lost["root"] = lost["root"].model_copy(update={"state": "compromised"})
        world.rotate(signers=("root-2", "root-3"), principals=lost)
        world.promote(ENV, world.bundle("v2"))
        await fleet.serving(1, 2)
        # The old root's key makes one more keyring.
        put(store, "keyring/4.json", forged_keyring(world, "root", "root-2"))
        world.tick(minutes=11)
        await fleet.all(lambda r: any("not signed by enough" in alarm for alarm in r.status.alarms))
        assert {r.keyring.version for r in fleet.resolvers} == {3}
        store.delete("keyring/4.json")
        world.promote(ENV, world.bundle("v3"))
        await fleet.serving(1, 3)
    assert all([serial for _, serial, _ in read] == [1, 2, 3] for read in fleet.reads)


async def test_recovery_from_a_fast_forward(store: Store, tmp_path: Path) -> None:
    """A stolen promoter's key pushed the serial to its end: a new epoch begins, and serials with it."""
    world = World(store)
    world.promote(ENV, world.bundle("v1"))
    fleet = Fleet(world, tmp_path / "state")
    async with fleet.running():
        await fleet.serving(1, 1)
        far = MAX_SERIAL
        put_head(world, world.head(ENV, world.bundle("v2"), serial=far))  # complete, so it is believed
        await fleet.serving(1, far)
        world.add_principal("promoter-2", "promoter")
        world.set_state("promoter", "compromised")
        world.raise_epoch(ENV, 2)
        world.promote(ENV, world.bundle("v3"), actor="promoter-2")
        await fleet.serving(2, 1)
    assert all([at[:2] for at in read] == [(1, 1), (1, far), (2, 1)] for read in fleet.reads)
