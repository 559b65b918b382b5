"""attest and override, through promote: what the gate says, what head carries, what history tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions import succession
from bundlectl.actions.attest import attest
from bundlectl.actions.override import override
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.actions.show import show
from bundlectl.actions.status import history
from bundlectl.actions.verify import verify
from bundlectl.model.attestation import APPROVAL, OVERRIDE, PROVENANCE
from bundlectl.model.errors import BundlectlError, Conflict, GateNotPassed, UsageError, VerificationFailed
from bundlectl.model.keyring import AttestationRequirement, EvaluationRequirement, Freeze, Gate, Soak
from bundlectl.trust.envelope import open_statement
from tests.support.ceremony import Ceremony
from tests.support.world import START, SUITE

REVIEW = "urn:example:red-team:v1"
GATES = {
    "dev": Gate(attestations=[AttestationRequirement(type=REVIEW, role="approver")]),
    "staging": Gate(),
    "prod": Gate(
        provenance=1,
        evaluations=[EvaluationRequirement(suite=SUITE)],
        soak=Soak(environment="staging", at_least="1d"),
        freezes=[Freeze(start=START, end=START.replace(day=5), reason="closing of the books")],
    ),
}


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    made = Ceremony(tmp_path, gates=GATES)
    (tmp_path / "report.json").write_text(json.dumps({"conclusion": "no findings", "rounds": 40}))
    return made


def reference(ceremony: Ceremony, text: str = "v1") -> str:
    return f"support@{ceremony.world.bundle(text).digest}"


def go(ceremony: Ceremony, ref: str, environment: str = "prod", **how: Any) -> Any:
    return promote(ceremony.context(), ref, environment=environment, reason="in a test", **how)


def stopped(error: BundlectlError) -> list[str]:
    checks = error.details["plan"]["checks"]
    return [check["name"] for check in checks if check["verdict"] != "pass" and not check["warning"]]


# ---------------------------------------------------------------- attest


def test_a_gate_asks_for_a_report_and_resolvers_ask_again(ceremony: Ceremony) -> None:
    ref, file = reference(ceremony), ceremony.folder / "report.json"
    with pytest.raises(GateNotPassed) as refused:
        go(ceremony, ref, "dev")
    assert stopped(refused.value) == [f"attestation:{REVIEW}"]
    assert f"bundlectl attest {ref[:27]} --type {REVIEW}" in refused.value.fix
    made = attest(ceremony.context(), ref, predicate_type=REVIEW, predicate=file)
    assert (made.kind, made.signer, made.predicate_type) == ("attestation", "approver", REVIEW)
    go(ceremony, ref, "dev")
    shown = [a for a in show(ceremony.context(), ref).attestations if a.predicate_type == REVIEW]
    assert [(a.counts, a.signers) for a in shown] == [(True, ["approver"])]
    assert REVIEW in [a.predicate_type for a in verify(ceremony.context(), "support:dev").attestations]
    # The resolver's rule: a promoter alone cannot leave it out.
    bare = ceremony.world.head("dev", ref.removeprefix("support@"), evidence=[])
    with pytest.raises(VerificationFailed, match="does not carry the evidence"):
        ceremony.world.verify("dev", bare)


def test_signed_by_another_role_or_by_who_built_it(ceremony: Ceremony) -> None:
    ref, file = reference(ceremony), ceremony.folder / "report.json"
    attest(ceremony.context(), ref, predicate_type=REVIEW, predicate=file, role="evaluator")
    succession.add(ceremony.context(), "same", owner="Builder@example.com ", role="approver", key=ceremony.pub("same"))
    attest(ceremony.context(signer="same"), ref, predicate_type=REVIEW, predicate=file)
    with pytest.raises(GateNotPassed, match="nobody reviews their own work"):
        go(ceremony, ref, "dev")


def test_provenance_of_another_builder_is_provenance(ceremony: Ceremony) -> None:
    made = attest(
        ceremony.context(), reference(ceremony), predicate_type=PROVENANCE, predicate=ceremony.folder / "report.json"
    )
    assert (made.kind, made.signer) == ("provenance", "builder")


@pytest.mark.parametrize(
    ("type_", "text", "how", "says"),
    [
        (APPROVAL, "{}", {}, "verb of their own"),
        ("not a uri", '{"a": 1}', {}, "no predicate type"),
        (REVIEW, "[]", {}, "holds no predicate"),
        (REVIEW, "{}", {}, "holds no predicate"),
        (REVIEW, '{"a": 1, "a": 2}', {}, "duplicate key"),
        (REVIEW, '{"a": NaN}', {}, "not JSON that can be signed"),
        (REVIEW, '{"a": 9007199254740993}', {}, "not JSON that can be signed"),
        (REVIEW, '{"a": "' + "x" * 70000 + '"}', {}, "at most 65536"),
        (REVIEW, '{"a": 1}', {"signer": "promoter"}, "is not an approver"),
        (REVIEW, '{"a": 1}', {"signer": "stranger"}, "not in keyring"),
    ],
)
def test_what_cannot_be_attested(ceremony: Ceremony, type_: str, text: str, how: Any, says: str) -> None:
    (ceremony.folder / "bad.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        attest(
            ceremony.context(**how),
            reference(ceremony),
            predicate_type=type_,
            predicate=ceremony.folder / "bad.json",
        )


# ---------------------------------------------------------------- override


def test_an_override_opens_the_gate_once_and_is_on_record(ceremony: Ceremony) -> None:
    first, second = reference(ceremony, "v1"), reference(ceremony, "v2")
    with pytest.raises(GateNotPassed) as refused:
        go(ceremony, first)
    assert stopped(refused.value) == ["soak", "freeze"]
    made = override(ceremony.context(), first, environment="prod", checks=["soak", "freeze"], reason="outage")
    assert (made.previous, made.expires) == (None, "2026-11-01T16:00:00Z")
    planned = go(ceremony, first, plan_only=True).plan
    assert planned.verdict == "pass"
    [soak] = [check for check in planned.checks if check.name == "soak"]
    assert soak.why.startswith("overridden by approver until 2026-11-01T16:00:00Z: outage (It is not live in")
    assert (soak.verdict, soak.warning, soak.override) == ("fail", True, made.digest)
    released = go(ceremony, first, expected_plan=planned).released
    assert [line.split(":")[0] for line in released.warnings] == ["soak", "freeze"]
    carried = [open_statement(envelope).predicateType for envelope in ceremony.world.head_of("prod")[1].evidence]
    assert carried.count(OVERRIDE) == 1
    assert ceremony.world.verify("prod").alarms == ()
    [entry] = history(ceremony.context(), "support:prod", verify=True).entries
    assert entry.overrides == ["soak, freeze overridden by approver: outage"]
    with pytest.raises(GateNotPassed) as again:  # it named the head before: it is used up
        go(ceremony, first)
    assert stopped(again.value) == ["soak", "freeze"]
    with pytest.raises(GateNotPassed):
        go(ceremony, second)
    override(ceremony.context(), second, environment="prod", checks=["soak", "freeze"], reason="more")
    go(ceremony, second)
    rollback(ceremony.context(), "support:prod", reason="worse")
    assert [e.overrides != [] for e in history(ceremony.context(), "support:prod").entries] == [False, True, True]


def test_an_override_whose_time_is_up_makes_the_plan_stale(ceremony: Ceremony) -> None:
    ref = reference(ceremony)
    override(ceremony.context(), ref, environment="prod", checks=["soak", "freeze"], reason="x", expires="1h")
    planned = go(ceremony, ref, plan_only=True).plan
    ceremony.later(hours=1)
    with pytest.raises(Conflict, match="stale") as refused:
        go(ceremony, ref, expected_plan=planned)
    assert "soak: fail, overridden -> fail" in refused.value.why


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checks": ["evaluation:support"]}, "cannot be overridden"),
        ({"checks": ["confirm"]}, "cannot be overridden"),
        ({"checks": ["provenance", "soak"]}, "provenance cannot be"),
        ({"checks": []}, "No check was named"),
        ({"expires": "25h"}, "at most 24h"),
        ({"expires": "0s"}, "at most 24h"),
        ({"expires": "soon"}, "no duration"),
        ({"reason": "x" * 1001}, "cannot say that"),
        ({"environment": "nowhere"}, "no environment"),
        ({"signer": "promoter"}, "is not a"),
        ({"signer": "same"}, "the same person built it"),
    ],
)
def test_what_cannot_be_overridden(ceremony: Ceremony, change: dict[str, Any], says: str) -> None:
    who: dict[str, Any] = {"owner": "builder@example.com", "role": "approver", "key": ceremony.pub("same")}
    succession.add(ceremony.context(), "same", **who)
    given: dict[str, Any] = {"environment": "prod", "checks": ["soak"], "reason": "x"} | change
    ctx = ceremony.context(signer=given.pop("signer", None))
    with pytest.raises(BundlectlError, match=says):
        override(ctx, reference(ceremony), **given)


def test_a_bundle_that_nobody_built_is_not_overridden(ceremony: Ceremony) -> None:
    bundle = ceremony.world.bundle("v1", evidence=False)
    with pytest.raises(UsageError, match="nobody signed as its builder"):
        override(ceremony.context(), f"support@{bundle.digest}", environment="prod", checks=["soak"], reason="x")
