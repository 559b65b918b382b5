"""The gate, row by row: each requirement met, not met, and not known. What is not known never passes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.attestation import PAYLOAD_TYPE
from bundlectl.model.canonical import digest
from bundlectl.model.keyring import EvaluationRequirement, Freeze, Gate, Keyring, Soak
from bundlectl.model.verdict import Verdict
from bundlectl.trust.envelope import envelope_bytes, payload_of, seal
from bundlectl.trust.gate import Check, Origin, RollbackTarget, Situation, judge, judge_rollback, verdict_of
from bundlectl.trust.policy import default_gates
from tests.support.trust import (
    APP,
    BUNDLE,
    NOW,
    OTHER,
    approval,
    asks,
    evaluation,
    founding_keyring,
    opened,
    opened_keyring,
    provenance,
    score,
    signers,
)

KEYRING = opened_keyring()
HOUR = timedelta(hours=1)
PASS: Verdict = "pass"
FAIL: Verdict = "fail"
UNKNOWN: Verdict = "inconclusive"
GOOD = opened(KEYRING, [provenance("builder-1"), evaluation("evaluator-1"), approval("approver-1")])


def situation(gate: Gate | None = None, **facts: Any) -> Situation:
    """A promotion to prod in which everything is known and well."""
    known: dict[str, Any] = {
        "bundle": BUNDLE,
        "app": APP,
        "environment": "prod",
        "gate": gate or Gate(),
        "attested": GOOD,
        "keyring": KEYRING,
        "now": NOW,
        "bytes_present": True,
        "snapshots": {},
        "lint": [],
        "live": {"staging": (BUNDLE, NOW - 5 * HOUR)},
        "rollback_target": RollbackTarget(OTHER, True),
        "confirmed": "prod",
        "in_history": True,
        "origin": Origin(gate or Gate(), GOOD),
        **facts,
    }
    return Situation(**known)


def blocking(what: str, reason: str = "it leaks") -> Any:
    form = founding_keyring().form()
    form["blocked"] = [{"digest": what, "reason": reason}]
    return opened_keyring(Keyring.model_validate(form))


def check(checks: list[Check], name: str) -> Check:
    (found,) = [one for one in checks if one.name == name]
    return found


FULL = Gate(
    provenance=1,
    evaluations=[EvaluationRequirement(suite="support", max_age="7d", floors={"hit": 0.8})],
    approvals=1,
    soak=Soak(environment="staging", at_least="4h"),
    freezes=[Freeze(start=NOW + HOUR, end=NOW + 2 * HOUR, reason="sale")],
    forbid_lint=["floating"],
    confirm=True,
)
ORDER = [
    "bytes",
    "blocked",
    "keyring",
    "provenance",
    "evaluation:support",
    "approvals",
    "age:support",
    "floor:support/hit",
    "soak",
    "freeze",
    "lint:floating",
    "rollback-target",
    "confirm",
]


def test_all_is_well_in_a_stable_order() -> None:
    checks = judge(situation(FULL))
    assert [one.name for one in checks] == ORDER
    assert {one.verdict for one in checks} == {"pass"}, [one for one in checks if one.verdict != "pass"]
    assert verdict_of(checks) == "pass"
    assert all(one.why and not one.fix for one in checks)


def test_knowing_nothing_passes_nothing() -> None:
    checks = judge(
        Situation(bundle=BUNDLE, app=APP, environment="prod", gate=FULL, attested=[], keyring=KEYRING, now=NOW)
    )
    assert [one.name for one in checks] == ORDER
    passed = [one.name for one in checks if one.verdict == "pass"]
    assert passed == ["keyring", "freeze"]


@pytest.mark.parametrize(
    ("facts", "name", "verdict", "says"),
    [
        ({"bytes_present": False}, "bytes", FAIL, "missing or damaged"),
        ({"bytes_present": None}, "bytes", UNKNOWN, "not checked"),
        ({"keyring": blocking(BUNDLE)}, "blocked", FAIL, "it leaks"),
        ({"keyring": blocking(OTHER), "snapshots": {"docs": OTHER}}, "blocked", FAIL, "the index docs"),
        ({"snapshots": None}, "blocked", UNKNOWN, "snapshots"),
        ({"keyring": opened_keyring(founding_keyring(expires=NOW))}, "keyring", FAIL, "expired"),
        ({"keyring": opened_keyring(founding_keyring(expires=NOW + HOUR))}, "keyring", PASS, "good until"),
        ({"live": {"staging": (OTHER, NOW - 5 * HOUR)}}, "soak", FAIL, "not live in support:staging now"),
        ({"live": {"dev": (BUNDLE, NOW - 5 * HOUR)}}, "soak", FAIL, "nothing is"),
        ({"live": {"staging": (BUNDLE, NOW - 3 * HOUR)}}, "soak", FAIL, "Live in support:staging for 3 h"),
        ({"live": {"staging": (BUNDLE, NOW - 4 * HOUR)}}, "soak", PASS, ""),
        ({"live": {"staging": (BUNDLE, NOW + HOUR)}}, "soak", UNKNOWN, "clock"),
        ({"live": None}, "soak", UNKNOWN, "not known"),
        ({"now": NOW + HOUR}, "freeze", FAIL, "sale"),
        ({"now": NOW + 2 * HOUR}, "freeze", PASS, ""),
        ({"lint": [("floating", "routes: latest moves")]}, "lint:floating", FAIL, "latest moves"),
        ({"lint": [("long-prompt", "x")]}, "lint:floating", PASS, ""),
        ({"lint": None}, "lint:floating", UNKNOWN, "not linted"),
        ({"rollback_target": None}, "rollback-target", UNKNOWN, "not known"),
        ({"rollback_target": RollbackTarget(None)}, "rollback-target", PASS, "nothing yet to go back to"),
        ({"rollback_target": RollbackTarget(OTHER, None)}, "rollback-target", UNKNOWN, "not checked"),
        ({"rollback_target": RollbackTarget(OTHER, False)}, "rollback-target", FAIL, "bytes are gone"),
        ({"keyring": blocking(OTHER)}, "rollback-target", FAIL, "blocked"),
        ({"confirmed": None}, "confirm", UNKNOWN, "named once more"),
        ({"confirmed": "staging"}, "confirm", FAIL, "'staging' was confirmed"),
    ],
)
def test_each_fact(facts: dict[str, Any], name: str, verdict: Verdict, says: str) -> None:
    found = check(judge(situation(FULL, **facts)), name)
    assert found.verdict == verdict, found
    assert says in found.why
    assert (
        found.verdict == "pass" or name in ("bytes", "blocked", "soak", "lint:floating", "rollback-target") or found.fix
    )


@pytest.mark.parametrize(
    ("requirement", "runs", "verdict", "says"),
    [
        ({"max_age": "24h"}, [("evaluator-1", 24 * HOUR)], PASS, "24 h ago"),
        ({"max_age": "24h"}, [("evaluator-1", 24 * HOUR + timedelta(seconds=1))], FAIL, "allows 24h"),
        ({}, [("evaluator-1", 9000 * HOUR)], PASS, "no limit"),
        ({"max_age": "24h"}, [], UNKNOWN, "no evaluation"),
        ({"max_age": "24h"}, [("evaluator-1", -HOUR)], UNKNOWN, "future"),
        ({}, [("evaluator-1", -HOUR)], UNKNOWN, "future"),
        ({}, [("evaluator-1", HOUR), ("evaluator-2", -HOUR)], UNKNOWN, "evaluator-2"),
        ({}, [("evaluator-1", timedelta(minutes=-4))], PASS, "0 s ago"),
        ({"max_age": "24h", "threshold": 2}, [("evaluator-1", HOUR), ("evaluator-2", 30 * HOUR)], FAIL, "1 of 2"),
        ({"max_age": "24h"}, [("evaluator-1", HOUR), ("evaluator-2", 30 * HOUR)], PASS, ""),
        ({"max_age": "24h", "suite_digest": OTHER}, [("evaluator-1", HOUR)], UNKNOWN, "no evaluation"),
    ],
)
def test_age(requirement: dict[str, Any], runs: list[tuple[str, timedelta]], verdict: Verdict, says: str) -> None:
    attested = opened(KEYRING, [evaluation(who, age=age) for who, age in runs])
    found = check(judge(situation(asks(**requirement), attested=attested)), "age:support")
    assert found.verdict == verdict, found
    assert says in found.why
    if verdict != "pass":
        assert found.fix


@pytest.mark.parametrize(
    ("scores", "verdict", "says"),
    [
        ([score(mean=0.8)], PASS, "the floor is 0.8"),
        ([score(mean=0.799)], FAIL, "0.799"),
        ([], UNKNOWN, "no score 'hit'"),
        ([score("mrr")], UNKNOWN, "no score 'hit'"),
        ([score(tag="hard")], UNKNOWN, "no score 'hit'"),
        ([score(), score()], UNKNOWN, "more than one"),
        ([score(mean=None, measured=0, unmeasured=100)], UNKNOWN, "measured on no case"),
        ([score(mean=1.0, measured=0)], UNKNOWN, "measured on no case"),
        ([score(mean=17.0)], UNKNOWN, "no mean"),
        ([score(mean=-0.1)], UNKNOWN, "no mean"),
        # Rows unmeasured: wrong for a pass, right for a fail.
        ([score(mean=1.0, measured=79, unmeasured=21)], UNKNOWN, "may be as low as 0.79"),
        ([score(mean=1.0, measured=79, errors=21)], UNKNOWN, "may be as low as 0.79"),
        ([score(mean=0.9, measured=90, unmeasured=5, errors=5)], PASS, "10 more have no score"),
        ([score(mean=0.5, measured=90, unmeasured=10)], FAIL, ""),
    ],
)
def test_floor(scores: list[Any], verdict: Verdict, says: str) -> None:
    gate = asks(floors={"hit": 0.8})
    item = opened(KEYRING, [evaluation("evaluator-1", scores=scores)])
    found = check(judge(situation(gate, attested=item)), "floor:support/hit")
    assert found.verdict == verdict, found
    assert says in found.why
    assert bool(found.fix) == (verdict != "pass")


def test_a_mean_beyond_all_numbers_is_no_mean() -> None:
    # JSON has no infinity, but 1e999 is JSON and becomes one when read.
    payload = payload_of(evaluation("evaluator-1", scores=[score(mean=0.5)])).replace(b'"mean":0.5', b'"mean":1e999')
    attested = opened(KEYRING, [seal(payload, PAYLOAD_TYPE, signers("evaluator-1"))])
    found = check(judge(situation(asks(floors={"hit": 0.8}), attested=attested)), "floor:support/hit")
    assert (found.verdict, found.why) == ("inconclusive", "hit is inf, which is no mean of scores in [0, 1].")


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 50), st.floats(0, 1))
def test_a_floor_passes_only_if_it_holds_whatever_is_missing(
    right: int, wrong: int, missing: int, floor: float
) -> None:
    mean = right / (right + wrong)
    scores = [score(mean=mean, measured=right + wrong, unmeasured=missing)]
    attested = opened(KEYRING, [evaluation("evaluator-1", scores=scores)])
    verdict = check(judge(situation(asks(floors={"hit": floor}), attested=attested)), "floor:support/hit").verdict
    total = right + wrong + missing
    worst, best = right / total, (right + missing) / total
    if verdict == "pass":
        assert worst >= floor - 1e-9
    if verdict == "fail":
        assert best < floor + 1e-9
    if not missing:
        assert (verdict == "pass") == (mean >= floor)
        assert verdict != "inconclusive"


def test_every_evaluators_newest_must_hold_the_floor() -> None:
    gate = asks(floors={"hit": 0.8})
    low = evaluation("evaluator-2", age=5 * HOUR, scores=[score(mean=0.7)])
    attested = opened(KEYRING, [evaluation("evaluator-1"), low])
    assert check(judge(situation(gate, attested=attested)), "floor:support/hit").verdict == "fail"


def test_blocked_evidence_is_left_out_and_said() -> None:
    envelope = evaluation("evaluator-1")
    keyring = blocking(digest(envelope_bytes(envelope)), "the dataset leaked")
    checks = judge(situation(asks(floors={"hit": 0.1}), keyring=keyring, attested=opened(keyring, [envelope])))
    assert "the dataset leaked" in check(checks, "blocked").why
    for name in ("evaluation:support", "age:support", "floor:support/hit"):
        assert check(checks, name).verdict == "inconclusive"


def test_fixes_are_commands_about_this_bundle() -> None:
    checks = judge(situation(FULL, attested=opened(KEYRING, [provenance("builder-1")]), live={}, confirmed=None))
    reference = f"{APP}@{BUNDLE[:19]}"
    assert check(checks, "evaluation:support").fix.startswith(f"bundlectl eval {reference} --suite evals/support.yaml")
    assert check(checks, "approvals").fix.startswith(f"bundlectl approve {reference} --for prod")
    assert check(checks, "soak").fix == f"bundlectl promote {reference} --to staging --reason TEXT"
    assert check(checks, "confirm").fix == "--confirm prod"


def test_the_gates_of_a_new_app() -> None:
    gates = default_gates([EvaluationRequirement(suite="support")])
    bare: dict[str, Any] = {"attested": [], "confirmed": None, "live": {}, "rollback_target": RollbackTarget(None)}
    assert verdict_of(judge(situation(gates["dev"], environment="dev", **bare))) == "pass"
    staging = judge(situation(gates["staging"], environment="staging", **bare))
    assert check(staging, "evaluation:support").verdict == "inconclusive"
    assert verdict_of(judge(situation(gates["staging"], environment="staging", **{**bare, "attested": GOOD}))) == "pass"
    assert verdict_of(judge(situation(gates["prod"]))) == "pass"
    missing: dict[str, Any]
    for missing in ({"attested": []}, {"live": {}}, {"confirmed": None}):
        assert verdict_of(judge(situation(gates["prod"], **missing))) != "pass"


@pytest.mark.parametrize(
    "facts",
    [
        {"attested": []},
        {"live": {}},
        {"lint": [("floating", "x")]},
        {"confirmed": None},
        {"now": NOW + HOUR},
        {"rollback_target": None},
        {"keyring": opened_keyring(founding_keyring(expires=NOW))},
        {"attested": opened(KEYRING, [evaluation("evaluator-1", verdict="fail")])},
    ],
)
def test_nothing_of_todays_gate_stops_a_rollback(facts: dict[str, Any]) -> None:
    checks = judge_rollback(situation(FULL, **facts))
    assert verdict_of(checks) == "pass", checks
    assert [one.name for one in checks if not one.warning] == ["bytes", "blocked", "history", "signatures"]


def test_a_rollback_still_says_what_todays_gate_would_say() -> None:
    checks = judge_rollback(situation(FULL, attested=[], now=NOW + HOUR))
    assert {one.name for one in checks if one.warning and one.verdict != "pass"} >= {"evaluation:support", "freeze"}


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        ({"bytes_present": False}, "bytes", FAIL),
        ({"keyring": blocking(BUNDLE)}, "blocked", FAIL),
        ({"in_history": False}, "history", FAIL),
        ({"in_history": None}, "history", UNKNOWN),
        ({"origin": None}, "signatures", UNKNOWN),
        ({"origin": Origin(FULL, [])}, "signatures", FAIL),
    ],
)
def test_what_stops_a_rollback(facts: dict[str, Any], name: str, verdict: Verdict) -> None:
    checks = judge_rollback(situation(FULL, **facts))
    assert check(checks, name).verdict == verdict
    assert verdict_of(checks) == verdict


def test_no_check_at_all_is_inconclusive() -> None:
    assert verdict_of([]) == "inconclusive"
    assert verdict_of([Check("x", "pass", "y", warning=True)]) == "inconclusive"
