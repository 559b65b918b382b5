"""What a folder can hold besides good files, and what a disk can refuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import (
    MAX_OBJECT_BYTES,
    AlreadyThere,
    KeyMissing,
    OutcomeUnknown,
    StoreUnavailable,
    SwapLost,
    content_tag,
)

KEY = "a/b/head.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def test_files_are_plain_readable_and_not_executable(store: DirectoryStore, root: Path) -> None:
    before = os.umask(0o027)
    try:
        tag = store.create(KEY, b"x")
        store.swap(KEY, b"y", tag)
        store.create("a/b/blob", b"x")
    finally:
        os.umask(before)
    for name in (KEY, "a/b/blob"):
        facts = (root / name).stat()
        assert stat.filemode(facts.st_mode) == "-rw-r-----"
        assert facts.st_nlink == 1
    assert stat.filemode((root / "a").stat().st_mode) == "drwxr-x---"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


PLANTED: dict[str, Callable[[Path], object]] = {
    "symbolic link": lambda path: path.symlink_to("good"),
    "dangling symbolic link": lambda path: path.symlink_to("nowhere"),
    "FIFO": os.mkfifo,
    "socket": _socket,
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("what", PLANTED)
def test_only_regular_files_are_objects(what: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(root)
    tag = store.create("a/good", b"x")
    monkeypatch.chdir(root / "a")  # a socket's path must be short
    PLANTED[what](Path("bad"))
    began = time.monotonic()
    for call in (
        lambda: store.get("a/bad"),
        lambda: store.get_if_changed("a/bad", tag),
        lambda: store.create("a/bad", b"y"),
        lambda: store.swap("a/bad", b"y", tag),
        lambda: store.swap("a/bad", b"y", None),
        lambda: store.delete("a/bad"),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert what.split()[-1] in caught.value.why
    assert time.monotonic() - began < 5
    assert store.get("a/good").data == b"x"
    assert Path("bad").is_symlink() or Path("bad").exists()


def test_no_symlink_on_the_way_is_followed(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    store.create("a/x", b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"not ours")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    for call in (lambda: store.get("link/x"), lambda: store.create("link/y", b""), lambda: list(store.list("link/"))):
        with pytest.raises(StoreUnavailable, match="link on the way to it is not a folder"):
            call()
    assert list(store.list("")) == ["a/x", "link"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["x"]


def test_the_root_itself_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "registry").symlink_to("disk")
    DirectoryStore(tmp_path / "registry").create(KEY, b"x")
    assert DirectoryStore(tmp_path / "disk").get(KEY).data == b"x"


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir])
def test_a_lock_that_is_no_file_is_refused(
    plant: Callable[[Path], object], store: DirectoryStore, root: Path
) -> None:
    tag = store.create("a/x", b"x")
    plant(root / "a" / ".lock")
    with pytest.raises(StoreUnavailable):
        store.swap("a/x", b"y", tag)
    assert store.get("a/x").data == b"x"


def test_an_absurd_file_is_refused_unread(store: DirectoryStore, root: Path) -> None:
    tag = store.create(KEY, b"x")
    os.truncate(root / KEY, MAX_OBJECT_BYTES)
    assert len(store.get(KEY).data) == MAX_OBJECT_BYTES
    os.truncate(root / KEY, 1 << 40)
    for call in (lambda: store.get(KEY), lambda: store.swap(KEY, b"y", tag)):
        with pytest.raises(StoreUnavailable, match="over 67108864 bytes"):
            call()


def test_the_stores_own_files_and_strangers_are_not_keys(store: DirectoryStore, root: Path) -> None:
    tag = store.create(KEY, b"x")
    store.swap(KEY, b"y", tag)
    (root / "a" / ".tmp-left").write_bytes(b"half")
    (root / "a" / ".git").mkdir()
    (root / "a" / ".git" / "config").write_bytes(b"")
    (root / "a" / "has space~").write_bytes(b"")
    assert (root / "a" / "b" / ".lock").is_file()
    assert list(store.list("")) == [KEY]


def test_what_a_killed_writer_left_is_swept_after_an_hour(root: Path) -> None:
    DirectoryStore(root).create("a/x", b"x")
    old, young = root / "a" / ".tmp-old", root / "a" / ".tmp-young"
    for path, age in ((old, 3700), (young, 3500)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    DirectoryStore(root).create("a/y", b"y")
    assert not old.exists()
    assert young.exists()


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


def test_missing_permission_is_an_outage_and_not_an_absence(root: Path, store: DirectoryStore) -> None:
    tag = store.create(KEY, b"x")
    for folder in (root / "a" / "b", root / "a", root, *list(root.parents)[:3]):
        folder.chmod(0o555)
    try:
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
        (root / "a").chmod(0)
        with as_nobody():
            for call in (lambda: store.get(KEY), lambda: list(store.list(""))):
                with pytest.raises(StoreUnavailable):
                    call()
    finally:
        for folder in (*list(root.parents)[:3][::-1], root, root / "a", root / "a" / "b"):
            folder.chmod(0o700)


def test_creating_again_writes_nothing(store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(KEY, b"x")
    monkeypatch.setattr(os, "write", None)
    with pytest.raises(AlreadyThere):
        store.create(KEY, b"x")
    with pytest.raises(SwapLost):
        store.swap(KEY, b"x", None)


def test_no_descriptor_stays_open(store: DirectoryStore) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    tag = store.create(KEY, b"x")
    for call in (
        lambda: store.create(KEY, b""),
        lambda: store.swap(KEY, b"", "sha256:0"),
        lambda: store.get("a/b"),
        lambda: store.get("a/none/x"),
        lambda: store.get("a/b/head.json/x"),
        lambda: store.delete("a/none"),
    ):
        with pytest.raises(Exception, match=r"\w"):
            call()
    store.swap(KEY, b"y", tag)
    walking = store.list("")
    next(walking)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_readers_beside_a_writer_see_whole_objects_only(store: DirectoryStore) -> None:
    tag = store.create(KEY, b"0" * 50_000)
    done = threading.Event()
    torn: list[bytes] = []

    def look() -> None:
        while not done.is_set():
            data = store.get(KEY).data
            if len(data) != 50_000 or data.strip(data[:1]):
                torn.append(data)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(100):
        tag = store.swap(KEY, str(number % 10).encode() * 50_000, tag)
    done.set()
    for reader in readers:
        reader.join()
    assert not torn
