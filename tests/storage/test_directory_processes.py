"""A folder between processes: races have one winner, and a kill leaves whole objects and no held lock."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from store_workers import HEAD, is_whole, race

from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import StoreUnavailable

WORKERS = Path(__file__).with_name("store_workers.py")
ROOT = Path(__file__).parents[2]


def worker(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKERS), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )


def test_a_race_of_processes_has_exactly_one_winner_per_round(tmp_path: Path) -> None:
    processes, rounds = 8, 20
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(processes)
    results = spawn.Queue()
    running = [
        spawn.Process(target=race, args=(tmp_path / "r", me, rounds, start, results), daemon=True)
        for me in range(processes)
    ]
    for process in running:
        process.start()
    won = dict(results.get(timeout=60) for _ in running)
    for process in running:
        process.join(timeout=30)
        assert process.exitcode == 0
    results.close()
    results.join_thread()

    everything = [f"{verb} {number}" for number in range(rounds) for verb in ("swap", "create")]
    assert Counter(item for items in won.values() for item in items) == Counter(everything)
    store = DirectoryStore(tmp_path / "r")
    for number in range(rounds):
        winner = int(store.get(f"blobs/{number}").data.split()[1])
        assert f"create {number}" in won[winner]
    last = int(store.get(HEAD).data.split()[1])
    assert f"swap {rounds - 1}" in won[last]


def test_a_kill_at_any_moment_leaves_whole_objects_and_a_free_lock(tmp_path: Path) -> None:
    root = tmp_path / "r"
    draw = random.Random(4)
    acknowledged: list[str] = []
    for seed in range(25):
        with worker("write_until_killed", root, seed) as process:
            assert process.stdout is not None
            acknowledged.append(process.stdout.readline().strip())
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
            acknowledged += process.stdout.read().split()
        store = DirectoryStore(root, lock_seconds=1)
        listed = set(store.list(""))
        assert listed >= set(acknowledged)
        assert all(is_whole(store.get(key).data) for key in listed)
        if HEAD in listed:
            stored = store.get(HEAD)
            store.swap(HEAD, stored.data, stored.tag)
    assert len(acknowledged) > 25


def test_a_lock_that_is_held_too_long_is_an_outage_and_not_a_wait_for_ever(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "r", lock_seconds=0.2)
    tag = store.create(HEAD, b"first")
    with worker("hold_lock", tmp_path / "r") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for write in (lambda: store.swap(HEAD, b"second", tag), lambda: store.delete(HEAD)):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="nothing changed") as caught:
                write()
            assert 0.15 < time.monotonic() - began < 5
            assert "another process" in caught.value.why
        assert store.get(HEAD).data == b"first"
        store.create("environments/prod/other", b"creating takes no lock")

        patient = DirectoryStore(tmp_path / "r")
        swapping = threading.Thread(target=patient.swap, args=(HEAD, b"second", tag))
        swapping.start()
        time.sleep(0.1)
        assert swapping.is_alive()
        holder.kill()
    swapping.join(timeout=5)
    assert store.get(HEAD).data == b"second"


def test_a_limit_on_file_sizes_refuses_the_write_and_leaves_nothing(tmp_path: Path) -> None:
    with worker("write_too_much", tmp_path / "r") as process:
        pass
    assert process.returncode == 0
