"""The resolver over a registry in memory: what serves, what is refused, what survives a restart."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bundlectl.model.attestation import KEYRING_PAYLOAD_TYPE
from bundlectl.model.bindings import Bindings
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError, VerificationFailed
from bundlectl.registry.layout import head_key, keyring_key, pack_key
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Event, Resolver
from bundlectl.resolver.trusted import Blocked, Expired, VerifiedBundle
from bundlectl.storage.faults import Fault, FaultKind, FaultyStore
from bundlectl.storage.memory import MemoryStore
from tests.support.world import World, default_gates, tiny_bundle

Compiled = tuple[int, str]
"""What prepare makes in these tests: the serial and the bundle's digest."""


class Rig:
    """A world, a registry that can be switched off, and resolvers of prod in it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.world = World()
        self.down = False
        plan_down = Fault(FaultKind.FAIL_BEFORE)
        plan_up = Fault(FaultKind.PASS)
        self.store = FaultyStore(self.world.store, lambda call: plan_down if self.down else plan_up)
        self.registry = Registry(self.store)
        self.folder = folder
        self.events: list[Event] = []
        self.broken: set[str] = set()
        self.prepared: list[int] = []

    async def prepare(self, bundle: VerifiedBundle) -> Compiled:
        if bundle.bundle.digest in self.broken:
            raise UsageError("An index is not there.")
        self.prepared.append(bundle.ref.serial)
        return bundle.ref.serial, bundle.bundle.digest

    def resolver(
        self, *, pin: str | None = None, poll: float = 3600.0, witness: Callable[[], None] | None = None
    ) -> Resolver[Compiled]:
        return Resolver(
            self.registry,
            "support",
            "prod",
            pin or self.world.pin,
            self.prepare,
            state_dir=self.folder,
            poll=poll,
            clock=self.world.now,
            on_event=self.events.append,
            witness=witness,
        )

    def kinds(self) -> list[str]:
        found = [event.kind for event in self.events]
        self.events.clear()
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path / "state")
    made.world.promote("prod", made.world.bundle("v1"))
    return made


async def test_it_serves_the_head_and_follows_it(rig: Rig) -> None:
    resolver = rig.resolver(poll=0.01)
    with pytest.raises(VerificationFailed, match="not resolved yet"):
        resolver.current()
    await resolver.start()
    assert resolver.current() == (1, tiny_bundle("v1").digest)
    rig.world.promote("prod", rig.world.bundle("v2"))
    rig.world.rollback("prod", 1)
    async with asyncio.timeout(5):
        while resolver.current()[0] != 3:
            await asyncio.sleep(0.005)
    assert resolver.current() == (3, tiny_bundle("v1").digest)
    await resolver.stop()
    assert resolver.current()[0] == 3
    status = resolver.status
    assert (status.source, status.serial, status.stale, status.last_error) == ("registry", 3, False, None)


async def test_an_unchanged_poll_is_one_call(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    before = len(rig.store.calls)
    await resolver.poll_now()
    assert rig.store.calls[before:] == [("get_if_changed", head_key("support", "prod"))]
    await resolver.stop()


async def test_a_cold_resolve_is_four_calls(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    assert [method for method, _ in rig.store.calls] == ["get"] * 4  # keyring 1, no keyring 2, head, pack
    await resolver.stop()


async def test_what_is_refused_is_reported_and_the_last_good_stays(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    world = rig.world
    good = world.head_of("prod")[0]
    assert isinstance(world.store, MemoryStore)
    forged = world.head("prod", world.bundle("v2"), signer="mallory")
    world.store.swap(head_key("support", "prod"), forged, good.tag)
    for _ in range(3):
        await resolver.poll_now()
    assert resolver.current()[0] == 1
    assert rig.kinds() == ["serving", "refused"]
    assert resolver.status.stale_since == world.clock
    assert "No key of the keyring" in (resolver.status.last_error or "")
    world.store.swap(head_key("support", "prod"), good.data, world.store.get(head_key("support", "prod")).tag)
    await resolver.poll_now()
    assert not resolver.status.stale
    assert rig.kinds() == ["reachable"]
    await resolver.stop()


async def test_an_older_head_put_back_is_refused_also_after_restart(rig: Rig) -> None:
    world = rig.world
    old = world.head_of("prod")[0].data
    world.promote("prod", world.bundle("v2"))
    for restart in (False, True):
        resolver = rig.resolver()
        if not restart:
            await resolver.start()
            assert isinstance(world.store, MemoryStore)
            tag = world.store.get(head_key("support", "prod")).tag
            world.store.swap(head_key("support", "prod"), old, tag)
            await resolver.poll_now()
        else:
            await resolver.start()
            assert resolver.status.source == "last_good"
        assert resolver.current()[0] == 2
        assert "put back" in (resolver.status.last_error or "")
        await resolver.stop()


async def test_the_registry_away_and_back(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.down = True
    gone = rig.world.tick()
    await resolver.poll_now()
    rig.world.tick()
    await resolver.poll_now()
    assert resolver.current()[0] == 1
    assert (resolver.status.stale_since, resolver.status.stale) == (gone, True)
    await resolver.stop()
    again = rig.resolver()
    await again.start()
    assert again.current()[0] == 1
    assert again.status.source == "last_good"
    rig.down = False
    rig.world.promote("prod", rig.world.bundle("v2"))
    await again.poll_now()
    assert again.current()[0] == 2
    assert (again.status.source, again.status.stale) == ("registry", False)
    assert rig.kinds() == ["serving", "unreachable", "unreachable", "serving", "serving", "reachable"]
    await again.stop()


async def test_the_end_of_every_outage_is_told(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    for _ in range(2):
        for rig.down in (True, False):
            await resolver.poll_now()
    assert rig.kinds() == ["serving", "unreachable", "reachable", "unreachable", "reachable"]
    await resolver.stop()


async def test_a_cold_start_without_anything_says_why(rig: Rig) -> None:
    rig.down = True
    with pytest.raises(BackendUnavailable):
        await rig.resolver().start()
    rig.down = False
    with pytest.raises(VerificationFailed, match="pinned"):
        await rig.resolver(pin=f"sha256:{'0' * 64}").start()
    nothing = Rig()
    with pytest.raises(NotFound, match="Nothing is released"):
        await nothing.resolver().start()


async def test_an_unreadable_last_good_is_a_cold_start_with_an_alarm(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    await resolver.stop()
    assert rig.folder is not None
    [file] = rig.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    rig.kinds()
    again = rig.resolver()
    await again.start()
    assert again.status.source == "registry"
    assert rig.kinds() == ["alarm", "serving"]
    await again.stop()


async def test_a_blocked_bundle_stops_serving_at_once_and_a_new_one_serves(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.block(tiny_bundle("v1").digest)
    await resolver.poll_now()
    assert resolver.current()[0] == 1  # the keyring is asked for every 10 minutes
    rig.world.tick(minutes=11)
    await resolver.poll_now()
    with pytest.raises(Blocked, match="leaks a secret"):
        resolver.current()
    assert "leaks a secret" in (resolver.status.stopped or "")
    await resolver.poll_now()
    rig.world.promote("prod", rig.world.bundle("v2"))
    await resolver.poll_now()
    assert resolver.current()[0] == 2
    assert resolver.status.stopped is None
    assert rig.kinds() == ["serving", "stopped", "serving", "alarm"]  # the alarm: its rollback target is blocked
    await resolver.stop()


async def test_a_block_that_could_not_be_asked_for_is_asked_for_again_at_the_next_poll(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.block(tiny_bundle("v1").digest)
    rig.world.tick(minutes=11)
    rig.down = True
    await resolver.poll_now()
    assert resolver.current()[0] == 1
    rig.down = False
    await resolver.poll_now()
    with pytest.raises(Blocked):
        resolver.current()
    await resolver.stop()


@pytest.mark.parametrize("again", [False, True])
async def test_a_block_that_was_heard_before_the_registry_went_away_is_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The keyring that blocks was read, whether there is one more was not: a restart then knows of the block."""
    resolver = rig.resolver()
    await resolver.start()
    rig.world.block(tiny_bundle("v1").digest)
    rig.world.tick(minutes=11)
    asked = rig.registry.keyring_bytes

    def cut(version: int) -> bytes | None:
        if version == 3:
            raise BackendUnavailable("The registry went away.")
        return asked(version)

    with monkeypatch.context() as patch:
        patch.setattr(rig.registry, "keyring_bytes", cut)
        await resolver.poll_now()
    with pytest.raises(Blocked):
        resolver.current()
    if again:
        await resolver.poll_now()
    await resolver.stop()
    rig.down = True
    with pytest.raises((BackendUnavailable, Blocked)):
        await rig.resolver().start()


