"""The GitHub Action's and GitLab's shell steps, taken out of their files and run on a scaffold with a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.workspace import ROOT, Workspace, environment

ACTION = yaml.safe_load((ROOT / "action" / "action.yml").read_text(encoding="utf-8"))
GITLAB = yaml.safe_load((ROOT / "docs" / "ci" / "gitlab.yml").read_text(encoding="utf-8"))
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"]}
VERBS = ("validate", "build", "eval", "sign", "plan", "promote", "renew")
_INPUT = re.compile(r"\$\{\{ inputs\.([a-z-]+) \}\}")


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, line in (
        ("bundlectl", f'exec "{sys.executable}" -m bundlectl "$@"'),
        ("python", f'exec "{sys.executable}" "$@"'),
    ):
        (bin_ / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (bin_ / name).chmod(0o755)
    return made


def shell(work: Workspace, script: str, variables: dict[str, str], code: int = 0) -> str:
    path = f"{work.folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=work.folder,
        env=environment(**variables, PATH=path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, f"{script}\nexit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


class Job:
    """Runs the action as GitHub does: each run step whose condition holds, with its files of variables."""

    def __init__(self, work: Workspace, **inputs: str) -> None:
        self.outputs = work.folder.parent / "output"
        self.summary = work.folder.parent / "summary"
        variables = work.folder.parent / "env"
        for file in (self.outputs, self.summary, variables):
            file.write_text("", encoding="utf-8")
        files = {"GITHUB_OUTPUT": self.outputs, "GITHUB_STEP_SUMMARY": self.summary, "GITHUB_ENV": variables}
        given = {name.replace("_", "-"): value for name, value in inputs.items() if name != "code"}
        values = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()} | given
        assert values.keys() == ACTION["inputs"].keys()
        for name in ("settings", given["step"]):
            step = STEPS[name]
            env = {key: _INPUT.sub(lambda found: values[found[1]], text) for key, text in step["env"].items()}
            kept = dict(line.split("=", 1) for line in variables.read_text(encoding="utf-8").splitlines())
            told = {key: str(file) for key, file in files.items()}
            code = int(inputs.get("code", 0)) if name != "settings" else 0
            self.out = shell(work, step["run"], env | kept | told, code)

    @property
    def told(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.outputs.read_text(encoding="utf-8").splitlines())


def test_the_action_is_safe_and_complete() -> None:
    assert set(VERBS) < set(STEPS)
    for name, step in STEPS.items():
        assert "${{" not in step.get("run", ""), f"{name}: an input in a script could be code"
        if name in VERBS:
            assert step["if"] == f"inputs.step == '{name}'"
            assert step["shell"] == "bash"
    used = set(_INPUT.findall(str(ACTION))) | set(re.findall(r"inputs\.([a-z-]+) [!=]", str(ACTION)))
    assert used == set(ACTION["inputs"])


def test_every_step_of_the_action(work: Workspace) -> None:
    registry = str(work.registry)
    assert Job(work, step="validate", registry=registry).out
    first = Job(work, step="plan", environment="staging")
    assert first.told == {"verdict": "pass"}
    assert "Nothing is live in hello:staging" in first.summary.read_text(encoding="utf-8")
    built = Job(work, step="build").told["bundle"]
    assert re.fullmatch(r"hello@sha256:[0-9a-f]{64}", built)
    assert Job(work, step="sign", reference=built).out
    job = Job(work, step="eval", reference=built, suite="evals/hello.yaml")
    assert job.told == {"verdict": "pass"}
    assert "```" in job.summary.read_text(encoding="utf-8")
    reason = 'a "quoted" $(touch broken) reason; `touch broken`'
    released = Job(work, step="promote", reference=built, environment="staging", reason=reason)
    assert released.told["release"].startswith("sha256:")
    assert not (work.folder / "broken").exists()
    assert work.json("history", "hello:staging")["entries"][0]["reason"] == reason
    Job(work, step="promote", reference="hello:staging", environment="prod", reason="x", code="3")
    Job(work, step="promote", reference="hello:staging", environment="prod", reason="x", confirm="prod")
    renewed = Job(work, step="renew", reference="hello:prod")
    assert renewed.told["release"].startswith("sha256:")
    # A pull request: changed and not built, in a job that may only read.
    work.edit("prompts/answer.yaml", "and from nothing else", "and from nothing else at all")
    Job(work, step="eval", unsigned="true")
    review = Job(work, step="plan", environment="staging")
    assert review.told == {"verdict": "inconclusive"}
    said = review.summary.read_text(encoding="utf-8")
    assert "not in the registry" in said
    assert "nothing else at all" in said
    assert "| pass |" not in said
    Job(work, step="plan", environment="nowhere", reference=built, code="2")
    work.edit("bundle.yaml", "bundlectl/v1", "bundlectl/v9")
    Job(work, step="validate", code="2")


def test_every_job_of_gitlab(work: Workspace) -> None:
    variables = {"BUNDLE": ".", "APP": "hello", "CI_COMMIT_TITLE": "a title"}
    jobs = {name: job for name, job in GITLAB.items() if "script" in job}
    assert list(jobs) == ["validate", "build", "evaluate", "staging", "renew"]
    for job in jobs.values():
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(job.get("variables", {}))
        shell(work, "\n".join(job["script"]), variables)
        made = work.folder / "build.env"
        if made.exists():
            variables |= dict(line.split("=", 1) for line in made.read_text(encoding="utf-8").splitlines())
    assert [one["action"] for one in work.json("history", "hello:staging")["entries"]] == ["renewal", "promotion"]


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "ci").glob("github-*.yml")), ids=lambda path: path.stem)
def test_the_example_workflows_use_the_action_as_it_is(file: Path) -> None:
    workflow: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["permissions"] == {"contents": "read", "id-token": "write"}
        used = [step for step in job["steps"] if step.get("uses", "").startswith("OWNER/bundlectl/action@")]
        assert used, name
        for step in used:
            assert set(step["with"]) <= set(ACTION["inputs"])
            assert step["with"]["step"] in VERBS
        assert len({step["with"].get("aws-role") for step in used} - {None}) == 1, f"{name}: one role a job"
