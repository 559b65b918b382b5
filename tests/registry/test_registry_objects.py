"""What never changes: bundles, packs, blobs, attestations, keyrings; and every flipped bit of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundlectl.model.bundle import make_bundle
from bundlectl.model.canonical import digest
from bundlectl.model.errors import BundlectlError, NotFound, UsageError, VerificationFailed
from bundlectl.registry import layout
from bundlectl.registry.pack import pack, unpack
from bundlectl.registry.registry import Registry
from bundlectl.resolver.chain import verify_chain, verify_former
from bundlectl.resolver.keyrings import first_pin, open_trust
from bundlectl.storage.faults import FaultKind, FaultyStore, seeded
from bundlectl.storage.memory import MemoryStore
from bundlectl.trust.envelope import parse_envelope
from bundlectl.trust.policy import open_policy
from tests.support.world import World, flip, tiny_bundle


@pytest.fixture
def world() -> World:
    return World()


def put_back(store: MemoryStore, key: str, data: bytes) -> None:
    store.swap(key, data, store.get(key).tag)


def test_a_bundle_comes_back_byte_for_byte(world: World) -> None:
    bundle = world.bundle("v1")
    for _ in range(2):
        found = world.registry.get_bundle("support", bundle.digest)
        assert (found.manifest_bytes, found.blobs) == (bundle.manifest_bytes, bundle.blobs)
        world.registry.put_bundle("support", bundle)
    assert world.registry.has_bundle("support", bundle.digest)
    assert not world.registry.has_bundle("support", digest(b"other"))
    with pytest.raises(NotFound):
        world.registry.get_bundle("support", digest(b"other"))


def test_a_pack_is_a_function_of_the_bundle() -> None:
    bundle = tiny_bundle()
    assert pack(bundle) == pack(tiny_bundle())
    assert unpack(pack(bundle), bundle.digest).blobs == bundle.blobs
    for wrong in (b"", pack(bundle)[:-1], pack(bundle) + b"x", b"bundlectl-pack 2 1\n", pack(tiny_bundle("v2"))):
        with pytest.raises(VerificationFailed):
            unpack(wrong, bundle.digest)


def test_a_damaged_pack_falls_back_to_blobs_and_says_so(world: World) -> None:
    bundle = world.bundle("v1")
    assert isinstance(world.store, MemoryStore)
    key = layout.pack_key("support", bundle.digest)
    put_back(world.store, key, flip(pack(bundle), 200))
    assert world.registry.get_bundle("support", bundle.digest).blobs == bundle.blobs
    [warning] = world.warnings
    assert key in warning
    world.store.delete(key)
    assert world.registry.get_bundle("support", bundle.digest).blobs == bundle.blobs
    assert len(world.warnings) == 1


def test_a_damaged_pack_without_blobs_is_refused(world: World) -> None:
    bundle = world.bundle("v1")
    assert isinstance(world.store, MemoryStore)
    put_back(world.store, layout.pack_key("support", bundle.digest), b"junk")
    world.store.delete(layout.blob_key("support", bundle.digest))
    with pytest.raises(VerificationFailed, match="damaged"):
        world.registry.get_bundle("support", bundle.digest)


def test_files_swapped_between_two_valid_bundles(world: World) -> None:
    one, two = world.bundle("v1"), world.bundle("v2")
    assert isinstance(world.store, MemoryStore)
    keys = [layout.pack_key("support", bundle.digest) for bundle in (one, two)]
    packs = [world.store.get(key).data for key in keys]
    put_back(world.store, keys[0], packs[1])
    put_back(world.store, keys[1], packs[0])
    assert world.registry.get_bundle("support", one.digest).blobs == one.blobs
    layers = [set(one.blobs) - set(two.blobs), set(two.blobs) - set(one.blobs)]
    [ours], [theirs] = layers
    put_back(world.store, layout.blob_key("support", ours), two.blobs[theirs])
    with pytest.raises(VerificationFailed):
        world.registry.get_bundle("support", one.digest)


def test_another_app_s_bundle_is_neither_stored_nor_given(world: World) -> None:
    foreign = tiny_bundle(app="billing")
    with pytest.raises(VerificationFailed, match="not a bundle of app support"):
        world.registry.put_bundle("support", foreign)
    world.store.create(layout.pack_key("support", foreign.digest), pack(foreign))
    with pytest.raises(VerificationFailed, match="not a bundle of app support"):
        world.registry.get_bundle("support", foreign.digest)
    with pytest.raises(VerificationFailed, match="does not say"):
        world.registry.put_bundle("support", make_bundle({}, {}))


def test_other_bytes_under_a_digest_stop_a_write(world: World) -> None:
    bundle = world.bundle("v1")
    assert isinstance(world.store, MemoryStore)
    put_back(world.store, layout.blob_key("support", bundle.digest), b"forged")
    with pytest.raises(VerificationFailed, match="other bytes"):
        world.registry.put_bundle("support", bundle)
    name = world.registry.put_blob("support", b"report")
    put_back(world.store, layout.blob_key("support", name), b"forged")
    with pytest.raises(VerificationFailed, match="other bytes"):
        world.registry.get_blob("support", name)
    with pytest.raises(NotFound):
        world.registry.get_blob("support", digest(b"other"))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_writes_whose_replies_are_lost_are_there(seed: int) -> None:
    store = MemoryStore()
    faulty = FaultyStore(store, seeded(seed, {FaultKind.FAIL_AFTER: 0.3, FaultKind.DUPLICATE: 0.2}, methods={"create"}))
    bundle = tiny_bundle()
    Registry(faulty).put_bundle("support", bundle)
    assert Registry(store).get_bundle("support", bundle.digest).blobs == bundle.blobs


def test_find_by_the_beginning_of_a_digest(world: World) -> None:
    bundle = world.bundle("v1")
    hexes = bundle.digest.removeprefix("sha256:")
    for given_ in (hexes[:8], hexes, f"sha256:{hexes[:12]}"):
        assert world.registry.find("support", given_) == bundle.digest
    for wrong in (hexes[:7], hexes[:8].upper() + "G", "", hexes + "0"):
        with pytest.raises(UsageError, match="8 to 64"):
            world.registry.find("support", wrong)
    with pytest.raises(NotFound):
        world.registry.find("support", "0" * 8 if not hexes.startswith("0" * 8) else "1" * 8)
    world.store.create(layout.packs_prefix("support") + hexes[:8] + "0" * 56, b"")
    with pytest.raises(UsageError, match="2 bundles"):
        world.registry.find("support", hexes[:8])


def test_attestations_come_back_in_order_with_their_kind(world: World) -> None:
    bundle = world.bundle("v1")
    found = world.registry.attestations("support", bundle.digest)
    assert [kind for kind, _, _ in found] == ["approval", "evaluation", "provenance"]
    again = world.registry.attach("support", bundle.digest, found[0][0], found[0][2])
    assert again == found[0][1]
    assert len(world.registry.attestations("support", bundle.digest)) == 3
    world.store.create(layout.referrers_prefix("support", bundle.digest) + "approval/notes", b"")
    with pytest.raises(VerificationFailed, match="not the name of an attestation"):
        world.registry.attestations("support", bundle.digest)


def test_keyrings_and_policies_are_followed_one_by_one(world: World) -> None:
    world.rotate()
    world.rotate()
    world.next_policy()
    assert len(world.registry.latest_keyring(1)) == 2
    assert world.registry.latest_keyring(3) == []
    assert len(world.registry.latest_policy("support", 0)) == 2
    assert world.registry.apps() == ["support"]
    found = open_trust(world.registry, world.pin)
    assert (found.version, found.registry) == (3, world.registry_id)
    later = open_trust(world.registry, found.digest)
    assert (later.version, later.registry) == (3, world.registry_id)
    assert first_pin(world.registry) == world.pin
    with pytest.raises(VerificationFailed, match="pinned"):
        open_trust(world.registry, digest(b"other"))
    with pytest.raises(NotFound, match="no registry"):
        open_trust(Registry(MemoryStore()), world.pin)


@pytest.mark.parametrize("name", ["..", "a/b", "A", "", "a" * 41, ".x"])
def test_no_name_reaches_outside_its_prefix(name: str) -> None:
    bundle = digest(b"b")
    calls: list[Callable[[], str]] = [
        lambda: layout.app_prefix(name),
        lambda: layout.head_key("support", name),
        lambda: layout.history_key("support", name, 1, 1),
        lambda: layout.referrer_key("support", bundle, name, bundle),
        lambda: layout.blob_key("support", name),
        lambda: layout.pack_key("support", f"sha256:{name}"),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()


# ---------------------------------------------------------------- every flipped bit


def whole_world() -> World:
    world = World()
    world.promote("prod", world.bundle("v1"))
    world.promote("prod", world.bundle("v2"))
    world.rollback("prod", 1)
    world.rotate()
    world.next_policy()
    world.renew("prod")
    world.registry.put_blob("support", b"a report")
    return world


def read_everything(world: World, store: MemoryStore) -> dict[str, Any]:
    """Read and verify all there is; each answer is what would be believed, or the error."""
    registry = Registry(store, on_warning=lambda _: None)
    bundles = [tiny_bundle(text).digest for text in ("v1", "v2")]
    keyring = world.keyring

    def history() -> list[Any]:
        asked: dict[str, Any] = {
            "app": "support",
            "environment": "prod",
            "registry_id": world.registry_id,
            "keyring": keyring,
        }
        formers = (verify_former(e.data, **asked) for e in registry.releases.history("support", "prod"))
        entries = list(verify_chain(formers))
        return [(e.release, e.promotion) for e in entries] + [e.data for e in entries[1:]]

    def head() -> Any:
        state = registry.releases.read_head("support", "prod")
        assert state is not None
        verified = world.verify("prod", state.data)
        return verified.release, verified.promotion, [e.statement for e in verified.evidence], verified.policy.digest

    def head_with_state() -> bytes:
        state = registry.releases.read_head("support", "prod")
        assert state is not None
        return world.verify("prod", state.data, state=world.trust("prod")).data

    def policies() -> list[str]:
        found = [parse_envelope(data, "policy") for data in registry.latest_policy("support", 0)]
        return [open_policy(envelope, keyring, "support").digest for envelope in found]

    readers: dict[str, Callable[[], Any]] = {
        "keyring": lambda: open_trust(registry, world.pin).document,
        "policies": policies,
        "head": head,
        "head with state": head_with_state,
        "history": history,
        "report": lambda: registry.get_blob("support", digest(b"a report")),
    }
    for name in bundles:
        readers[f"bundle {name}"] = lambda name=name: registry.get_bundle("support", name).blobs
        readers[f"blobs {name}"] = lambda name=name: registry._from_blobs("support", name, damaged_pack=False).blobs
        readers[f"attestations {name}"] = lambda name=name: registry.attestations("support", name)
    found: dict[str, Any] = {}
    for name, reader in readers.items():
        try:
            found[name] = reader()
        except BundlectlError as error:
            found[name] = error
    return found


WORLD = whole_world()
KEYS = sorted(WORLD.store.list(""))


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    assert isinstance(WORLD.store, MemoryStore)
    found = read_everything(WORLD, WORLD.store)
    assert not [value for value in found.values() if isinstance(value, BundlectlError)]
    return found


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_an_error_or_the_truth(truth: dict[str, Any], key: str, where: float, bit: int) -> None:
    store = MemoryStore()
    for name in KEYS:
        data = WORLD.store.get(name).data
        store.create(name, flip(data, int(where * len(data)), bit) if name == key and data else data)
    for name, value in read_everything(WORLD, store).items():
        assert isinstance(value, BundlectlError) or value == truth[name], f"{key} flipped: {name}"


def test_every_file_was_meant() -> None:
    """The property above covers every kind of object that a registry has."""
    parts = ("keyring/", "/policy/", "/blobs/", "/packs/", "/referrers/", "/head.json", "/history/")
    assert all(any(part in key for key in KEYS) for part in parts)
