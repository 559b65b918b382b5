"""Attacks on a registry by someone who can write to all of it, named as TUF and in-toto name them.

Each takes a world whose prod serves release 2 (bundle v2, keyring 1), does its worst to the store, and says what
whoever follows prod must complain of. ``ATTACKS`` is the table; any store and any follower can be put to it.

TUF: https://theupdateframework.github.io/specification/latest/#goals-for-specific-attacks-to-protect-against
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bundlectl.model.attestation import KEYRING_PAYLOAD_TYPE
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.keyring import Grant, Signers
from bundlectl.model.release import MAX_HEAD
from bundlectl.registry.layout import blob_key, head_key, history_key, keyring_key, pack_key
from bundlectl.registry.pack import pack
from bundlectl.storage.store import KeyMissing, Store
from bundlectl.trust.envelope import envelope_bytes, seal
from tests.support.world import World, entry, signer, tiny_bundle

Attack = Callable[[World], None]
ATTACKS: dict[str, tuple[str, Attack]] = {}
"""Name -> what must be complained of, and the attack."""

APP, ENV = "support", "prod"


def attack(complaint: str) -> Callable[[Attack], Attack]:
    """Put an attack into the table under its name."""

    def register(made: Attack) -> Attack:
        ATTACKS[made.__name__] = (complaint, made)
        return made

    return register


def put(store: Store, key: str, data: bytes) -> None:
    """Write over whatever is there."""
    try:
        tag = store.get(key).tag
    except KeyMissing:
        store.create(key, data)
        return
    store.swap(key, data, tag)


def put_head(world: World, data: bytes) -> None:
    """Write over prod's head."""
    put(world.store, head_key(APP, ENV), data)


def forged_keyring(world: World, *signers: str, **changes: Any) -> bytes:
    """Make the next keyring with any change, checked by nobody."""
    fields = {"version": world.keyring.version + 1, "previous": world.keyring.digest, **changes}
    document = world.keyring.document.model_copy(update=fields)
    return envelope_bytes(seal(canonical(document.form()), KEYRING_PAYLOAD_TYPE, [signer(name) for name in signers]))


# ---------------------------------------------------------------- arbitrary software


@attack("No key of the keyring signed it")
def arbitrary_software_signed_by_a_stranger(world: World) -> None:
    put_head(world, world.head(ENV, world.bundle("evil"), signer="mallory"))


@attack("is not signed by a promoter")
def arbitrary_software_with_a_signature_taken_away(world: World) -> None:
    form = json.loads(world.head(ENV, world.bundle("evil")))
    form["release"]["signatures"] = []
    put_head(world, canonical(form))


@attack("has other bytes than its digest says")
def arbitrary_bytes_under_a_promoted_digest(world: World) -> None:
    bundle = world.bundle("v3")
    evil = tiny_bundle("evil")
    world.promote(ENV, bundle)
    put(world.store, pack_key(APP, bundle.digest), pack(evil))
    put(world.store, blob_key(APP, bundle.digest), evil.manifest_bytes)


# ---------------------------------------------------------------- rollback, fast-forward, freeze


@attack("not Unicode")
def arbitrary_text_that_is_none_in_a_head(world: World) -> None:
    """Half a surrogate pair, which JSON can spell and nothing can write again."""
    form = json.loads(world.head(ENV, world.bundle("evil")))
    form["release"]["signatures"][0]["keyid"] = "\ud800"
    put_head(world, json.dumps(form, separators=(",", ":"), sort_keys=True).encode())


@attack("an older head was put back")
def rollback_to_an_older_head(world: World) -> None:
    put_head(world, world.store.get(history_key(APP, ENV, 1, 1)).data)


@attack("Keyring 2 is refused")
def rollback_of_the_keyring_by_another_second_version(world: World) -> None:
    put(world.store, keyring_key(2), forged_keyring(world, "root", previous=digest(b"another first")))
    world.tick(minutes=11)


@attack("is a renewal that")
def rollback_by_a_renewer_alone(world: World) -> None:
    put_head(world, world.renewal_head(ENV, bundle=world.bundle("v1").digest))


@attack("epoch 7; the keyring says epoch 1")
def fast_forward_to_an_epoch_that_never_began(world: World) -> None:
    put_head(world, world.head(ENV, world.bundle("evil"), epoch=7, serial=10**15))


@attack("expired at")
def indefinite_freeze(world: World) -> None:
    world.tick(days=15)


# ---------------------------------------------------------------- mix and match, wrong target


@attack("has other bytes than its digest says")
def mix_and_match_of_two_bundles_files(world: World) -> None:
    one, two = world.bundle("v3"), world.bundle("v4")
    world.promote(ENV, one)
    put(world.store, pack_key(APP, one.digest), world.store.get(pack_key(APP, two.digest)).data)
    for mine, theirs in zip(one.manifest.layers, two.manifest.layers, strict=True):
        put(world.store, blob_key(APP, mine.digest), two.blobs[theirs.digest])