async def test_a_witness_that_is_away_does_not_make_every_poll_wait_for_it(rig: Rig) -> None:
    """Asking it takes half a minute while it hangs, and a rollback is to reach everybody within one poll."""
    asked: list[str] = []

    def away() -> None:
        asked.append("asked")
        raise BackendUnavailable("Parameter Store is away.")

    resolver = rig.resolver(witness=away)
    await resolver.start()
    for _ in range(5):
        at = rig.world.tick(seconds=5)
        rig.world.promote("prod", rig.world.bundle("v2"))
        rig.world.clock = at
        await resolver.poll_now()
        assert "not known" in resolver.status.alarms[0], "and it is said all the while"
    assert (len(asked), resolver.current()[0]) == (1, 6)
    rig.world.tick(minutes=1)
    await resolver.poll_now()
    assert len(asked) == 2
    await resolver.stop()


NO_FORM = {"text": "\ud800", "number": 2**70, "infinite": float("1e999")}


@pytest.mark.parametrize("what", [*NO_FORM, "identity"])
async def test_a_next_keyring_of_anybody_that_nothing_can_write_is_refused_and_stops_nothing(
    rig: Rig, what: str
) -> None:
    """Nobody signed it: it must not get so far that judging it breaks, neither while running nor at a start."""
    document = {**rig.world.keyring.document.form(), "version": 2, "previous": rig.world.keyring.digest}
    if what == "identity":
        who = {"owner": "x", "oidc": {"issuer": "\ud800", "subject": "x"}}
        document["principals"] = {**document["principals"], "x": who}
    else:
        root = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1", "x": NO_FORM[what]}
        document["sigstore"] = [{"name": "x", "issuers": ["x"], "trusted_root": root}]
    data = json.dumps(document).replace("Infinity", "1e999").encode()
    payload = base64.b64encode(data).decode()
    forged = {"payload": payload, "payloadType": KEYRING_PAYLOAD_TYPE, "signatures": [{"keyid": "", "sig": "AAAA"}]}
    resolver = rig.resolver()
    await resolver.start()
    rig.world.store.create(keyring_key(2), json.dumps(forged).encode())
    rig.world.tick(minutes=11)
    rig.world.promote("prod", rig.world.bundle("v2"))
    await resolver.poll_now()
    assert resolver.current()[0] == 2, "what is released is followed all the same"
    assert "Keyring 2 is refused" in " ".join(resolver.status.alarms)
    await resolver.stop()
    again = rig.resolver()
    await again.start()
    assert again.current()[0] == 2
    await again.stop()


