"""An index's tables as objects of a registry: whole or not there, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlectl.model.errors import Conflict, NotFound, UsageError, VerificationFailed
from bundlectl.registry import tables
from bundlectl.registry.tables import fetch_tables, put_tables
from bundlectl.storage.faults import Crash, FaultyStore
from bundlectl.storage.memory import MemoryStore

HEX = "ab" * 32
WHERE = f"apps/support/indexes/docs/{HEX}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "built"
    for name, data in {
        "chunks.lance/data/1.lance": b"\0" * 1000,
        "chunks.lance/_versions/1.manifest": b"v",
        "x": b"",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    return made


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != "files.json"}


def test_what_was_put_is_fetched_whole_and_once(folder: Path, tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    assert put_tables(store, "support", "docs", HEX, folder) is True
    assert put_tables(store, "support", "docs", HEX, folder) is False, "the same snapshot is there"
    fetch_tables(store, "support", "docs", HEX, tmp_path / "kept")
    assert files(tmp_path / "kept" / HEX) == files(folder)
    before = len(store.calls)
    fetch_tables(store, "support", "docs", HEX, tmp_path / "kept")
    assert len(store.calls) == before
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [HEX]


def test_a_build_that_died_is_no_index_and_is_done_again(folder: Path, tmp_path: Path) -> None:
    memory = MemoryStore()
    dying = FaultyStore(memory)
    dying.crash_after(2)
    with pytest.raises(Crash):
        put_tables(dying, "support", "docs", HEX, folder)
    with pytest.raises(NotFound, match="not in the registry"):
        fetch_tables(memory, "support", "docs", HEX, tmp_path / "kept")
    # The next build on another machine gives files of other bytes.
    (folder / "x").write_bytes(b"other")
    (folder / "chunks.lance/_versions/1.manifest").write_bytes(b"w")
    assert put_tables(memory, "support", "docs", HEX, folder)
    fetch_tables(memory, "support", "docs", HEX, tmp_path / "kept")
    assert files(tmp_path / "kept" / HEX) == files(folder)


@pytest.mark.parametrize("damage", ["changed", "missing", "list"])
def test_damage_is_told_and_nothing_is_kept(folder: Path, tmp_path: Path, damage: str) -> None:
    store = MemoryStore()
    put_tables(store, "support", "docs", HEX, folder)
    key = f"{WHERE}/files.json" if damage == "list" else f"{WHERE}/chunks.lance/data/1.lance"
    tag = store.get(key).tag
    if damage == "missing":
        store.delete(key)
    else:
        store.swap(key, b"{}", tag)
    with pytest.raises(VerificationFailed):
        fetch_tables(store, "support", "docs", HEX, tmp_path / "kept")
    assert not (tmp_path / "kept" / HEX).exists()


def test_files_that_no_store_takes_are_refused_before_anything_is_put(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    monkeypatch.setattr(tables, "MAX_OBJECT_BYTES", 999)
    with pytest.raises(UsageError, match=r"1\.lance of index docs has 1000 bytes"):
        put_tables(store, "support", "docs", HEX, folder)
    assert list(store.list("")) == []


def test_two_writers_of_one_snapshot_are_a_conflict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    put_tables(store, "support", "docs", HEX, folder)
    monkeypatch.setattr(tables, "_listed", lambda store, prefix: None)
    (folder / "x").write_bytes(b"other")
    with pytest.raises(Conflict, match="at the same time"):
        put_tables(store, "support", "docs", HEX, folder)
