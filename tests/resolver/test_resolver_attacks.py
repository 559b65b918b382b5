"""The attacks of DESIGN 5 on a head, each named, each a call of the rules and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from bundlectl.model.bindings import Bindings
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import EvaluationRequirement, Gate, Grant
from bundlectl.model.release import MAX_HEAD, Head
from bundlectl.registry.head import parse_head
from bundlectl.resolver.trusted import Blocked, Expired, KeyringTooOld
from tests.support.world import NOTHING, ROLES, SUITE, World, default_gates, entry, flip, tiny_bundle

Attack = Callable[[World], bytes]
"""Bends a world whose prod is at serial 2 and gives the bytes that a resolver of prod is shown."""

ATTACKS: dict[str, tuple[str, Attack]] = {}


def attack(complaint: str) -> Callable[[Attack], Attack]:
    """Register an attack under its name; the refusal must say ``complaint``."""

    def register(made: Attack) -> Attack:
        ATTACKS[made.__name__] = (complaint, made)
        return made

    return register


@pytest.fixture
def world() -> World:
    made = World()
    made.promote("prod", made.bundle("v1"))
    made.promote("prod", made.bundle("v2"))
    return made


def rebuilt(head: Head, **changes: object) -> bytes:
    return canonical(head.model_copy(update=changes).form())


# ---------------------------------------------------------------- form


@attack("is not valid JSON")
def bytes_that_are_no_head(world: World) -> bytes:
    return b"\xff{}"


@attack("at most")
def a_head_over_256_kib(world: World) -> bytes:
    return world.head_of("prod")[0].data + b" " * MAX_HEAD


@attack("form of a head")
def an_unknown_field_in_head(world: World) -> bytes:
    return world.head_of("prod")[0].data.replace(b'{"apiVersion"', b'{"also":1,"apiVersion"', 1)


@attack("duplicate key")
def a_field_twice_in_head(world: World) -> bytes:
    return world.head_of("prod")[0].data.replace(b'{"apiVersion"', b'{"origins":[],"apiVersion"', 1)


@attack("payload type")
def a_wrong_payload_type(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), payload_type="application/vnd.bundlectl.policy.v1+json")


@attack("under another subject")
def a_subject_that_is_not_the_bundle(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), subject=world.bundle("v4").digest)


@attack("does not know")
def an_unknown_field_in_the_release(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), canary=True)


# ---------------------------------------------------------------- place


@attack("another registry")
def a_release_of_another_registry(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), registry=digest(b"other"))


@attack("copied here")
def a_release_copied_from_staging(world: World) -> bytes:
    world.promote("staging", world.bundle("v3"))
    return world.head_of("staging")[0].data


@attack("copied here")
def a_release_of_another_app(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), app="billing")


@attack("epoch 1; the keyring says epoch 2")
def a_release_of_a_past_epoch(world: World) -> bytes:
    data = world.head("prod", world.bundle("v3"))
    world.raise_epoch("prod", 2)
    return data


@attack("epoch 9")
def a_release_of_an_epoch_that_has_not_begun(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), epoch=9)


@attack("demands keyring 7")
def a_keyring_below_the_release_s_minimum(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), keyring=7)


@attack("a candidate")
def a_candidate_that_this_version_cannot_serve(world: World) -> bytes:
    bundle = world.bundle("v3")
    return world.head("prod", bundle, candidate={"bundle": bundle.digest, "percent": 5})


@attack("tenant pins")
def tenant_pins_that_this_version_cannot_serve(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), tenant_pins={"acme": world.bundle("v1").digest})


# ---------------------------------------------------------------- signatures


@attack("No key of the keyring signed it")
def no_signature_at_all(world: World) -> bytes:
    head = parse_head(world.head("prod", world.bundle("v3")), "head")[0]
    return rebuilt(head, release=head.release.model_copy(update={"signatures": []}))


@attack("No key of the keyring signed it")
def a_signature_of_an_unknown_key(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), signer="mallory")


@pytest.mark.parametrize("role", [role for role in ("root", "owner", *ROLES) if role != "promoter"])
def test_a_promotion_signed_by_another_role_is_refused(world: World, role: str) -> None:
    with pytest.raises(VerificationFailed, match="not signed by a promoter"):
        world.verify("prod", world.head("prod", world.bundle("v3"), signer=role))


@attack("not signed by a promoter")
def a_promoter_of_another_environment(world: World) -> bytes:
    grants = [g for g in world.keyring.document.grants if g.role != "promoter"]
    world.rotate(grants=[*grants, Grant(role="promoter", principals=["promoter"], environments=["staging"])])
    return world.head("prod", world.bundle("v3"))


@attack("promoter (retired)")
def a_retired_promoter_s_key(world: World) -> bytes:
    world.set_state("promoter", "retired")
    return world.head("prod", world.bundle("v3"))


@attack("promoter (compromised)")
def a_compromised_promoter_s_key(world: World) -> bytes:
    world.set_state("promoter", "compromised")
    return world.head("prod", world.bundle("v3"))


@attack("names alice as its actor, who did not sign")
def a_release_in_someone_else_s_name(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), actor="alice", signer="promoter")


@attack("not signed by a renewer")
def a_renewal_signed_by_a_promoter(world: World) -> bytes:
    return world.renewal_head("prod", signer="promoter")


@attack("No key of the keyring signed it")
def a_release_whose_payload_was_changed(world: World) -> bytes:
    head = parse_head(world.head("prod", world.bundle("v3")), "head")[0]
    other = parse_head(world.head("prod", world.bundle("v4")), "head")[0]
    return rebuilt(head, release=head.release.model_copy(update={"payload": other.release.payload}))


# ---------------------------------------------------------------- order


@attack("an older head was put back")
def an_older_head_put_back(world: World) -> bytes:
    return world.registry.releases.release_at("support", "prod", 1).data


@attack("under the same serial")
def another_release_with_the_same_serial(world: World) -> bytes:
    previous = world.registry.releases.release_at("support", "prod", 1).digest
    return world.head("prod", world.bundle("v3"), serial=2, previous=previous)


@attack("does not follow the trusted release")
def the_next_serial_after_another_history(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), previous=digest(b"another head"))


@attack("names no release before it")
def a_later_serial_without_a_predecessor(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), serial=9, previous=NOTHING)


# ---------------------------------------------------------------- lineage


@attack("does not carry the promotion")
def a_rollback_without_its_promotion(world: World) -> bytes:
    return world.rollback_head("prod", 1, origins=[])


@attack("promotion of another bundle")
def a_rollback_with_the_promotion_of_another_bundle(world: World) -> bytes:
    return world.rollback_head("prod", 1, origins=[world.head_of("prod")[1].release])


@attack("origin of another place")
def a_rollback_with_a_promotion_of_staging(world: World) -> bytes:
    world.promote("staging", world.bundle("v1"))
    return world.rollback_head("prod", 1, origins=[world.head_of("staging")[1].release])


@attack("no promoter signed")
def a_rollback_to_a_promotion_that_nobody_signed(world: World) -> bytes:
    forged = parse_head(world.head("prod", world.bundle("v1"), signer="mallory", serial=1, previous=NOTHING), "head")[0]
    return world.rollback_head("prod", 1, origins=[forged.release])


@attack("no promoter signed")
def a_rollback_to_a_promotion_of_a_compromised_key(world: World) -> bytes:
    world.add_principal("promoter-2", "promoter")
    world.set_state("promoter", "compromised")
    return world.rollback_head("prod", 1, actor="promoter-2")


@attack("not older")
def a_rollback_to_a_promotion_in_the_future(world: World) -> bytes:
    future = parse_head(world.head("prod", world.bundle("v1"), serial=40), "head")[0]
    return world.rollback_head("prod", 1, origins=[future.release])


@attack("do not belong to it")
def a_promotion_with_an_origin(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), origins=[world.head_of("prod")[1].release])


@attack("does not carry the release that it renews")
def a_renewal_of_nothing(world: World) -> bytes:
    return world.renewal_head("prod", origins=[])


@attack("changes bindings")
def a_renewal_that_changes_bindings(world: World) -> bytes:
    return world.renewal_head("prod", bindings=Bindings(disabled_models=["plain"]).form())


@attack("changes bundle")
def a_renewal_that_changes_the_bundle(world: World) -> bytes:
    return world.renewal_head("prod", bundle=world.bundle("v3").digest)


@pytest.mark.parametrize(
    ("field", "value"),
    [("since", "2026-11-01T12:00:00Z"), ("policy", 2), ("keyring", 2), ("rollback_target", NOTHING)],
)
def test_a_renewal_may_change_nothing_else(world: World, field: str, value: object) -> None:
    world.next_policy()
    world.rotate()
    with pytest.raises(VerificationFailed, match=f"a renewal that changes {field}"):
        world.verify("prod", world.renewal_head("prod", **{field: value}))


@attack("brings release 1 back")
def a_renewer_who_brings_an_older_release_back(world: World) -> bytes:
    head, release = parse_head(world.registry.releases.release_at("support", "prod", 1).data, "head")
    form = release.form()
    kept = {key: form.get(key, NOTHING) for key in ("rollback_target", "since")}
    return world.head("prod", release.bundle, action="renewal", origins=[head.release], serial=9, **kept)


@attack("no promoter signed")
def a_renewal_that_rests_on_a_renewal(world: World) -> bytes:
    world.renew("prod")
    head = world.head_of("prod")[1]
    return world.renewal_head("prod", origins=[head.release, *head.origins])


# ---------------------------------------------------------------- policy


@attack("does not carry it")
def a_policy_that_is_named_and_not_carried(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), policy=2)


@attack("not signed by enough of the app's owners")
def a_policy_that_the_owners_did_not_sign(world: World) -> bytes:
    world.next_policy(gates={"prod": Gate()}, signers=["promoter"])
    return world.head("prod", world.bundle("v3"), evidence=[], expires=NOTHING)


@attack("was in force before it")
def a_policy_below_the_trusted_one(world: World) -> bytes:
    old = world.policy
    world.next_policy()
    world.promote("prod", world.bundle("v3"))
    return world.head("prod", world.bundle("v4"), policy=1, policies=[old])


@attack("no longer counts")
def a_policy_below_root_s_floor(world: World) -> bytes:
    app = world.keyring.document.apps["support"].model_copy(update={"policy": 2})
    world.rotate(apps={"support": app})
    return world.head("prod", world.bundle("v3"))


@attack("does not name")
def an_environment_that_the_policy_does_not_name(world: World) -> bytes:
    gates = default_gates()
    del gates["prod"]
    world.next_policy(gates=gates)
    return world.head("prod", world.bundle("v3"))


@attack("two policies of version 1")
def two_policies_of_one_version(world: World) -> bytes:
    other = World(gates={"prod": Gate()})
    return world.head("prod", world.bundle("v3"), policies=[world.policy, other.policy])


@attack("that nothing in it names")
def a_policy_that_nothing_names(world: World) -> bytes:
    old = world.policy
    world.next_policy()
    return world.head("prod", world.bundle("v3"), policies=[old, world.policy])


# ---------------------------------------------------------------- evidence


@attack("evidence that its gate demands")
def evidence_missing_though_the_promoter_signed(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), evidence=[])


@pytest.mark.parametrize("missing", range(3))
def test_each_piece_of_evidence_is_needed(world: World, missing: int) -> None:
    bundle = world.bundle("v3")
    evidence = world.evidence(bundle)
    del evidence[missing]
    with pytest.raises(VerificationFailed, match="evidence that its gate demands"):
        world.verify("prod", world.head("prod", bundle, evidence=evidence))


@attack("about something else")
def evidence_of_another_bundle(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), evidence=world.evidence(world.bundle("v1")))


@attack("is for staging")
def an_approval_of_another_environment(world: World) -> bytes:
    bundle = world.bundle("v3")
    return world.head("prod", bundle, evidence=world.evidence(bundle, "staging"))


@attack("not signed by an evaluator")
def an_evaluation_signed_by_the_builder(world: World) -> bytes:
    bundle = world.bundle("v3")
    evidence = [world.provenance(bundle), world.evaluation(bundle, signers=["builder"]), world.approval(bundle)]
    return world.head("prod", bundle, evidence=evidence)


@attack(f"evaluation:{SUITE}")
def an_evaluation_that_failed(world: World) -> bytes:
    bundle = world.bundle("v3")
    evidence = [world.provenance(bundle), world.evaluation(bundle, verdict="fail"), world.approval(bundle)]
    return world.head("prod", bundle, evidence=evidence)


@attack(f"evaluation:{SUITE}")
def an_evaluation_with_cases_unmeasured(world: World) -> bytes:
    bundle = world.bundle("v3")
    evidence = [world.provenance(bundle), world.evaluation(bundle, complete=False), world.approval(bundle)]
    return world.head("prod", bundle, evidence=evidence)


@attack(f"evaluation:{SUITE}")
def an_evaluation_by_another_dataset(world: World) -> bytes:
    pinned = EvaluationRequirement(suite=SUITE, dataset_digest=digest(b"the exam"))
    world.next_policy(gates={"prod": Gate(evaluations=[pinned])})
    return world.head("prod", world.bundle("v3"), expires=NOTHING)


@attack("approvals")
def an_approval_of_one_s_own_work(world: World) -> bytes:
    world.rotate(
        principals={
            **world.keyring.document.principals,
            "alice-approves": entry("alice-approves", owner="Alice"),
            "alice-builds": entry("alice-builds", owner="Alice"),
        },
        grants=[
            *world.keyring.document.grants,
            Grant(role="approver", principals=["alice-approves"]),
            Grant(role="builder", principals=["alice-builds"]),
        ],
    )
    bundle = world.bundle("v3")
    evidence = [world.provenance(bundle, signers=["alice-builds"]), world.evaluation(bundle)]
    return world.head("prod", bundle, evidence=[*evidence, world.approval(bundle, signers=["alice-approves"])])


@attack("approvals")
def duplicate_signatures_against_a_threshold(world: World) -> bytes:
    world.next_policy(gates={"prod": Gate(provenance=1, approvals=2)})
    bundle = world.bundle("v3")
    approval = world.approval(bundle)
    doubled = approval.model_copy(update={"signatures": [*approval.signatures] * 2})
    evidence = [world.provenance(bundle), approval, doubled]
    return world.head("prod", bundle, evidence=evidence, expires=NOTHING)


@attack("evidence that its gate demands")
def evidence_that_only_a_compromised_key_signed(world: World) -> bytes:
    data = world.head("prod", world.bundle("v3"))
    world.set_state("evaluator", "compromised")
    return data


# ---------------------------------------------------------------- blocks and times


@attack("Root has blocked")
def a_blocked_bundle(world: World) -> bytes:
    bundle = world.bundle("v3")
    world.block(bundle.digest)
    return world.head("prod", bundle)


@attack("evidence that its gate demands")
def blocked_evidence(world: World) -> bytes:
    bundle = world.bundle("v3")
    kind, blocked, _ = world.registry.attestations("support", bundle.digest)[0]
    assert kind == "approval"
    world.block(blocked)
    return world.head("prod", bundle)


@attack("never expires")
def a_release_that_never_expires(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), expires=NOTHING)


@attack("expires later than 14d")
def a_release_that_expires_too_late(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), expires="2036-11-01T12:00:00Z")


@attack("live since a time after")
def a_release_from_before_it_went_live(world: World) -> bytes:
    return world.head("prod", world.bundle("v3"), since="2036-11-01T12:00:00Z")


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(world: World, name: str) -> None:
    """Each is refused by a resolver that trusts serial 2, and the refusal says why."""
    complaint, made = ATTACKS[name]
    state = world.trust("prod")
    data = made(world)
    if name == "a_policy_below_the_trusted_one":
        state = world.trust("prod")
    with pytest.raises(VerificationFailed) as refused:
        world.verify("prod", data, state=state)
    assert complaint in str(refused.value)


# ---------------------------------------------------------------- what must not be refused


def test_every_action_is_believed_in_turn(world: World) -> None:
    state = world.trust("prod")
    steps: list[Callable[[], object]] = [
        lambda: world.renew("prod"),
        lambda: world.renew("prod"),
        lambda: world.rollback("prod", 1),
        lambda: world.next_policy(),
        lambda: world.renew("prod"),
        lambda: world.rebind("prod", Bindings(disabled_models=["plain"])),
        lambda: world.renew("prod"),
        lambda: world.rollback("prod", 4),
        lambda: world.promote("prod", world.bundle("v3")),
    ]
    for step in steps:
        step()
        verified = world.verify("prod", state=state)
        state = verified.trusted_state(world.keyring, state)
        assert verified.alarms == ()
        assert verified.promotion.bundle == verified.release.bundle
        assert verified.promotion.action == "promotion"
    assert state.serial == 10


def test_gaps_are_allowed(world: World) -> None:
    state = world.trust("prod")
    for text in ("v3", "v4", "v5"):
        world.promote("prod", world.bundle(text))
    assert world.verify("prod", state=state).release.serial == 5


def test_serials_start_again_in_a_new_epoch(world: World) -> None:
    state = world.trust("prod")
    world.raise_epoch("prod", 2)
    world.promote("prod", world.bundle("v3"))
    verified = world.verify("prod", state=state)
    assert (verified.release.epoch, verified.release.serial) == (2, 1)
    assert verified.release.previous == state.head


def test_retired_keys_count_for_origins_and_evidence(world: World) -> None:
    world.add_principal("promoter-2", "promoter")
    for name in ("promoter", "evaluator", "builder", "approver"):
        world.set_state(name, "retired")
    world.rollback("prod", 1, actor="promoter-2")
    assert world.verify("prod").promotion.serial == 1


def test_surplus_evidence_of_a_compromised_key_is_an_alarm(world: World) -> None:
    world.add_principal("evaluator-2", "evaluator")
    bundle = world.bundle("v3")
    evidence = [*world.evidence(bundle), world.evaluation(bundle, signers=["evaluator-2"])]
    data = world.head("prod", bundle, evidence=evidence)
    world.set_state("evaluator-2", "compromised")
    [alarm] = world.verify("prod", data).alarms
    assert "evaluator-2, compromised" in alarm


def test_a_first_keyring_of_another_content_is_refused(world: World) -> None:
    state = world.trust("prod").model_copy(update={"keyring_digest": digest(b"fork")})
    with pytest.raises(VerificationFailed, match="two keyrings"):
        world.verify("prod", state=state)
    with pytest.raises(VerificationFailed, match="older than the trusted one"):
        world.verify("prod", state=state.model_copy(update={"keyring": 2}))
    with pytest.raises(VerificationFailed, match="another registry"):
        world.verify("prod", state=state.model_copy(update={"registry": digest(b"other")}))


def test_the_minimum_keyring_is_named(world: World) -> None:
    with pytest.raises(KeyringTooOld) as refused:
        world.verify("prod", world.head("prod", world.bundle("v3"), keyring=7))
    assert refused.value.details == {"minimum": 7}


# ---------------------------------------------------------------- the clock


def test_a_third_of_the_time_left_is_an_alarm(world: World) -> None:
    made = world.head_of("prod")[2].time
    assert world.verify("prod", now=made + timedelta(days=9)).alarms == ()
    [alarm] = world.verify("prod", now=made + timedelta(days=10)).alarms
    assert "less than a third" in alarm


def test_head_frozen_past_expiry_serves_with_an_alarm_or_is_refused(world: World) -> None:
    late = world.head_of("prod")[2].time + timedelta(days=15)
    [alarm] = world.verify("prod", now=late).alarms
    assert "expired at" in alarm
    gates = default_gates()
    gates["prod"] = gates["prod"].model_copy(update={"past_expiry": "refuse"})
    world.next_policy(gates=gates)
    world.promote("prod", world.bundle("v3"))
    late = world.clock + timedelta(days=15)
    with pytest.raises(Expired, match="refuses to serve"):
        world.verify("prod", now=late)
    # Who is about to succeed it must be able to judge it all the same.
    assert "expired" in world.verify("prod", now=late, serving=False).alarms[0]


def test_a_clock_before_the_trusted_release_is_an_alarm(world: World) -> None:
    made = world.head_of("prod")[2].time
    [alarm] = world.verify("prod", now=made - timedelta(hours=1)).alarms
    assert "The clock here says" in alarm
    assert world.verify("prod", now=made - timedelta(seconds=5)).alarms == ()


def test_an_expired_keyring_is_an_alarm(world: World) -> None:
    world.rotate(expires=world.clock + timedelta(days=1))
    assert "has expired" in world.verify("prod", now=world.clock + timedelta(days=2)).alarms[0]


def test_a_blocked_rollback_target_is_an_alarm(world: World) -> None:
    world.block(tiny_bundle("v1").digest)
    [alarm] = world.verify("prod").alarms
    assert "rollback target is blocked" in alarm


def test_a_blocked_bundle_is_said_to_be_blocked(world: World) -> None:
    world.block(tiny_bundle("v2").digest)
    with pytest.raises(Blocked):
        world.verify("prod")


def test_no_flipped_bit_of_a_head_is_believed(world: World) -> None:
    """By a resolver that has seen the head. One bit of each byte: all eight take a minute."""
    data = world.head_of("prod")[0].data
    state = world.trust("prod")
    for at in range(len(data)):
        with pytest.raises(VerificationFailed):
            world.verify("prod", flip(data, at, at % 8), state=state)


def test_a_renewal_of_a_promoter_s_renewal_is_refused(world: World) -> None:
    forged = parse_head(world.renewal_head("prod", actor="promoter"), "head")[0]
    world.renew("prod")
    with pytest.raises(VerificationFailed, match="renews a renewal"):
        world.verify("prod", world.renewal_head("prod", serial=9, origins=[forged.release]))
