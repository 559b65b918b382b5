"""What the other processes do in the tests of races and crashes."""

from __future__ import annotations

import hashlib
import random
import resource
import sys
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import AlreadyThere, StoreUnavailable, SwapLost

HEAD = "environments/prod/head.json"


def sealed(text: str, size: int) -> bytes:
    """Make bytes that show whether they are whole: their digest, then the rest."""
    body = (text * (size // len(text) + 1)).encode()[:size]
    return hashlib.sha256(body).hexdigest().encode() + body


def is_whole(data: bytes) -> bool:
    return data[:64] == hashlib.sha256(data[64:]).hexdigest().encode()


def race(root: Path, me: int, rounds: int, start: Barrier, results: Queue[tuple[int, list[str]]]) -> None:
    """Each round: all create one key and swap the same version of one head; tell what was won."""
    store = DirectoryStore(root)
    won: list[str] = []
    for number in range(rounds):
        try:
            expected = store.get(HEAD).tag if number else None
            start.wait(timeout=30)
            store.swap(HEAD, f"{number} {me}".encode(), expected)
            won.append(f"swap {number}")
        except SwapLost:
            pass
        try:
            start.wait(timeout=30)
            store.create(f"blobs/{number}", f"{number} {me}".encode())
            won.append(f"create {number}")
        except AlreadyThere:
            pass
        start.wait(timeout=30)
    results.put((me, won))


def write_until_killed(root: Path, seed: int) -> None:
    """Create and swap for ever; a line on stdout follows each write that was done."""
    store = DirectoryStore(root)
    draw = random.Random(seed)
    number = 0
    while True:
        key = f"blobs/{seed}-{number}"
        store.create(key, sealed(key, draw.randrange(1, 300_000)))
        print(key, flush=True)
        try:
            # Whoever came before may have been killed before it made one.
            head = store.get(HEAD).tag if HEAD in store.list("environments/") else None
            store.swap(HEAD, sealed(f"{seed}-{number} ", draw.randrange(1, 300_000)), head)
        except SwapLost:
            print("lost", flush=True)
        number += 1


def hold_lock(root: Path) -> None:
    """Hold the lock of the head's folder until stdin closes."""
    from bundlectl.storage import files

    with files.made_folder(root, HEAD.split("/")[:-1]) as folder, files.locked(folder, ".lock", 1):
        print("held", flush=True)
        sys.stdin.read()


def write_too_much(root: Path) -> None:
    """Write 100 KB where files may have 10 KB; succeed if that is refused and nothing is left."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    store = DirectoryStore(root)
    tag = store.create(HEAD, b"small")
    for write in (
        lambda: store.create("environments/prod/new", bytes(100_000)),
        lambda: store.swap(HEAD, bytes(100_000), tag),
    ):
        try:
            write()
        except StoreUnavailable as error:
            assert "nothing changed" in error.what, error
            assert "ulimit" in error.fix, error
        else:
            raise AssertionError("it was written")
    assert store.get(HEAD).data == b"small"
    assert list(store.list("")) == [HEAD]
    assert not list(root.rglob(".tmp-*"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write_until_killed", root, seed]:
            write_until_killed(Path(root), int(seed))
        case ["hold_lock", root]:
            hold_lock(Path(root))
        case ["write_too_much", root]:
            write_too_much(Path(root))
