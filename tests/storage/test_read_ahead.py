"""Reads that are begun before they are asked for: nothing but the waiting is different."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from bundlectl.storage.ahead import ReadAhead
from bundlectl.storage.faults import FaultKind, FaultyStore, once
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.parallel import in_parallel
from bundlectl.storage.store import KeyMissing, StoreUnavailable


def test_an_expected_read_is_made_once_and_used_once() -> None:
    under = FaultyStore(MemoryStore())
    store = ReadAhead(under)
    store.create("a", b"1")
    store.expect("a", "b", "a")
    assert store.get("a").data == b"1"
    with pytest.raises(KeyMissing):
        store.get("b")
    assert under.counts["get"] == 2
    under.create("b", b"2")
    assert store.get("b").data == b"2", "asked anew"
    assert (under.counts["get"], store.url) == (3, under.url)


def test_what_is_written_in_between_is_read_anew() -> None:
    store = ReadAhead(MemoryStore())
    writes: list[Callable[[], object]] = [
        lambda: store.create("k/a", b"1"),
        lambda: store.swap("k/a", b"2", store.get("k/a").tag),
        lambda: store.delete("k/a"),
    ]
    seen: list[bytes | None] = []
    for write in writes:
        store.expect("k/a")
        store.expect_list("k/")
        write()
        try:
            seen.append(store.get("k/a").data)
        except KeyMissing:
            seen.append(None)
        assert list(store.list("k/")) == ([] if seen[-1] is None else ["k/a"])
    assert seen == [b"1", b"2", None]


def test_what_was_not_asked_for_is_forgotten() -> None:
    under = MemoryStore()
    store = ReadAhead(under)
    store.expect("a")
    store.expect_list("")
    store.forget()
    under.create("a", b"1")
    assert store.get("a").data == b"1"
    assert list(store.list("")) == ["a"]
    store.expect_list("")
    assert list(store.list("", "a")) == []


def test_expected_reads_go_side_by_side_and_fail_where_they_are_asked_for() -> None:
    both = threading.Barrier(2, timeout=5)

    class Meeting(MemoryStore):
        def get(self, key: str):  # type: ignore[no-untyped-def]
            both.wait()
            return super().get(key)

    under = Meeting()
    under.create("a", b"")
    under.create("b", b"")
    store = ReadAhead(FaultyStore(under, once("get", "c", FaultKind.FAIL_BEFORE)))
    store.expect("a", "b", "c")
    assert (store.get("a").data, store.get("b").data) == (b"", b"")
    with pytest.raises(StoreUnavailable):
        store.get("c")


def test_in_parallel_keeps_the_order_and_raises_the_first_error() -> None:
    assert in_parallel(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    assert in_parallel(lambda n: n, []) == []

    def fail(n: int) -> int:
        if n in (3, 5):
            raise ValueError(str(n))
        return n

    with pytest.raises(ValueError, match="3"):
        in_parallel(fail, range(10))
