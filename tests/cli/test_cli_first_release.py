"""The first release of an environment, where nothing is live yet to hold a plan against."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workspace import APP, Workspace

PROMOTE = ("promote", ".", "--to", "prod", "--reason", "first", "--confirm", "prod")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.at(tmp_path_factory.mktemp("first"))
    made.warm("build", ".")
    return made


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_gate_that_refuses_the_first_release_ends_with_3(built: Workspace, output: str) -> None:
    ran = built.warm(*PROMOTE, "-o", output, code=3)
    assert f"The gate of {APP}:prod says" in ran.err
    if output == "text":
        assert "is the first release" in ran.out
        assert "evaluation" in ran.out


def test_a_plan_of_the_first_release_is_held_against_none(built: Workspace, tmp_path: Path) -> None:
    plan = str(tmp_path / "plan.json")
    to_dev = ("promote", ".", "--to", "dev", "--reason", "first", "--plan-file", plan)
    built.warm(*to_dev, "--plan")
    built.warm(*to_dev)
    ran = built.warm(*to_dev, code=5)
    assert "live bundle none -> sha256:" in ran.err
