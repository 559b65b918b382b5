"""Eight at once on a store that fails, 500 times, each time in another order; ``make soak`` takes 10,000."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bundlectl.registry.releases import Releases
from tests.registry.histories import Ground, History, run, run_side_by_side

HISTORIES = int(os.environ.get("BUNDLECTL_HISTORIES", "500"))


@pytest.mark.timeout(60 + HISTORIES)
def test_no_history_violates_the_model() -> None:
    found = run_side_by_side(HISTORIES, min(4, os.cpu_count() or 1))
    assert found["violations"] == []
    assert found["histories"] == HISTORIES
    # It must have been a storm, or nothing was shown.
    assert set(found["faults"]) == {"cut", "delay", "duplicate", "fail_after", "fail_before", "full", "late"}
    assert sum(found["faults"].values()) > HISTORIES
    assert found["said"]["Conflict"] > HISTORIES / 10
    assert found["said"]["done"] > HISTORIES / 2


def test_the_same_seed_gives_the_same_history() -> None:
    assert run(7, 3) == run(7, 3)


def test_a_commit_that_does_not_look_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees what it is there to see: a promoter that takes a lost reply for a lost race."""
    monkeypatch.setattr(Releases, "_read_back", _blind)
    ground = Ground(tmp_path)
    assert any("it is live" in one for seed in range(200) for one in History(ground, seed).run().violations)


def _blind(releases: Releases, app: str, environment: str, *rest: Any) -> None:
    raise releases._conflict(app, environment, rest[-1])


def test_a_swap_that_compares_nothing_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost releases are seen as well."""
    from bundlectl.storage.memory import MemoryStore

    swap = MemoryStore.swap

    def careless(self: MemoryStore, key: str, data: bytes, expected: str | None) -> str:
        present = self._objects.get(key)
        return swap(self, key, data, present.tag if present else None)

    monkeypatch.setattr(MemoryStore, "swap", careless)
    ground = Ground(tmp_path)
    assert any("lost" in one for seed in range(200) for one in History(ground, seed).run().violations)