@attack("is about something else")
def mix_and_match_of_evidence_and_bundle(world: World) -> None:
    put_head(world, world.head(ENV, world.bundle("evil", evidence=False), evidence=world.evidence(world.bundle("v2"))))


@attack("copied here")
def wrong_target_a_release_of_staging(world: World) -> None:
    world.promote("staging", world.bundle("v3"))
    put_head(world, world.head_of("staging")[0].data)


@attack("another registry")
def wrong_target_a_release_of_another_registry(world: World) -> None:
    other = World(principals={"mallory": entry("mallory")})
    other.promote(ENV, other.bundle("v1"))
    put_head(world, other.head_of(ENV)[0].data)


@attack("payload type")
def wrong_payload_type(world: World) -> None:
    put_head(world, world.head(ENV, world.bundle("evil"), payload_type="application/vnd.bundlectl.policy.v1+json"))


# ---------------------------------------------------------------- roles, thresholds, compromise


@attack("not signed by a promoter")
def wrong_role_an_evaluator_promotes(world: World) -> None:
    put_head(world, world.head(ENV, world.bundle("evil"), signer="evaluator"))


@attack("not signed by a renewer")
def wrong_role_a_promoter_renews(world: World) -> None:
    put_head(world, world.renewal_head(ENV, signer="promoter"))


@attack("does not carry the evidence")
def skipped_step_no_evaluation_though_the_promoter_signed(world: World) -> None:
    bundle = world.bundle("evil")
    put_head(world, world.head(ENV, bundle, evidence=[world.provenance(bundle), world.approval(bundle)]))


@attack("not signed by an evaluator")
def wrong_functionary_the_builder_signs_the_evaluation(world: World) -> None:
    bundle = world.bundle("evil")
    evidence = [world.provenance(bundle), world.evaluation(bundle, signers=["builder"]), world.approval(bundle)]
    put_head(world, world.head(ENV, bundle, evidence=evidence))


@attack("1 of 2 needed approvals")
def threshold_with_one_key_signing_twice(world: World) -> None:
    gates = dict(world.policy_document.environments)
    gates[ENV] = gates[ENV].model_copy(update={"approvals": 2})
    world.next_policy(gates)
    bundle = world.bundle("evil")
    evidence = [*world.evidence(bundle), world.approval(bundle, signers=["approver", "approver"])]
    put_head(world, world.head(ENV, bundle, evidence=evidence))


@attack("one key under two names")
def threshold_with_one_key_under_two_names(world: World) -> None:
    named = {**world.keyring.document.principals, "approver-2": entry("approver")}
    grants = [*world.keyring.document.grants, Grant(role="approver", principals=["approver-2"])]
    put(world.store, keyring_key(2), forged_keyring(world, "root", principals=named, grants=grants))
    world.tick(minutes=11)


@attack("is not signed by enough")
def key_rotation_by_someone_who_is_not_root(world: World) -> None:
    named = {**world.keyring.document.principals, "mallory": entry("mallory")}
    changes = {"principals": named, "root": Signers(principals=["mallory"])}
    put(world.store, keyring_key(2), forged_keyring(world, "mallory", **changes))
    world.tick(minutes=11)


@attack("promoter (compromised)")
def key_compromise_a_head_that_claims_an_older_keyring(world: World) -> None:
    world.add_principal("promoter-2", "promoter")
    world.promote(ENV, world.bundle("v2"), actor="promoter-2")
    stolen = world.head(ENV, world.bundle("evil"), keyring=1)
    world.set_state("promoter", "compromised")
    put_head(world, stolen)


# ---------------------------------------------------------------- denial of service


@attack("at most")
def endless_data_in_head(world: World) -> None:
    put_head(world, world.head_of(ENV)[0].data + b" " * MAX_HEAD)


@attack("larger than an envelope may be")
def endless_data_in_the_next_keyring(world: World) -> None:
    put(world.store, keyring_key(2), b" " * (2 * 1024 * 1024))
    world.tick(minutes=11)


@attack("nested deeper")
def endless_depth(world: World) -> None:
    put_head(world, b"[" * 900 + b"]" * 900)


@attack("a history and no head")
def everything_of_the_environment_deleted_but_its_history(world: World) -> None:
    world.store.delete(head_key(APP, ENV))


@attack("has no bundle")
def the_bundle_s_bytes_deleted(world: World) -> None:
    bundle = world.bundle("v3")
    world.promote(ENV, bundle)
    for key in [pack_key(APP, bundle.digest), blob_key(APP, bundle.digest)]:
        if any(found == key for found in world.store.list(key.rsplit("/", 1)[0] + "/")):
            world.store.delete(key)
