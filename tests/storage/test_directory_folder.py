"""What a folder can hold besides good files, and what the store leaves in it."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import (
    MAX_OBJECT_BYTES,
    AlreadyThere,
    StoreUnavailable,
    SwapLost,
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
def test_a_lock_that_is_no_file_is_refused(plant: Callable[[Path], object], store: DirectoryStore, root: Path) -> None:
    tag = store.create("a/x", b"x")
    plant(root / "a" / ".lock")
    with pytest.raises(StoreUnavailable):
        store.swap("a/x", b"y", tag)
    assert store.get("a/x").data == b"x"


def test_an_absurd_file_is_refused_unread(store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = store.create(KEY, b"x")
    os.truncate(root / KEY, MAX_OBJECT_BYTES)
    assert len(store.get(KEY).data) == MAX_OBJECT_BYTES
    os.truncate(root / KEY, 1 << 40)
    monkeypatch.setattr(os, "read", None)
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


def test_a_root_that_is_away_says_nothing_about_keys(store: DirectoryStore, root: Path) -> None:
    tag = store.create(KEY, b"x")
    root.rename(root.with_name("elsewhere"))
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.get(KEY),
        lambda: store.get_if_changed(KEY, tag),
        lambda: list(store.list("")),
        lambda: list(store.list("a/")),
        lambda: store.swap(KEY, b"y", tag),
        lambda: store.delete(KEY),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable, match="is not there"):
            call()
    assert not root.exists()
    root.with_name("elsewhere").rename(root)
    assert store.get(KEY).data == b"x"
