"""Promoting while processes die, disks fill and locks are held: old release or new one, and the next succeeds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.status import history, status
from tests.support.workspace import APP, ROOT, Workspace, environment

PROMOTE = ("promote", ".", "--to", "dev", "--reason")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """An app whose first version is live, and whose second is built and evaluated."""
    work = Workspace.at(tmp_path_factory.mktemp("ready"), live=True)
    work.next_version()
    return work


@pytest.fixture
def work(ready: Workspace, tmp_path: Path) -> Workspace:
    return copy_of(ready, tmp_path)


def copy_of(ready: Workspace, folder: Path) -> Workspace:
    import shutil

    shutil.copytree(ready.folder, folder / APP, symlinks=True)
    return Workspace(folder / APP)


def serial(work: Workspace) -> int:
    """What is live in dev, verified, and the whole chain behind it."""
    [live] = [one for one in status(work.context(), APP).environments if one.environment == "dev"]
    assert (live.state, live.problem) == ("live", None)
    chain = history(work.context(), f"{APP}:dev", verify=True)
    assert [entry.serial for entry in chain.entries] == list(range(live.serial or 0, 0, -1))
    return live.serial or 0


def assert_next_succeeds(work: Workspace) -> None:
    """The next promotion follows what is live."""
    before = serial(work)
    work.release("dev", reason="the next")
    assert serial(work) == before + 1


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_killed_after_each_write_of_the_store(work: Workspace, writes: int) -> None:
    ran = work.warm(*PROMOTE, "killed", code=None, fault={"kill_after_writes": writes})
    assert ran.code == -9
    assert serial(work) == (2 if writes == 2 else 1)
    live = {one["environment"]: one for one in work.quick("status")["environments"]}["dev"]
    assert (live["state"], live["serial"]) == ("live", serial(work))
    assert work.quick("history", f"{APP}:dev", "--verify")["verified"] is True
    assert_next_succeeds(work)


def test_killed_before_each_call_that_changes_the_disk(ready: Workspace, tmp_path: Path) -> None:
    landed: list[int] = []
    for number in range(100):
        work = copy_of(ready, tmp_path / str(number))
        ran = work.warm(*PROMOTE, "killed", code=None, fault={"kill_at_call": number})
        if ran.code == 0:
            break
        assert ran.code == -9, ran.err
        landed.append(serial(work))
        assert_next_succeeds(work)
    assert landed == sorted(landed), "once the new release is there, it stays"
    assert {1, 2} == set(landed)
    assert len(landed) >= 12, "temporary file, write, fsync, publish, fsync: of the archive and of head"


def test_disk_full_at_each_call(ready: Workspace, tmp_path: Path) -> None:
    refused = 0
    for number in range(100):
        work = copy_of(ready, tmp_path / str(number))
        ran = work.warm(*PROMOTE, "full", "-o", "json", code=None, fault={"full_at_call": number})
        if ran.code == 0:  # head was renamed, and read back when its folder could not be synced
            assert serial(work) == 2
            break
        assert ran.code == 6, ran.err
        assert "No space left on device" in ran.error["why"]
        assert "Free space" in ran.error["fix"]
        assert serial(work) == 1
        refused += 1
        assert not list(work.registry.rglob(".tmp-*")), "nothing half-written is left"
        assert_next_succeeds(work)
    assert refused >= 6


def test_file_size_limit(work: Workspace) -> None:
    before = work.head("dev").read_bytes()
    ran = work.warm(*PROMOTE, "limited", "-o", "json", code=6, fault={"largest_file": 2048})
    assert "ulimit" in ran.error["fix"]
    assert work.head("dev").read_bytes() == before
    assert serial(work) == 1
    assert_next_succeeds(work)


def test_file_size_limit_while_building(work: Workspace) -> None:
    work.edit("prompts/answer.yaml", "You answer", "You shall answer")
    ran = work.warm("build", ".", "-o", "json", code=6, fault={"largest_file": 512})
    assert ran.error["exit_code"] == 6
    assert work.quick("build", ".")["new"] is True
    assert serial(work) == 1


def test_lock_held_by_another_process(work: Workspace) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.acceptance.lock_holder", str(work.environment_folder("dev") / ".lock")],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    started = time.monotonic()
    ran = work.warm(*PROMOTE, "waits", "-o", "json", code=6, fault={"lock_seconds": 0.5})
    took = time.monotonic() - started
    holder.communicate("go")
    assert 0.5 <= took < 5
    assert "held" in ran.error["why"]
    assert serial(work) == 1
    assert_next_succeeds(work)


@pytest.mark.parametrize("what", ["a folder where head is", "a FIFO where head is", "a link where head is"])
def test_head_that_cannot_be_read(work: Workspace, what: str) -> None:
    import os

    head = work.head("dev")
    kept = head.read_bytes()
    head.unlink()
    if "folder" in what:
        head.mkdir()
    elif "FIFO" in what:
        os.mkfifo(head)
    else:
        elsewhere = work.folder / "elsewhere.json"
        elsewhere.write_bytes(kept)
        head.symlink_to(elsewhere)
    for argv in ((*PROMOTE, "x"), ("history", f"{APP}:dev"), ("verify", f"{APP}:dev")):
        error: dict[str, Any] = json.loads(work.warm(*argv, "-o", "json", code=6).err)
        assert "head.json" in error["message"]


def test_registry_that_may_not_be_written(work: Workspace) -> None:
    """As root no permission stops us, so the folder of the history is made one that nobody can write: a file."""
    folder = work.environment_folder("dev") / "history"
    assert not folder.exists()
    folder.write_bytes(b"")
    before = work.head("dev").read_bytes()
    error = work.warm(*PROMOTE, "x", "-o", "json", code=6).error
    assert "not a folder" in error["why"]
    assert work.head("dev").read_bytes() == before
    folder.unlink()
    assert_next_succeeds(work)
