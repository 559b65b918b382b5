"""Followed indexes: what an indexer signed last serves; nothing older comes back, and what root blocks stops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bundlectl.model.attestation import SNAPSHOT_PAYLOAD_TYPE
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.documents import IndexPointer
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.keyring import Blocked
from bundlectl.router.assemble import OpenIndex
from bundlectl.router.indexes import Indexes, _Followed
from bundlectl.trust.envelope import envelope_bytes, seal
from tests.support.world import World, signer


def pointed(world: World, text: str) -> bytes:
    """Sign a pointer at a made-up snapshot, checked now, and put it into the registry."""
    pointer = IndexPointer(
        app=world.app,
        index="docs",
        snapshot=digest(text.encode()),
        documents=1,
        checked=world.tick(),
        actor="indexer",
    )
    data = envelope_bytes(seal(canonical(pointer.form()), SNAPSHOT_PAYLOAD_TYPE, [signer("indexer")]))
    put(world, data)
    return data


def put(world: World, data: bytes) -> None:
    before = world.registry.index_pointer(world.app, "docs")
    world.registry.swap_index_pointer(world.app, "docs", data, before.tag if before else None)


@dataclass
class Told:
    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def test_an_older_pointer_brings_nothing_back(tmp_path: Path) -> None:
    world, told = World(), Told()
    old = pointed(world, "old")
    indexes = Indexes(world.registry, None, lambda: world.keyring, on_warning=told)
    assert indexes._pointer("support", "docs")[0].snapshot == digest(b"old")
    new = pointed(world, "new")
    assert indexes._pointer("support", "docs")[0].snapshot == digest(b"new")
    put(world, old)
    assert indexes._pointer("support", "docs") == indexes._pointer("support", "docs")
    assert indexes._pointer("support", "docs")[1] == new
    assert "put back" in told.lines[-1]


def test_an_older_pointer_brings_nothing_back_after_a_restart(tmp_path: Path) -> None:
    world, told = World(), Told()
    old = pointed(world, "old")
    new = pointed(world, "new")
    put(world, old)
    kept = tmp_path / "pointers" / "support.docs.json"
    kept.parent.mkdir()
    kept.write_bytes(new)
    indexes = Indexes(world.registry, None, lambda: world.keyring, cache=tmp_path, on_warning=told)
    assert indexes._pointer("support", "docs")[1] == new
    assert "put back" in told.lines[-1]
    kept.write_bytes(b"{}")
    again = Indexes(world.registry, None, lambda: world.keyring, cache=tmp_path, on_warning=told)
    assert again._pointer("support", "docs")[1] == old
    assert "does not count" in told.lines[-1], "a damaged copy is told, and the registry's is believed"


async def test_a_followed_state_stops_once_root_blocks_it() -> None:
    world, told = World(), Told()
    pointed(world, "poisoned")
    found = digest(b"poisoned")
    indexes = Indexes(world.registry, None, lambda: world.keyring, on_warning=told)

    def newest() -> OpenIndex:
        pointer, _ = indexes._pointer("support", "docs")
        return OpenIndex(searcher=None, snapshot=pointer.snapshot, following=True)  # type: ignore[arg-type]

    followed = _Followed(newest(), newest, lambda s: world.keyring.blocked(s), 0.0, told)
    assert followed.current().snapshot == found
    await settled(followed)
    world.rotate(blocked=[Blocked(digest=found, reason="poisoned")])
    followed.current()  # serves, and looks
    await settled(followed)
    with pytest.raises(BackendUnavailable, match="blocked"):
        followed.current()
    await settled(followed)
    world.tick(hours=1)
    pointed(world, "clean")
    with pytest.raises(BackendUnavailable, match="blocked"):
        followed.current()  # looks once more
    await settled(followed)
    assert followed.current().snapshot == digest(b"clean")
    await settled(followed)


async def settled(followed: _Followed) -> None:
    """Wait until the look that is under way is done."""
    while followed._looking is not None:
        await asyncio.sleep(0.005)
