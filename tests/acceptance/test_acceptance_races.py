"""Twenty long-lived processes promoting to one environment at once, round after round.

BUNDLECTL_RACE_ROUNDS says how many rounds; the acceptance run takes 50.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundlectl.actions.status import history
from tests.support.workspace import APP, ROOT, Workspace, environment

PROCESSES = 20
ROUNDS = int(os.environ.get("BUNDLECTL_RACE_ROUNDS", "10"))


@pytest.mark.timeout(60 + 10 * ROUNDS)
def test_every_serial_has_one_winner(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.racers", str(work.registry), str(PROCESSES), str(ROUNDS)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == ROUNDS
    winners: dict[int, str] = {}
    for number, one in enumerate(rounds):
        results = one["results"]
        assert len(results) == PROCESSES
        won = [result for result in results if result["code"] == 0]
        lost = [result for result in results if result["code"] != 0]
        assert {result["code"] for result in lost} <= {5}, lost
        assert all("first" in result["message"] for result in lost)
        assert won, "somebody always gets through"
        if one["contended"]:
            assert len(won) == 1, "all rest on the same head"
        for result in won:
            assert result["serial"] not in winners
            winners[result["serial"]] = f"round {number}, racer {result['racer']}"
    chain = history(work.context(), f"{APP}:dev", verify=True)
    assert chain.verified
    assert {entry.serial: entry.reason for entry in chain.entries} == {1: "first in dev"} | winners
    assert sorted(winners) == list(range(2, len(winners) + 2))
