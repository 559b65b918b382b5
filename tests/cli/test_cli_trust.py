"""Trust on the command line: no self-approval, thresholds, an offline ceremony, an override, from argv to exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundlectl.model.keyring import EvaluationRequirement, Gate, Soak
from tests.support.ceremony import Ceremony
from tests.support.workspace import warm_process
from tests.support.world import SUITE


class Line:
    """A ceremony's folder and the command line in it."""

    def __init__(self, folder: Path) -> None:
        gate = Gate(provenance=1, evaluations=[EvaluationRequirement(suite=SUITE)], approvals=2)
        soaked = Gate(soak=Soak(environment="dev"))
        self.ceremony = Ceremony(folder, gates={"dev": Gate(), "staging": soaked, "prod": gate})
        self.ref = f"support@{self.ceremony.world.bundle('v1').digest}"

    def __call__(self, *argv: str, code: int = 0) -> Any:
        ran = warm_process().ask(self.ceremony.folder, (*argv, "-o", "json"), None, None)
        assert ran.code == code, f"{argv}\n{ran.code}\n{ran.out}\n{ran.err}"
        return ran.json if ran.out else ran.error

    def add(self, name: str, owner: str, role: str = "approver") -> None:
        self("keyring", "add", name, "--owner", owner, "--role", role, "--key", self.ceremony.pub(name))

    def approve(self, name: str) -> None:
        key = self.ceremony.key(name)
        self("approve", self.ref, "--for", "prod", "--reason", "read it", "--signer", key)

    def promote(self, environment: str, code: int = 0) -> Any:
        return self("promote", self.ref, "--to", environment, "--reason", "x", code=code)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def check(told: Any, name: str) -> Any:
    return next(c for c in told["details"]["plan"]["checks"] if c["name"] == name)


def test_nobody_approves_their_own_work_and_thresholds_count_people_s_keys(line: Line) -> None:
    line.add("ben", "builder@example.com")  # the person behind the builder's key, with another key
    line.add("ann", "ann@example.com")
    line.approve("ben")
    line.approve("approver")  # again: one key counts once
    found = check(line.promote("prod", code=3), "approvals")
    assert found["verdict"] == "fail"
    assert found["why"].startswith("1 of 2 needed approvals (so far: approver). ben built it too")
    line.approve("ann")
    assert line.promote("prod")["released"]["serial"] == 1
    # One key under two names is not even a keyring.
    told = line(
        "keyring", "add", "ann-2", "--owner", "x", "--role", "approver", "--key", line.ceremony.pub("ann"), code=4
    )
    assert "one key under two names" in told["message"]


def test_a_ceremony_from_argv(line: Line) -> None:
    add = ("keyring", "rotate-root", "--add", line.ceremony.member("root-2"), "--threshold", "2")
    assert line(*add, "--request", "c.json")["request"] == "c.json"
    assert line("keyring", "sign-request", "c.json", "--show")["version"] == 2
    for name in ("root", "root-2"):
        line("keyring", "sign-request", "c.json", "--out", f"{name}.sig", "--signer", line.ceremony.key(name))
    assert "not signed by enough" in line("keyring", "apply", "c.json", "root.sig", code=4)["message"]
    assert line("keyring", "apply", "c.json", "root.sig", "root-2.sig")["version"] == 2
    assert line("keyring", "show")["document"]["root"]["threshold"] == 2
    line("keyring", "block", line.ref, "--reason", "x", code=4)
    both = [word for name in ("root", "root-2") for word in ("--signer", line.ceremony.key(name))]
    assert line("keyring", "block", line.ref, "--reason", "leaks", *both)["version"] == 3
    assert check(line.promote("dev", code=3), "blocked")["verdict"] == "fail"


def test_retire_compromise_epoch_from_argv(line: Line) -> None:
    line.promote("dev")
    told = line("keyring", "retire", "promoter", "--reason", "left", code=2)
    assert told["details"]["depends"][0].startswith("support:dev")
    line.add("promoter-2", "platform", "promoter")
    assert line("keyring", "compromise", "promoter", "--reason", "stolen")["consequences"]
    assert line("keyring", "epoch", "support:dev", "--reason", "stolen")["changes"][1].startswith("support:dev: epoch")
    assert line("status", "support", code=4)["environments"][0]["state"] == "refused"
    released = line(
        "promote", line.ref, "--to", "dev", "--reason", "anew", "--signer", line.ceremony.key("promoter-2")
    )["released"]
    assert (released["epoch"], released["serial"]) == (2, 1)
    assert line("status", "support")["environments"][0]["state"] == "live"
    assert line("history", "support:dev", "--verify")["verified"] is True


def test_attest_and_override_from_argv(line: Line) -> None:
    (line.ceremony.folder / "r.json").write_text(json.dumps({"conclusion": "fine"}))
    told = line("attest", line.ref, "--type", "urn:example:review:v1", "--predicate", "r.json")
    assert told["predicate_type"] == "urn:example:review:v1"
    line.promote("staging", code=3)
    line("override", line.ref, "--for", "staging", "--check", "approvals", "--reason", "x", code=2)
    assert line("override", line.ref, "--for", "staging", "--check", "soak", "--reason", "x")["checks"] == ["soak"]
    assert line.promote("staging")["plan"]["checks"][-2]["override"]


def test_a_policy_from_argv(line: Line) -> None:
    line("policy", "export", "support", "p.yaml")
    file = line.ceremony.folder / "p.yaml"
    file.write_text(file.read_text().replace("approvals: 2", "approvals: 1"))
    assert line("policy", "diff", "p.yaml", "--app", "support")["changes"] == ["prod.approvals: 2 -> 1"]
    assert line("policy", "set", "p.yaml", "--app", "support")["version"] == 2
    line.approve("approver")
    line.promote("prod")
    line("keyring", "export", "k.json")
    assert (line.ceremony.folder / "k.json").read_bytes() == line.ceremony.world.registry.keyring_bytes(1)