async def test_a_blocked_bundle_is_not_served_from_disk_either(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.block(tiny_bundle("v1").digest)
    rig.world.tick(minutes=11)
    await resolver.poll_now()
    await resolver.stop()
    for down in (True, False):
        rig.down = down
        with pytest.raises((BackendUnavailable, Blocked)):
            await rig.resolver().start()


async def test_a_block_heard_of_at_start_keeps_the_last_good_from_serving(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    await resolver.stop()
    rig.world.block(tiny_bundle("v1").digest)
    with pytest.raises(Blocked):
        await rig.resolver().start()


async def test_on_compromise_the_running_bundle_goes_on_with_an_alarm(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.set_state("promoter", "compromised")
    rig.world.tick(minutes=11)
    await resolver.poll_now()
    await resolver.stop()
    for _ in range(3):
        again = rig.resolver()
        await again.start()
        assert again.current()[0] == 1
        assert any("promoter (compromised)" in alarm for alarm in again.status.alarms)
        await again.stop()
    world = rig.world
    world.add_principal("promoter-2", "promoter")
    world.raise_epoch("prod", 2)
    world.promote("prod", world.bundle("v2"), actor="promoter-2")
    again = rig.resolver()
    await again.start()
    assert again.current() == (1, tiny_bundle("v2").digest)
    assert (again.status.epoch, again.status.alarms) == (2, ())
    await again.stop()


async def test_a_keyring_that_does_not_follow_is_an_alarm_and_stops_nothing(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.store.create(keyring_key(2), b"junk")
    rig.world.promote("prod", rig.world.bundle("v2"))
    await resolver.poll_now()
    assert resolver.current()[0] == 2
    assert "alarm" in rig.kinds()
    await resolver.stop()


async def test_a_newer_keyring_is_fetched_when_the_release_demands_it(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    rig.world.rotate()
    rig.world.promote("prod", rig.world.bundle("v2"))
    await resolver.poll_now()
    assert resolver.current()[0] == 2
    await resolver.stop()


async def test_past_expiry_it_refuses_where_the_policy_says_so_and_a_renewal_resumes(rig: Rig) -> None:
    gates = default_gates()
    gates["prod"] = gates["prod"].model_copy(update={"past_expiry": "refuse"})
    rig.world.next_policy(gates=gates)
    rig.world.promote("prod", rig.world.bundle("v2"))
    resolver = rig.resolver()
    await resolver.start()
    rig.world.tick(days=10)
    await resolver.poll_now()
    assert any("less than a third" in alarm for alarm in resolver.status.alarms)
    rig.down = True  # a head frozen past expiry: the registry need not answer for it to be noticed
    rig.world.tick(days=5)
    await resolver.poll_now()
    with pytest.raises(Expired):
        resolver.current()
    rig.down = False
    rig.world.renew("prod")
    await resolver.poll_now()
    assert resolver.current()[0] == 3
    await resolver.stop()


async def test_a_release_that_cannot_be_prepared_is_tried_again(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    bundle = rig.world.bundle("v2")
    rig.broken.add(bundle.digest)
    rig.world.promote("prod", bundle)
    await resolver.poll_now()
    assert resolver.current()[0] == 1
    assert "An index is not there" in (resolver.status.last_error or "")
    rig.broken.clear()
    await resolver.poll_now()
    assert resolver.current()[0] == 2
    assert rig.kinds() == ["serving", "refused", "serving"]
    await resolver.stop()


async def test_a_bundle_whose_bytes_are_gone_is_refused(rig: Rig) -> None:
    resolver = rig.resolver()
    await resolver.start()
    bundle = tiny_bundle("v2")
    rig.world.promote("prod", bundle, evidence=rig.world.evidence(bundle))
    await resolver.poll_now()
    assert resolver.current()[0] == 1
    rig.world.registry.put_bundle("support", bundle)
    rig.world.store.delete(pack_key("support", bundle.digest))
    await resolver.poll_now()
    assert resolver.current()[0] == 2
    await resolver.stop()


async def test_bindings_are_swapped_with_the_bundle_in_one_reference(rig: Rig) -> None:
    seen: list[VerifiedBundle] = []

    async def prepare(bundle: VerifiedBundle) -> VerifiedBundle:
        seen.append(bundle)
        return bundle

    resolver = Resolver(rig.registry, "support", "prod", rig.world.pin, prepare, clock=rig.world.now)
    await resolver.start()
    rig.world.rebind("prod", Bindings(disabled_models=["plain"]))
    await resolver.poll_now()
    assert resolver.current().bindings.disabled_models == ["plain"]
    assert resolver.current().ref.serial == 2
    assert seen[0].ref.bindings != seen[1].ref.bindings
    await resolver.stop()


async def test_a_defect_in_prepare_is_told_and_polling_goes_on(rig: Rig) -> None:
    fail = False

    async def prepare(bundle: VerifiedBundle) -> int:
        if fail:
            raise KeyError("a defect")
        return bundle.ref.serial

    resolver = Resolver(
        rig.registry,
        "support",
        "prod",
        rig.world.pin,
        prepare,
        poll=0.01,
        clock=rig.world.now,
        on_event=rig.events.append,
    )
    await resolver.start()
    fail = True
    rig.world.promote("prod", rig.world.bundle("v2"))
    async with asyncio.timeout(5):
        while "defect" not in [event.kind for event in rig.events]:
            await asyncio.sleep(0.005)
    assert resolver.current() == 1
    fail = False
    async with asyncio.timeout(5):
        while resolver.current() != 2:
            await asyncio.sleep(0.005)
    await resolver.stop()


async def test_a_state_folder_that_cannot_be_written_is_an_alarm(rig: Rig, tmp_path: Path) -> None:
    rig.folder = tmp_path / "file"
    rig.folder.write_text("in the way")
    resolver = rig.resolver()
    await resolver.start()
    assert resolver.current()[0] == 1
    assert "alarm" in rig.kinds()
    await resolver.stop()


async def test_hot_swaps_are_never_mixed(rig: Rig) -> None:
    """Readers see whole references only, in order, while head moves."""
    digests = {n: rig.world.bundle(f"v{n % 2}").digest for n in range(2, 12)}
    resolver = rig.resolver(poll=0.001)
    await resolver.start()
    seen: list[Compiled] = []

    async def read() -> None:
        while not seen or seen[-1][0] < 11:
            seen.append(resolver.current())
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        reader = asyncio.create_task(read())
        for serial, name in digests.items():
            rig.world.promote("prod", name)
            while resolver.current()[0] < serial:
                await asyncio.sleep(0.001)
        await reader
    assert [serial for serial, _ in seen] == sorted(serial for serial, _ in seen)
    assert all(name == digests[serial] for serial, name in seen if serial > 1)
    await resolver.stop()


async def test_stop_ends_a_slow_poll(rig: Rig) -> None:
    resolver = rig.resolver(poll=0.001)
    await resolver.start()
    await asyncio.sleep(0.02)
    started = asyncio.get_running_loop().time()
    await resolver.stop()
    assert asyncio.get_running_loop().time() - started < 2


async def test_who_was_not_started_follows_nothing(rig: Rig) -> None:
    with pytest.raises(RuntimeError, match="start"):
        await rig.resolver().poll_now()
