"""The commit of a release: one winner per serial, whatever is lost, doubled, raced or killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import BackendUnavailable, Conflict, NotFound, VerificationFailed
from bundlectl.registry.layout import head_key, history_key
from bundlectl.registry.registry import Registry
from bundlectl.registry.releases import HeadState, Releases
from bundlectl.resolver.chain import verify_chain, verify_former
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.faults import Crash, FaultKind, FaultyStore, once, seeded
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import OutcomeUnknown, Store, StoreUnavailable, Tag
from tests.support.world import World

HEAD = head_key("support", "dev")


class Ticking:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def releases_on(store: Store) -> Releases:
    clock = Ticking()
    return Releases(store, monotonic=clock, sleep=clock.sleep)


class Meddled(MemoryStore):
    """Runs ``meddle`` once in place of the next swap of head."""

    meddle: Callable[[str, bytes, Tag | None], Tag] | None = None

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        if self.meddle is not None and key == HEAD:
            meddle, self.meddle = self.meddle, None
            return meddle(key, data, expected)
        return super().swap(key, data, expected)


def check_chain(world: World, environment: str = "dev") -> list[int]:
    """Verify every release and every link as ``history --verify`` does; give the serials, newest first."""
    asked: dict[str, Any] = {
        "app": world.app,
        "environment": environment,
        "registry_id": world.registry_id,
        "keyring": world.keyring,
    }
    entries = Registry(world.store).releases.history(world.app, environment)
    found = verify_chain(verify_former(entry.data, **asked) for entry in entries)
    return [one.release.serial for one in found]


@pytest.fixture
def world() -> World:
    return World(Meddled())


def released(world: World, count: int = 2) -> list[Bundle]:
    bundles = [world.bundle(f"v{n}", evidence=False) for n in range(1, count + 1)]
    for bundle in bundles:
        world.promote("dev", bundle)
    return bundles


def test_history_is_newest_first_and_read_lazily(world: World) -> None:
    released(world, 3)
    history = world.registry.releases.history("support", "dev")
    first = next(history)
    assert (first.live, first.release.serial) == (True, 3)
    assert [entry.release.serial for entry in history] == [2, 1]
    assert world.registry.releases.release_at("support", "dev", 2).release.serial == 2
    assert world.registry.releases.release_at("support", "dev", 3).live
    for serial in (4, 99):
        with pytest.raises(NotFound):
            world.registry.releases.release_at("support", "dev", serial)
    assert world.registry.environments("support") == ["dev"]


def test_nothing_released_is_no_head(world: World) -> None:
    assert world.registry.releases.read_head("support", "dev") is None
    assert list(world.registry.releases.history("support", "dev")) == []


def test_the_loser_is_told_who_won_and_stores_nothing_live(world: World) -> None:
    [bundle] = released(world, 1)
    present = world.registry.releases.read_head("support", "dev")
    ours = world.head("dev", world.bundle("ours", evidence=False))
    won = world.promote("dev", bundle, reason="the hotfix")
    with pytest.raises(Conflict) as lost:
        world.registry.releases.commit("support", "dev", present, ours)
    assert lost.value.details["serial"] == 2
    assert lost.value.details["actor"] == "promoter"
    assert "the hotfix" in lost.value.why
    assert world.head_of("dev")[0].data == won.data
    assert check_chain(world) == [2, 1]


def test_the_loser_of_a_first_release(world: World) -> None:
    ours = world.head("dev", world.bundle("ours", evidence=False))
    world.promote("dev", world.bundle("v1", evidence=False))
    with pytest.raises(Conflict):
        world.registry.releases.commit("support", "dev", None, ours)


def test_a_loser_two_releases_behind_is_told_who_has_its_serial(world: World) -> None:
    released(world, 1)
    present = world.registry.releases.read_head("support", "dev")
    ours = world.head("dev", world.bundle("ours", evidence=False))
    world.promote("dev", world.bundle("v2", evidence=False), reason="second")
    world.promote("dev", world.bundle("v3", evidence=False), reason="third")
    with pytest.raises(Conflict) as lost:
        world.registry.releases.commit("support", "dev", present, ours)
    assert (lost.value.details["serial"], "second" in lost.value.why) == (2, True)


def test_a_winner_that_cannot_be_read_is_still_a_conflict(world: World) -> None:
    released(world, 1)
    present = world.registry.releases.read_head("support", "dev")
    ours = world.head("dev", world.bundle("ours", evidence=False))
    assert present is not None
    world.store.swap(HEAD, b"garbage", present.tag)
    with pytest.raises(VerificationFailed):
        world.registry.releases.commit("support", "dev", present, ours)


@pytest.mark.parametrize("fault", [FaultKind.FAIL_AFTER, FaultKind.DUPLICATE])
@pytest.mark.parametrize("key", [HEAD, history_key("support", "dev", 1, 1)])
def test_a_lost_or_doubled_reply_is_read_back(world: World, fault: FaultKind, key: str) -> None:
    released(world, 1)
    data = world.head("dev", world.bundle("v2", evidence=False))
    faulty = FaultyStore(world.store, once("swap" if key == HEAD else "create", key, fault))
    present = releases_on(faulty).read_head("support", "dev")
    state = releases_on(faulty).commit("support", "dev", present, data)
    assert (state.data, state.tag) == (data, world.store.get(HEAD).tag)
    assert check_chain(world) == [2, 1]


def test_no_reply_and_already_succeeded_by_another(world: World) -> None:
    released(world, 1)
    data = world.head("dev", world.bundle("v2", evidence=False))

    def land_and_be_succeeded(key: str, ours: bytes, expected: Tag | None) -> Tag:
        world.store.swap(key, ours, expected)
        world.promote("dev", world.bundle("v3", evidence=False))
        raise OutcomeUnknown("no reply")

    assert isinstance(world.store, Meddled)
    present = world.registry.releases.read_head("support", "dev")
    world.store.meddle = land_and_be_succeeded
    state = releases_on(world.store).commit("support", "dev", present, data)
    assert (state.data, state.tag) == (data, "")
    assert check_chain(world) == [3, 2, 1]


def test_no_reply_and_someone_else_won(world: World) -> None:
    released(world, 1)
    data = world.head("dev", world.bundle("ours", evidence=False))

    def never_arrive(key: str, ours: bytes, expected: Tag | None) -> Tag:
        world.promote("dev", world.bundle("v2", evidence=False))
        world.promote("dev", world.bundle("v3", evidence=False))
        raise OutcomeUnknown("no reply")

    assert isinstance(world.store, Meddled)
    present = world.registry.releases.read_head("support", "dev")
    world.store.meddle = never_arrive
    with pytest.raises(Conflict):
        releases_on(world.store).commit("support", "dev", present, data)
    assert check_chain(world) == [3, 2, 1]


def test_no_reply_and_not_arrived_is_repeated(world: World) -> None:
    released(world, 1)
    data = world.head("dev", world.bundle("v2", evidence=False))

    def be_lost(key: str, ours: bytes, expected: Tag | None) -> Tag:
        raise OutcomeUnknown("no reply")

    assert isinstance(world.store, Meddled)
    present = world.registry.releases.read_head("support", "dev")
    world.store.meddle = be_lost
    assert releases_on(world.store).commit("support", "dev", present, data).data == data
    assert check_chain(world) == [2, 1]


def test_never_an_answer_is_unknown_and_may_still_land(world: World) -> None:
    released(world, 1)
    data = world.head("dev", world.bundle("v2", evidence=False))
    present = world.registry.releases.read_head("support", "dev")

    class Mute(MemoryStore):
        def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
            raise OutcomeUnknown("no reply")

    mute = Mute()
    mute._objects = world.store._objects  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match="may still land") as unknown:
        releases_on(mute).commit("support", "dev", present, data)
    assert unknown.value.details["unknown"] is True


def test_a_full_disk_changes_nothing(world: World) -> None:
    released(world, 1)
    data = world.head("dev", world.bundle("v2", evidence=False))
    present = world.registry.releases.read_head("support", "dev")
    for method, key in (("create", history_key("support", "dev", 1, 1)), ("swap", HEAD)):
        full = FaultyStore(world.store, once(method, key, FaultKind.FULL))
        with pytest.raises(StoreUnavailable):
            releases_on(full).commit("support", "dev", present, data)
        assert check_chain(world) == [1]
    releases_on(world.store).commit("support", "dev", present, data)
    assert check_chain(world) == [2, 1]


# ---------------------------------------------------------------- tampering


def test_a_history_without_head_is_tampering(world: World) -> None:
    released(world)
    world.store.delete(HEAD)
    for call in (
        lambda: world.registry.releases.read_head("support", "dev"),
        lambda: list(world.registry.releases.history("support", "dev")),
    ):
        with pytest.raises(VerificationFailed, match="tampering"):
            call()
    first = World().head("dev", world.bundle("v1", evidence=False))
    with pytest.raises(VerificationFailed, match="tampering"):
        world.registry.releases.commit("support", "dev", None, first)


def test_an_archive_with_other_bytes_stops_the_commit(world: World) -> None:
    released(world, 1)
    world.store.create(history_key("support", "dev", 1, 1), b"something else")
    with pytest.raises(VerificationFailed, match="other bytes"):
        world.promote("dev", world.bundle("v2", evidence=False))


def test_an_archive_left_by_a_killed_promoter_is_fine(world: World) -> None:
    released(world, 1)
    world.store.create(history_key("support", "dev", 1, 1), world.head_of("dev")[0].data)
    assert check_chain(world) == [1]
    world.promote("dev", world.bundle("v2", evidence=False))
    assert check_chain(world) == [2, 1]


def test_a_head_that_was_put_back_is_seen_in_history_and_not_built_on(world: World) -> None:
    released(world, 4)
    old = world.registry.releases.release_at("support", "dev", 2)
    world.store.swap(HEAD, old.data, world.store.get(HEAD).tag)
    with pytest.raises(VerificationFailed, match="put back"):
        list(world.registry.releases.history("support", "dev"))
    with pytest.raises(VerificationFailed, match="put back"):
        world.promote("dev", world.bundle("v9", evidence=False))


def test_a_former_release_that_was_moved_is_refused(world: World) -> None:
    released(world, 3)
    first, second = (history_key("support", "dev", 1, serial) for serial in (1, 2))
    data = world.store.get(second).data
    world.store.delete(first)
    world.store.create(first, data)
    with pytest.raises(VerificationFailed, match="another release"):
        list(world.registry.releases.history("support", "dev"))


def test_a_former_release_that_is_gone_breaks_the_chain(world: World) -> None:
    released(world, 3)
    world.store.delete(history_key("support", "dev", 1, 2))
    with pytest.raises(VerificationFailed, match="does not follow"):
        check_chain(world)


def test_a_stray_file_in_history_is_named(world: World) -> None:
    released(world)
    world.store.create("apps/support/environments/dev/history/notes.txt", b"")
    with pytest.raises(VerificationFailed, match=r"notes\.txt"):
        list(world.registry.releases.history("support", "dev"))


def test_a_release_that_does_not_succeed_the_present_one_is_not_committed(world: World) -> None:
    released(world, 1)
    present = world.registry.releases.read_head("support", "dev")
    data = world.head("dev", world.bundle("v2", evidence=False), previous=f"sha256:{'0' * 64}")
    with pytest.raises(VerificationFailed, match="does not succeed"):
        world.registry.releases.commit("support", "dev", present, data)


# ---------------------------------------------------------------- crashes and races


def test_a_crash_after_any_write_leaves_old_or_new_and_never_blocks_the_next() -> None:
    seen: set[int] = set()
    for writes in range(100):
        world = World()
        released(world, 1)
        faulty = FaultyStore(world.store)
        registry = Registry(faulty)
        bundle = world.bundle("other", evidence=False)
        data = world.head("dev", bundle)
        world.store.delete(f"apps/support/packs/{bundle.digest[7:]}")
        faulty.crash_after(writes)
        try:
            registry.put_bundle("support", bundle)
            registry.releases.commit("support", "dev", registry.releases.read_head("support", "dev"), data)
        except Crash:
            crashed = True
        else:
            crashed = False
        serial = world.head_of("dev")[2].serial
        seen.add(serial)
        assert check_chain(world) == list(range(serial, 0, -1))
        assert crashed or serial == 2
        world.verify("dev")
        world.registry.put_bundle("support", bundle)
        world.promote("dev", bundle)
        assert check_chain(world) == list(range(serial + 1, 0, -1))
        if not crashed:
            break
    assert seen == {1, 2}
    assert writes > 10


@pytest.mark.parametrize("writes", range(4))
def test_a_promoter_killed_after_any_write_in_a_folder(tmp_path: Path, writes: int) -> None:
    world = World(DirectoryStore(tmp_path / "registry"))
    released(world, 1)
    data = world.head("dev", world.bundle("v2", evidence=False))
    (tmp_path / "head.json").write_bytes(data)
    code = Path(__file__).with_name("killed_promoter.py")
    done = subprocess.run(
        [sys.executable, str(code), str(tmp_path / "registry"), str(tmp_path / "head.json"), str(writes)],
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == (-signal.SIGKILL if writes < 3 else 0)
    assert check_chain(world) == ([2, 1] if writes >= 2 else [1])
    world.promote("dev", world.bundle("v3", evidence=False))
    assert len(check_chain(world)) == (3 if writes >= 2 else 2)


def race(world: World, present: HeadState | None, offers: list[bytes]) -> tuple[list[bytes], list[Conflict]]:
    """Commit all offers at once, each in a thread; give what won and how the others lost."""
    barrier = threading.Barrier(len(offers))
    won: list[bytes] = []
    lost: list[Conflict] = []

    def commit(data: bytes) -> None:
        barrier.wait()
        try:
            won.append(Registry(world.store).releases.commit("support", "dev", present, data).data)
        except Conflict as error:
            lost.append(error)

    threads = [threading.Thread(target=commit, args=(data,)) for data in offers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, lost


def test_of_many_at_once_every_serial_has_one_winner(tmp_path: Path) -> None:
    world = World(DirectoryStore(tmp_path / "registry"))
    bundle = world.bundle("v1", evidence=False)
    rounds, wide = 6, 6
    for _ in range(rounds):
        present = world.registry.releases.read_head("support", "dev")
        won, lost = race(world, present, [world.head("dev", bundle, reason=f"offer {n}") for n in range(wide)])
        assert (len(won), len(lost)) == (1, wide - 1)
        assert won == [world.head_of("dev")[0].data]
        world.tick()
    assert check_chain(world) == list(range(rounds, 0, -1))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), promoters=st.integers(1, 3))
def test_under_faults_what_was_said_is_what_happened(seed: int, promoters: int) -> None:
    """Success is in the history once, Conflict is not there, and the chain is whole."""
    world = World()
    bundle = world.bundle("v1", evidence=False)
    rates = {FaultKind.FAIL_BEFORE: 0.1, FaultKind.FAIL_AFTER: 0.2, FaultKind.DUPLICATE: 0.1}
    faulty = FaultyStore(world.store, seeded(seed, rates))
    said: list[tuple[bytes, str]] = []
    for number in range(5):
        present = world.registry.releases.read_head("support", "dev")
        for data in [world.head("dev", bundle, reason=f"{number}.{n}") for n in range(promoters)]:
            try:
                releases_on(faulty).commit("support", "dev", present, data)
                said.append((data, "done"))
            except Conflict:
                said.append((data, "lost"))
            except BackendUnavailable:
                said.append((data, "unknown"))
        world.tick()
    live = [entry.data for entry in world.registry.releases.history("support", "dev")]
    for data, what in said:
        assert live.count(data) in {"done": (1,), "lost": (0,), "unknown": (0, 1)}[what]
    serials = check_chain(world)
    assert serials == list(range(len(serials), 0, -1))
