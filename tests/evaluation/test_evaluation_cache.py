"""Where answers and scores lie: many processes, a full disk, damage, and forgetting."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bundlectl.evaluation.cache import FILE, TOGETHER, EvaluationCache, clear, held
from bundlectl.model.errors import BackendUnavailable


def opened(folder: Path, warnings: list[str] | None = None, **more: int) -> EvaluationCache:
    told = warnings if warnings is not None else []
    return EvaluationCache(folder, warn=told.append, **more)


def fail(text: str) -> None:
    raise AssertionError(text)


def test_what_was_kept_is_there_for_another_run_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "cache"
    with EvaluationCache(folder, warn=fail) as cache:
        cache.put("answer", [("a", b"one"), ("b", b"two")])
        cache.put("answer", [("a", b"three")])
    with EvaluationCache(folder, warn=fail) as cache:
        assert cache.get(["a", "b", "c"]) == {"a": b"three", "b": b"two"}
        modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert modes == {0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (held(folder).answers, held(folder).bytes) == (2, 8)


def test_those_kept_longest_make_room(tmp_path: Path) -> None:
    with opened(tmp_path, limit=10_000) as cache:
        for n in range(100):
            cache.put("answer", [(f"k{n}", b"x" * 1_000)])
        assert held(tmp_path).bytes <= 10_000
        assert cache.get(["k0", "k99"]).keys() == {"k99"}


def put_many(folder: str, name: int) -> None:
    with EvaluationCache(Path(folder), warn=fail) as cache:
        for n in range(100):
            cache.put("score", [(f"{name}-{n}", b"v"), ("shared", b"s")])


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=put_many, args=(str(tmp_path), name)) for name in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert held(tmp_path).scores == 301


KILLED = """
import sys
from pathlib import Path
from bundlectl.evaluation.cache import EvaluationCache
with EvaluationCache(Path(sys.argv[1]), warn=print) as cache:
    for n in range(10**9):
        cache.put("answer", [(f"k{n}", b"x" * 5000)])
        print(n, flush=True)
"""


def test_kill_in_the_middle_of_writing_loses_the_last_few_at_most(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        told = [child.stdout.readline() for _ in range(300)]
        child.kill()
        told += child.stdout.readlines()
    child.wait(timeout=30)
    kept = [f"k{line.strip()}" for line in told if line.endswith("\n")]
    with EvaluationCache(tmp_path, warn=fail) as cache:
        assert len(cache.get(kept[-250:-TOGETHER])) == 250 - TOGETHER


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from bundlectl.evaluation.cache import EvaluationCache
told = []
with EvaluationCache(Path(sys.argv[1]), warn=told.append) as cache:
    cache.put("answer", [("first", b"1")])
with EvaluationCache(Path(sys.argv[1]), warn=told.append) as cache:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    for n in range(200):
        cache.put("answer", [(f"k{n}", b"x" * 5000)])
    assert cache.get(["first"]) == {"first": b"1"}
(text,) = told
assert "nothing more is kept in this run" in text, text
"""


def test_a_full_disk_is_said_once_and_what_is_there_is_still_read(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], timeout=60, check=False, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    with EvaluationCache(tmp_path, warn=fail) as cache:
        assert cache.get(["first"]) == {"first": b"1"}


def spoil(folder: Path, sql: str) -> None:
    db = sqlite3.connect(folder / FILE)
    with db:
        db.execute(sql)
    db.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entries SET value = x'00' WHERE key = 'a'",
        "UPDATE entries SET value = 'text' WHERE key = 'a'",
        "UPDATE entries SET digest = x'00' WHERE key = 'a'",
        "UPDATE entries SET value = (SELECT value FROM entries WHERE key = 'b'),"
        " digest = (SELECT digest FROM entries WHERE key = 'b') WHERE key = 'a'",
    ],
)
def test_a_damaged_entry_is_not_found_and_said_once(tmp_path: Path, sql: str) -> None:
    with opened(tmp_path) as cache:
        cache.put("answer", [("a", b"one"), ("b", b"two")])
    spoil(tmp_path, sql)
    warnings: list[str] = []
    with opened(tmp_path, warnings) as cache:
        assert cache.get(["a", "b"]) == cache.get(["a", "b"]) == {"b": b"two"}
        cache.put("answer", [("a", b"one")])
        assert cache.get(["a"]) == {"a": b"one"}
    assert len(warnings) == 1 and "damaged" in warnings[0]


@pytest.mark.parametrize("what", ["garbage", "folder", "link", "another table"])
def test_a_cache_that_cannot_be_used_stops_no_run(tmp_path: Path, what: str) -> None:
    if what == "garbage":
        (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    elif what == "folder":
        (tmp_path / FILE).mkdir()
    elif what == "link":
        (tmp_path / "elsewhere").write_text("")
        (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    else:
        spoil(tmp_path, "CREATE TABLE entries (other TEXT)")
    warnings: list[str] = []
    with opened(tmp_path, warnings) as cache:
        cache.put("answer", [("a", b"one")])
        assert cache.get(["a"]) == {}
    assert len(warnings) == 1 and "bundlectl cache clear" in warnings[0] and str(tmp_path / FILE) in warnings[0]
    with pytest.raises(BackendUnavailable, match="cannot be used"):
        held(tmp_path)


def test_clear_leaves_no_byte_of_what_was_kept_and_repairs(tmp_path: Path) -> None:
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == [] and held(tmp_path).bytes == 0
    with opened(tmp_path) as cache:
        cache.put("answer", [(f"k{n}", b"a secret sentence " * 300) for n in range(TOGETHER)])
        assert held(tmp_path).answers == TOGETHER
        clear(tmp_path)
        assert cache.get(["k1"]) == {}
        cache.put("answer", [("later", b"v")])
    assert held(tmp_path).answers == 1
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    clear(tmp_path)
    assert held(tmp_path).bytes == 0


def test_clear_by_age_and_by_size(tmp_path: Path) -> None:
    now = [0.0]
    with EvaluationCache(tmp_path, warn=fail, clock=lambda: now[0]) as cache:
        for n in range(10):
            now[0] = float(n)
            cache.put("answer", [(f"k{n}", b"x" * 100)])
    with EvaluationCache(tmp_path, warn=fail) as cache:
        clear(tmp_path, before=3.0)
        assert sorted(cache.get([f"k{n}" for n in range(10)])) == [f"k{n}" for n in range(3, 10)]
        clear(tmp_path, down_to=250)
        assert sorted(cache.get([f"k{n}" for n in range(10)])) == ["k8", "k9"]
        clear(tmp_path, down_to=250)
        assert held(tmp_path).answers == 2
        clear(tmp_path, down_to=0)
        assert held(tmp_path).answers == 0
