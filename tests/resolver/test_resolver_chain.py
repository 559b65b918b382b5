"""The chain of releases: whole, without a gap, and resting on promotions that were."""

from __future__ import annotations

import pytest

from bundlectl.model.bindings import Bindings
from bundlectl.model.errors import VerificationFailed
from bundlectl.registry.head import parse_head
from bundlectl.registry.layout import history_key
from bundlectl.resolver.chain import verify_chain, verify_former, verify_link
from bundlectl.resolver.trusted import VerifiedRelease
from tests.support.world import NOTHING, World


@pytest.fixture
def world() -> World:
    made = World()
    made.promote("prod", made.bundle("v1"))
    made.promote("prod", made.bundle("v2"))
    return made


def formers(world: World) -> list[VerifiedRelease]:
    entries = world.registry.releases.history("support", "prod")
    return [
        verify_former(
            entry.data, app="support", environment="prod", registry_id=world.registry_id, keyring=world.keyring
        )
        for entry in entries
    ]


def test_a_long_chain_of_every_action_verifies(world: World) -> None:
    world.renew("prod")
    world.rollback("prod", 1)
    world.renew("prod")
    world.next_policy()
    world.rebind("prod", Bindings(disabled_models=["plain"]))
    world.raise_epoch("prod", 2)
    world.promote("prod", world.bundle("v3"))
    found = list(verify_chain(formers(world)))
    assert [(one.release.epoch, one.release.serial) for one in found] == [(2, 1), *((1, n) for n in range(6, 0, -1))]
    assert all(one.alarms == () for one in found)


def test_keys_and_digests_that_were_condemned_since_are_alarms(world: World) -> None:
    world.add_principal("promoter-2", "promoter")
    world.promote("prod", world.bundle("v3"), actor="promoter-2")
    for name, state in (("promoter", "compromised"), ("evaluator", "retired")):
        world.set_state(name, state)
    world.block(world.bundle("v1").digest)
    live, second, first = verify_chain(formers(world))
    assert live.alarms == ()
    assert "compromised by now: promoter" in second.alarms[0]
    assert "blocked by now" in first.alarms[1]


def test_a_rollback_to_a_promotion_that_never_was_is_found(world: World) -> None:
    """A promoter who is one of us, and forges the origin, passes every resolver; the history does not."""
    forged = world.head("prod", world.bundle("v9"), serial=1, previous=NOTHING)
    head, release = parse_head(forged, "forged")
    world.commit("prod", world.head("prod", release.bundle, action="rollback", origins=[head.release]))
    assert world.verify("prod").release.bundle == release.bundle
    with pytest.raises(VerificationFailed, match="never was"):
        list(verify_chain(formers(world)))


def test_a_chain_without_its_beginning_is_cut_off(world: World) -> None:
    world.store.delete(history_key("support", "prod", 1, 1))
    with pytest.raises(VerificationFailed, match="cut off"):
        list(verify_chain(formers(world)))


@pytest.mark.parametrize("changes", [{"since": "2026-10-01T00:00:00Z"}, {"serial": 5}])
def test_a_rebind_keeps_since_and_takes_the_next_serial(world: World, changes: dict[str, object]) -> None:
    world.rebind("prod", Bindings(disabled_models=["plain"]), **changes)
    with pytest.raises(VerificationFailed):
        list(verify_chain(formers(world)))


def test_a_renewal_renews_the_release_before_it(world: World) -> None:
    first = world.registry.releases.release_at("support", "prod", 1)
    head, release = parse_head(first.data, "first")
    form = release.form()
    kept = {key: form.get(key, NOTHING) for key in ("rollback_target", "bindings", "since", "keyring", "policy")}
    parts = {"origins": [head.release], "evidence": head.evidence, "policies": head.policies}
    world.commit("prod", world.head("prod", release.bundle, action="renewal", **(kept | parts)))
    newer, older, *_ = formers(world)
    with pytest.raises(VerificationFailed, match="changes the bundle"):
        verify_link(older, newer)


def test_a_promotion_does_not_backdate_since_when_it_is_live(world: World) -> None:
    """A soak is counted from since, and only a bundle that goes on being live keeps it."""
    v3 = world.bundle("v3")
    world.promote("prod", v3)
    since = world.verify("prod").release.since
    world.tick(hours=1)
    world.commit("prod", world.head("prod", v3.digest, since=since.strftime("%Y-%m-%dT%H:%M:%SZ")))
    list(verify_chain(formers(world)))
    world.commit("prod", world.head("prod", world.bundle("v4").digest, since="2026-10-01T00:00:00Z"))
    with pytest.raises(VerificationFailed, match="live since"):
        list(verify_chain(formers(world)))
