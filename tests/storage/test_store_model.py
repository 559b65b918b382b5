"""Any sequence of calls leaves a store as a dict would be."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import AlreadyThere, KeyMissing, Store, SwapLost, content_tag

# The leaves and the folders have different names, so that no key is another's parent.
folders = st.lists(st.sampled_from(["a", "a-", "b.c", "D=1"]), max_size=3)
leaves = st.sampled_from(["x", "x-y", "z.json"])
keys = st.builds(lambda above, leaf: "/".join([*above, leaf]), folders, leaves)
contents = st.binary(max_size=12)


class AgainstDict(RuleBasedStateMachine):
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}

    @rule(key=keys, data=contents)
    def create(self, key: str, data: bytes) -> None:
        try:
            tag = self.store.create(key, data)
        except AlreadyThere:
            assert key in self.model
        else:
            assert key not in self.model
            assert tag == content_tag(data)
            self.model[key] = data

    @rule(key=keys, data=contents, expected=st.none() | contents)
    def swap_blindly(self, key: str, data: bytes, expected: bytes | None) -> None:
        tag = None if expected is None else content_tag(expected)
        try:
            self.store.swap(key, data, tag)
        except SwapLost:
            assert self.model.get(key) != expected
        else:
            assert self.model.get(key) == expected
            self.model[key] = data

    @precondition(lambda self: self.model)
    @rule(choice=st.data(), data=contents)
    def swap_what_is_there(self, choice: st.DataObject, data: bytes) -> None:
        key = choice.draw(st.sampled_from(sorted(self.model)))
        stored = self.store.get(key)
        self.store.swap(key, data, stored.tag)
        self.model[key] = data
        changed = self.store.get_if_changed(key, stored.tag)
        assert (changed.data if changed else stored.data) == data

    @rule(key=keys)
    def get(self, key: str) -> None:
        try:
            data: bytes | None = self.store.get(key).data
        except KeyMissing:
            data = None
        assert data == self.model.get(key)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        try:
            self.store.delete(key)
        except KeyMissing:
            assert key not in self.model
        else:
            del self.model[key]

    @rule(above=folders)
    def list_prefix(self, above: list[str]) -> None:
        prefix = "".join(f"{name}/" for name in above)
        assert list(self.store.list(prefix)) == sorted(key for key in self.model if key.startswith(prefix))

    @invariant()
    def lists_what_it_holds(self) -> None:
        assert list(self.store.list("")) == sorted(self.model)


class DirectoryMachine(AgainstDict):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="bundlectl-store-"))
        (self.root / "registry").mkdir()
        self.store = DirectoryStore(self.root / "registry")

    @invariant()
    def leaves_nothing_temporary(self) -> None:
        assert not list(self.root.rglob(".tmp-*"))

    def teardown(self) -> None:
        shutil.rmtree(self.root)


class MemoryMachine(AgainstDict):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()


TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
