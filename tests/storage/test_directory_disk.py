"""What a disk can refuse, and what the store then says is there."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import (
    KeyMissing,
    OutcomeUnknown,
    StoreUnavailable,
    content_tag,
)

KEY = "a/b/head.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def test_a_full_disk_leaves_nothing_and_says_so(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = store.create(KEY, b"old")
    really_write = os.write
    written = 0

    def write_some(descriptor: int, data: bytes) -> int:
        nonlocal written
        if written >= 3000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = really_write(descriptor, data[:1000])
        written += taken
        return taken

    monkeypatch.setattr(os, "write", write_some)
    for call in (lambda: store.create("a/b/new", bytes(5000)), lambda: store.swap(KEY, bytes(5000), tag)):
        written = 0
        with pytest.raises(StoreUnavailable, match="nothing changed") as caught:
            call()
        assert caught.value.fix.startswith("Free space")
    assert store.get(KEY).data == b"old"
    assert list(store.list("")) == [KEY]
    assert not list(root.rglob(".tmp-*"))
    written = -10_000
    store.create("a/b/new", bytes(range(250)) * 20)
    assert store.get("a/b/new").data == bytes(range(250)) * 20


@contextmanager
def broken_fsync(monkeypatch: pytest.MonkeyPatch, folders: bool) -> Iterator[None]:
    """Let fsync fail for folders or for files; it cannot be made to fail otherwise."""
    really_sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really_sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


def test_a_failed_fsync_after_publishing_is_unknown(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.create(KEY, b"first")
    with broken_fsync(monkeypatch, folders=True):
        with pytest.raises(OutcomeUnknown, match="may be gone after a power cut"):
            store.create("a/b/new", b"new")
        with pytest.raises(OutcomeUnknown, match="may be gone after a power cut"):
            store.swap(KEY, b"second", first)
        assert store.get(KEY).data == b"second"
        with pytest.raises(OutcomeUnknown, match="may come back"):
            store.delete("a/b/new")
        with pytest.raises(StoreUnavailable):
            store.create(KEY, b"what is there cannot be relied on")
        with pytest.raises(StoreUnavailable, match="nothing changed"):
            store.create("new/folder/x", b"")
    assert list(store.list("")) == [KEY]


def test_a_failed_fsync_before_publishing_wrote_nothing(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.create(KEY, b"first")
    with broken_fsync(monkeypatch, folders=False):
        for call in (lambda: store.create("a/b/new", b"new"), lambda: store.swap(KEY, b"second", first)):
            with pytest.raises(StoreUnavailable, match="nothing changed"):
                call()
    assert store.get(KEY).data == b"first"
    assert not list(root.rglob(".tmp-*"))


@pytest.mark.parametrize("landed", [True, False])
def test_a_lost_reply_to_link_or_rename_is_settled_by_reading(
    landed: bool, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.create(KEY, b"first")

    def losing(really: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            if landed:
                really(*arguments, **options)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        return call

    monkeypatch.setattr(os, "link", losing(os.link))
    monkeypatch.setattr(os, "rename", losing(os.rename))
    for call, data in (
        (lambda: store.create("a/b/new", b"new"), b"new"),
        (lambda: store.swap(KEY, b"second", first), b"second"),
    ):
        if landed:
            assert call() == content_tag(data)
        else:
            with pytest.raises(StoreUnavailable, match="nothing changed"):
                call()
    assert list(store.list("")) == (["a/b/head.json", "a/b/new"] if landed else [KEY])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's rights; a user who is not root has none to drop."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A root that every user can reach; pytest's own folders are closed to others."""
    made = Path(tempfile.mkdtemp(prefix="bundlectl-store-"))
    made.chmod(0o755)
    yield made
    for folder in (made, made / "a", made / "a" / "b"):  # from the top: a closed folder hides those in it
        folder.chmod(0o700)
    shutil.rmtree(made)


def test_missing_permission_is_an_outage_and_not_an_absence(open_root: Path) -> None:
    store = DirectoryStore(open_root)
    tag = store.create(KEY, b"x")
    for folder in (open_root / "a" / "b", open_root / "a", open_root):
        folder.chmod(0o555)
    with as_nobody():
        assert store.get(KEY).data == b"x"
        with pytest.raises(KeyMissing):
            store.get("a/none")
        for call in (
            lambda: store.create("a/b/new", b""),
            lambda: store.create("a/new/new", b""),
            lambda: store.swap(KEY, b"y", tag),
            lambda: store.delete(KEY),
        ):
            with pytest.raises(StoreUnavailable, match="nothing changed") as caught:
                call()
            assert "permission" in caught.value.fix
    (open_root / "a").chmod(0)
    with as_nobody():
        for call in (lambda: store.get(KEY), lambda: list(store.list(""))):
            with pytest.raises(StoreUnavailable):
                call()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_users_who_share_a_folder_share_its_lock(open_root: Path) -> None:
    store = DirectoryStore(open_root)
    tag = store.swap(KEY, b"second", store.create(KEY, b"first"))
    (open_root / "a" / "b").chmod(0o777)
    with as_nobody():
        store.swap(KEY, b"third", tag)
    assert store.get(KEY).data == b"third"
    assert (open_root / "a" / "b" / ".lock").stat().st_uid == 0
