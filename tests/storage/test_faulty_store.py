"""The fault layer does what its plan says, the same each time."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest

from bundlectl.storage.faults import Crash, Fault, FaultKind, FaultyStore, Plan, once, scripted, seeded
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import AlreadyThere, KeyMissing, OutcomeUnknown, StoreUnavailable, SwapLost


def faulty(plan: Plan) -> tuple[MemoryStore, FaultyStore]:
    inner = MemoryStore()
    inner.create("there", b"0123456789")
    return inner, FaultyStore(inner, plan)


def test_fail_before_never_reaches_the_store() -> None:
    inner, store = faulty(lambda call: Fault(FaultKind.FAIL_BEFORE))
    for call in (
        lambda: store.get("there"),
        lambda: store.create("new", b""),
        lambda: store.delete("there"),
        lambda: store.list(""),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert list(inner.list("")) == ["there"]


def test_fail_after_lands_and_loses_the_reply() -> None:
    inner, store = faulty(lambda call: Fault(FaultKind.FAIL_AFTER))
    with pytest.raises(OutcomeUnknown):
        store.create("new", b"landed")
    assert inner.get("new").data == b"landed"
    with pytest.raises(OutcomeUnknown):
        store.create("new", b"refused, and nobody hears it")
    assert inner.get("new").data == b"landed"
    with pytest.raises(StoreUnavailable):
        store.get("new")


def test_duplicate_gives_the_second_reply() -> None:
    inner, store = faulty(lambda call: Fault(FaultKind.DUPLICATE))
    tag = inner.get("there").tag
    with pytest.raises(AlreadyThere):
        store.create("new", b"ours")
    with pytest.raises(SwapLost):
        store.swap("there", b"ours", tag)
    assert inner.get("new").data == inner.get("there").data == b"ours"
    with pytest.raises(KeyMissing):
        store.delete("new")


def test_full_cut_and_delay() -> None:
    slept: list[float] = []
    inner = MemoryStore()
    inner.create("there", b"0123456789")
    plan = scripted(
        {
            0: FaultKind.FULL,
            1: Fault(FaultKind.CUT, keep=0.3),
            2: Fault(FaultKind.DELAY, seconds=2.5),
            3: FaultKind.CUT,
        }
    )
    store = FaultyStore(inner, plan, sleep=slept.append)
    with pytest.raises(StoreUnavailable) as caught:
        store.create("new", b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert store.get("there").data == b"012"
    assert store.get("there").data == b"0123456789"
    assert slept == [2.5]
    cut = store.get_if_changed("there", "")
    assert cut is not None
    assert (cut.data, cut.tag) == (b"01234", inner.get("there").tag)
    assert list(inner.list("")) == ["there"]


def test_once_strikes_one_call() -> None:
    _, store = faulty(once("get", "there", FaultKind.FAIL_BEFORE, nth=1))
    store.get("there")
    with pytest.raises(StoreUnavailable):
        store.get("there")
    store.get("there")


def test_calls_are_counted_in_order() -> None:
    _, store = faulty(once("create", "new", FaultKind.FAIL_BEFORE))
    with pytest.raises(StoreUnavailable):
        store.create("new", b"")
    store.get("there")
    list(store.list(""))
    store.delete("there")
    assert store.calls == [("create", "new"), ("get", "there"), ("list", ""), ("delete", "there")]
    assert store.counts == {"create": 1, "get": 1, "list": 1, "delete": 1}
    assert store.writes == 2


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_crash_comes_after_the_nth_write_and_lasts(writes: int) -> None:
    inner, store = faulty(scripted({}))
    store.create("before", b"")
    store.crash_after(writes)
    done = 0
    with pytest.raises(Crash):
        for number in range(10):
            store.get("there")
            store.create(f"new{number}", b"")
            done += 1
    assert done == max(0, writes - 1)
    assert len(list(inner.list(""))) == 2 + writes
    for call in (lambda: store.get("there"), lambda: store.list(""), lambda: store.create("late", b"")):
        with pytest.raises(Crash):
            call()
    assert not issubclass(Crash, Exception)


def test_a_crash_takes_the_place_of_a_refusal() -> None:
    _, store = faulty(scripted({}))
    store.crash_after(1)
    with pytest.raises(Crash):
        store.create("there", b"")


RATES = dict.fromkeys((FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.CUT, FaultKind.FULL), 0.15)


def outcome(store: FaultyStore, key: str, number: int) -> str:
    try:
        store.create(key, str(number).encode())
        return store.get(key).data.decode()
    except (StoreUnavailable, OutcomeUnknown, AlreadyThere, KeyMissing) as error:
        return type(error).__name__


def test_a_seed_gives_the_same_faults_in_whatever_order_threads_call() -> None:
    keys = [f"k/{number}" for number in range(60)]

    def run(seed: int, threads: int) -> list[str]:
        store = FaultyStore(MemoryStore(), seeded(seed, RATES))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda item: outcome(store, *item), zip(keys, range(60), strict=True)))

    assert run(1, 1) == run(1, 8)
    assert run(1, 1) != run(2, 1)
    assert {"StoreUnavailable", "OutcomeUnknown"} <= set(run(1, 1))


def test_seeded_keeps_to_its_methods_and_its_rates() -> None:
    _, store = faulty(seeded(3, {FaultKind.FAIL_BEFORE: 1.0}, methods={"create"}))
    store.get("there")
    with pytest.raises(StoreUnavailable):
        store.create("new", b"")
    with pytest.raises(ValueError, match="probabilities"):
        seeded(3, {FaultKind.CUT: 0.7, FaultKind.FULL: 0.7})
