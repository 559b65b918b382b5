"""The rollback target: judged as a rollback to it would be, prepared when somebody asks, let go of with its head."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bundlectl.model.bindings import Bindings
from bundlectl.model.errors import BackendUnavailable, NotFound, VerificationFailed
from bundlectl.registry.layout import Place, blob_key, history_key, pack_key
from bundlectl.resolver import standby
from bundlectl.resolver.target import verify_target
from bundlectl.resolver.trusted import Blocked, VerifiedRelease
from tests.resolver.test_resolver_follow import Rig
from tests.support.world import World, flip, tiny_bundle

V1, V2, V3 = (tiny_bundle(f"v{n}").digest for n in (1, 2, 3))
TARGET = {"bundle": V1, "epoch": 1, "serial": 1}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path / "state")
    for text in ("v1", "v2"):
        made.world.promote("prod", made.world.bundle(text))
    return made


def judge(world: World, live: VerifiedRelease | None = None) -> None:
    former = world.registry.releases.former("support", "prod", Place(1, 1))
    assert former is not None
    verify_target(former.data, live or world.verify("prod"), world.keyring)


def test_what_a_rollback_would_be_refused_for_is_refused(rig: Rig) -> None:
    """Who signed the target may have retired since; what was condemned since does not answer."""
    world = rig.world
    world.add_principal("promoter-2", "promoter")
    world.promote("prod", world.bundle("v2"), actor="promoter-2", rollback_target=TARGET)
    world.set_state("promoter", "retired")
    judge(world)
    world.set_state("promoter", "compromised")
    with pytest.raises(VerificationFailed, match="not signed by a promoter"):
        judge(world)


def test_evidence_counts_by_the_keyring_of_now(rig: Rig) -> None:
    live = rig.world.verify("prod")
    rig.world.set_state("evaluator", "compromised")
    with pytest.raises(VerificationFailed, match="evidence that its gate demands"):
        judge(rig.world, live)


def test_only_what_head_names_is_the_target(rig: Rig) -> None:
    for other in ({**TARGET, "bundle": V3}, {**TARGET, "serial": 2}):
        rig.world.promote("prod", rig.world.bundle("v2"), rollback_target=other)
        with pytest.raises(VerificationFailed, match="not the release that head names"):
            judge(rig.world)


def test_every_byte_of_it_counts(rig: Rig) -> None:
    world, live = rig.world, rig.world.verify("prod")
    former = world.registry.releases.former("support", "prod", Place(1, 1))
    assert former is not None
    for at in range(0, len(former.data), 97):
        with pytest.raises(VerificationFailed):
            verify_target(flip(former.data, at), live, world.keyring)


async def test_it_is_prepared_by_the_first_who_asks_and_once(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    assert rig.prepared == [2] and resolver.rollback_target == V1
    before = len(rig.store.calls)
    assert await asyncio.gather(*(resolver.prepared_target() for _ in range(5))) == [(1, V1)] * 5
    assert rig.prepared == [2, 1]
    # One look for a newer keyring, the former head, its bundle.
    assert [method for method, _ in rig.store.calls[before:]] == ["get"] * 3
    rig.down = True
    assert await resolver.prepared_target() == (1, V1), "it outlives an outage as head does"
    await resolver.stop()


async def test_it_goes_with_its_head(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    await resolver.prepared_target()
    rig.world.promote("prod", rig.world.bundle("v3"))
    await resolver.poll_now()
    assert resolver.rollback_target == V2 and rig.prepared == [2, 1, 3]
    assert await resolver.prepared_target() == (2, V2)
    rig.world.rollback("prod", 1)  # names no target
    await resolver.poll_now()
    assert resolver.rollback_target is None
    with pytest.raises(NotFound, match="no rollback target"):
        await resolver.prepared_target()
    await resolver.stop()


async def test_one_that_does_not_verify_harms_nobody_and_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = rig.resolver()
    await resolver.start()
    key = history_key("support", "prod", 1, 1)
    good = rig.world.store.get(key)
    rig.world.store.swap(key, flip(good.data, len(good.data) // 2), good.tag)
    for _ in range(2):
        with pytest.raises(VerificationFailed):
            await resolver.prepared_target()
    calls = len(rig.store.calls)
    assert resolver.current() == (2, V2) and "alarm" in rig.kinds()
    rig.world.store.swap(key, good.data, rig.world.store.get(key).tag)
    with pytest.raises(VerificationFailed):
        await resolver.prepared_target()
    assert len(rig.store.calls) == calls, "a failure is not looked at again by everybody who asks"
    monkeypatch.setattr(standby, "AGAIN_SECONDS", -1.0)
    assert await resolver.prepared_target() == (1, V1)
    await resolver.stop()


async def test_a_bundle_whose_bytes_are_lost_is_none(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.store.delete(pack_key("support", V1))
    rig.world.store.delete(blob_key("support", V1))
    with pytest.raises(NotFound):
        await resolver.prepared_target()
    assert resolver.current() == (2, V2)
    await resolver.stop()


async def test_one_that_is_blocked_stops_within_a_poll(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    await resolver.prepared_target()
    rig.world.block(V1)
    rig.world.tick(minutes=11)
    await resolver.poll_now()
    assert any("cannot answer" in event.message for event in rig.events)
    with pytest.raises(Blocked):
        await resolver.prepared_target()
    assert resolver.current() == (2, V2)
    rig.kinds()
    await resolver.stop()


async def test_nobody_asking_for_a_while_frees_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = rig.resolver()
    await resolver.start()
    await resolver.prepared_target()
    await resolver.poll_now()
    assert await resolver.prepared_target() == (1, V1) and rig.prepared == [2, 1]
    monkeypatch.setattr(standby, "KEPT_SECONDS", -1.0)
    await resolver.poll_now()
    await resolver.prepared_target()
    assert rig.prepared == [2, 1, 1]
    await resolver.stop()


async def test_the_registry_away_or_slow_preparation_is_told_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.down = True
    with pytest.raises(BackendUnavailable):
        await resolver.prepared_target()
    rig.down = False
    monkeypatch.setattr(standby, "AGAIN_SECONDS", -1.0)
    monkeypatch.setattr(standby, "WAIT_SECONDS", 0.0)
    with pytest.raises(standby.Preparing):
        await resolver.prepared_target()
    monkeypatch.setattr(standby, "WAIT_SECONDS", 5.0)
    assert await resolver.prepared_target() == (1, V1)
    await resolver.stop()


async def test_it_gets_the_live_bindings(rig: Rig) -> None:
    """A model that is disabled at night is not enabled by a pin."""
    seen: list[Bindings] = []
    resolver = rig.resolver()
    resolver._prepare = lambda bundle: _kept(seen, bundle.bindings)  # type: ignore[assignment]
    rig.world.rebind("prod", Bindings(disabled_models=["plain"]))
    await resolver.start()
    await resolver.prepared_target()
    assert [one.disabled_models for one in seen] == [["plain"], ["plain"]]
    await resolver.stop()


async def _kept(seen: list[Bindings], bindings: Bindings) -> tuple[int, str]:
    seen.append(bindings)
    return 0, ""
