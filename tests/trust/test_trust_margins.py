"""Margins at the gate: judged from the signed comparison, against what is live now, and never by what is missing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bundlectl.model.attestation import CalibrationFigures, ComparedScore, Comparison, ScorerIdentity
from bundlectl.model.keyring import EvaluationRequirement
from bundlectl.model.verdict import Verdict
from bundlectl.trust.gate import Check, Replaced, judge
from bundlectl.trust.overrides import waivable
from tests.support.trust import BUNDLE, DATASET, OTHER, asks, evaluation, opened
from tests.trust.test_trust_gate import FAIL, GOOD, HOUR, KEYRING, PASS, UNKNOWN, check, situation

NAME = "no-worse:support/hit"
LIVE = Replaced(OTHER)
GATE = asks(no_worse={"hit": 0.05})


def compared(*, low: float = -0.03, high: float = 0.02, groups: int = 400, **more: Any) -> Comparison:
    row = ComparedScore(
        scorer="hit", groups=groups, cases=groups, missing=0, low=low, high=high, claim="inconclusive", needed=331
    )
    fields: dict[str, Any] = {"baseline": OTHER, "bindings": DATASET, "stored": False, "alpha": 0.025, "scores": [row]}
    return Comparison(**{**fields, **more})


def judged(comparison: Comparison | None, *, live: Replaced | None = LIVE, **more: Any) -> Check:
    result = opened(KEYRING, [evaluation("evaluator-1", comparison=comparison, **more)])
    return check(judge(situation(GATE, attested=[*GOOD[:1], *result], replaces=live)), NAME)


@pytest.mark.parametrize(
    ("comparison", "verdict", "says"),
    [
        (compared(), PASS, "the margin is 0.05"),
        (compared(low=-0.04, high=-0.01), PASS, "the margin"),
        (compared(low=-0.05), UNKNOWN, "about 331 groups would settle it"),
        (compared(low=-0.2, high=0.1), UNKNOWN, "reaches below the margin"),
        (compared(low=-0.2, high=-0.1), FAIL, "worse, beyond the margin"),
        (compared(low=-0.01, groups=19), UNKNOWN, "fewer than 20"),
        (compared(low=0.1, high=-0.1), UNKNOWN, "not whole"),
        (compared(baseline=DATASET), UNKNOWN, "live now"),
        (compared(scores=[]), UNKNOWN, "no score 'hit'"),
        (None, UNKNOWN, "by itself"),
    ],
)
def test_the_signed_comparison_decides(comparison: Comparison | None, verdict: Verdict, says: str) -> None:
    found = judged(comparison)
    assert found.verdict == verdict and says in found.why
    if verdict == "inconclusive":
        assert "--baseline support:prod" in found.fix


def test_what_is_live_must_be_known_and_may_be_nothing_or_the_same() -> None:
    assert judged(compared(), live=None).verdict == "inconclusive"
    assert judged(None, live=Replaced(None)).verdict == "pass"
    assert judged(None, live=Replaced(BUNDLE)).verdict == "pass"


def test_an_unfinished_run_passes_nothing() -> None:
    assert judged(compared(), complete=False).verdict == "inconclusive"


def test_no_evaluation_at_all_is_inconclusive() -> None:
    found = check(judge(situation(GATE, attested=[], replaces=Replaced(OTHER))), NAME)
    assert found.verdict == "inconclusive" and found.fix


def test_every_evaluators_newest_result_counts() -> None:
    both = [
        evaluation("evaluator-1", comparison=compared()),
        evaluation("evaluator-2", comparison=compared(low=-0.3, high=-0.2)),
    ]
    assert (
        check(judge(situation(GATE, attested=opened(KEYRING, both), replaces=Replaced(OTHER))), NAME).verdict == "fail"
    )


def test_a_result_that_passes_over_a_comparison_that_does_not_contradicts_itself() -> None:
    contradicting = evaluation("evaluator-1", comparison=compared(verdict="fail", why="hit: worse"))
    checks = judge(situation(GATE, attested=opened(KEYRING, [contradicting]), replaces=Replaced(OTHER)))
    found = check(checks, "evaluation:support")
    assert found.verdict == "fail" and "beside its baseline: hit: worse" in found.why


def test_margins_can_be_overridden_like_floors_and_old_policies_keep_their_digest() -> None:
    assert NAME in waivable(GATE)
    assert "no_worse" not in EvaluationRequirement(suite="support").form()


ANCHOR = DATASET
ANCHORED = asks(no_worse={"hit": 0.05}, anchor=ANCHOR, max_age="7d")


def anchored(*comparisons: tuple[timedelta, Comparison], live: Replaced | None = LIVE) -> tuple[Verdict, Verdict]:
    """Give the verdicts against what is live and against the anchor, of one evaluator's results by age."""
    envelopes = [evaluation("evaluator-1", comparison=found, age=age) for age, found in comparisons]
    checks = judge(situation(ANCHORED, attested=[*GOOD[:1], *opened(KEYRING, envelopes)], replaces=live))
    return check(checks, NAME).verdict, check(checks, "anchor:support/hit").verdict


BESIDE_LIVE, BESIDE_ANCHOR = compared(), compared(baseline=ANCHOR)
WORSE = {"low": -0.3, "high": -0.2}


def test_an_anchor_is_one_more_that_it_is_no_worse_than() -> None:
    assert anchored((2 * HOUR, BESIDE_LIVE), (HOUR, BESIDE_ANCHOR)) == (PASS, PASS)
    assert anchored((HOUR, BESIDE_LIVE), (2 * HOUR, BESIDE_ANCHOR)) == (PASS, PASS)
    assert anchored((HOUR, BESIDE_LIVE)) == (PASS, UNKNOWN)
    assert anchored((HOUR, BESIDE_ANCHOR)) == (UNKNOWN, PASS)
    assert anchored((2 * HOUR, BESIDE_LIVE), (HOUR, compared(baseline=ANCHOR, **WORSE))) == (PASS, FAIL)
    assert anchored((2 * HOUR, compared(**WORSE)), (HOUR, BESIDE_ANCHOR)) == (FAIL, PASS)


def test_beside_each_baseline_the_newest_counts() -> None:
    worse = compared(baseline=ANCHOR, **WORSE)
    assert anchored((3 * HOUR, BESIDE_LIVE), (2 * HOUR, BESIDE_ANCHOR), (HOUR, worse)) == (PASS, FAIL)
    assert anchored((3 * HOUR, BESIDE_LIVE), (2 * HOUR, worse), (HOUR, BESIDE_ANCHOR)) == (PASS, PASS)
    assert anchored((3 * HOUR, compared(**WORSE)), (2 * HOUR, BESIDE_ANCHOR), (HOUR, BESIDE_LIVE)) == (PASS, PASS)


def test_a_comparison_that_is_too_old_does_not_count() -> None:
    old = timedelta(days=8)
    assert anchored((old, BESIDE_ANCHOR), (HOUR, BESIDE_LIVE)) == (PASS, UNKNOWN)
    assert anchored((old, BESIDE_LIVE), (HOUR, BESIDE_ANCHOR)) == (UNKNOWN, PASS)


@pytest.mark.parametrize("alone", ["live", "anchor"])
def test_each_comparison_takes_as_many_evaluators_as_the_policy_asks_for(alone: str) -> None:
    """Else one stolen evaluator's key decides by itself what two were to decide, while the other looks elsewhere."""
    gate = asks(no_worse={"hit": 0.05}, anchor=ANCHOR, threshold=2)
    baselines = {"live": OTHER, "anchor": ANCHOR}
    both = next(name for name in baselines if name != alone)
    envelopes = [
        *(evaluation(who, comparison=compared(baseline=baselines[both])) for who in ("evaluator-1", "evaluator-2")),
        evaluation("evaluator-1", comparison=compared(baseline=baselines[alone]), age=2 * HOUR),
    ]
    names = {"live": NAME, "anchor": "anchor:support/hit"}

    def told() -> dict[str, Check]:
        checks = judge(situation(gate, attested=[*GOOD[:1], *opened(KEYRING, envelopes)], replaces=LIVE))
        assert check(checks, "evaluation:support").verdict == "pass"
        return {name: check(checks, found) for name, found in names.items()}

    found = told()
    assert (found[both].verdict, found[alone].verdict) == (PASS, UNKNOWN)
    assert "1 of 2 needed evaluators" in found[alone].why and "--baseline" in found[alone].fix
    envelopes.append(evaluation("evaluator-2", comparison=compared(baseline=baselines[alone]), age=2 * HOUR))
    assert {name: one.verdict for name, one in told().items()} == {"live": PASS, "anchor": PASS}


def test_where_the_anchor_is_live_one_comparison_serves_and_the_anchor_itself_passes() -> None:
    assert anchored((HOUR, BESIDE_ANCHOR), live=Replaced(ANCHOR)) == (PASS, PASS)
    gate = asks(no_worse={"hit": 0.05}, anchor=BUNDLE)
    checks = judge(situation(gate, attested=opened(KEYRING, [evaluation("evaluator-1")]), replaces=Replaced(BUNDLE)))
    assert check(checks, "anchor:support/hit").verdict == "pass"


def test_an_anchor_says_how_to_be_compared_with_it_and_can_be_overridden() -> None:
    checks = judge(situation(ANCHORED, attested=opened(KEYRING, [evaluation("evaluator-1")]), replaces=LIVE))
    assert f"--baseline support@{ANCHOR}" in check(checks, "anchor:support/hit").fix
    assert "anchor:support/hit" in waivable(ANCHORED)
    assert "anchor:support/hit" not in waivable(GATE)
    assert "anchor" not in EvaluationRequirement(suite="support", no_worse={"hit": 0.1}).form()
    with pytest.raises(ValidationError, match="there are none"):
        EvaluationRequirement(suite="support", anchor=ANCHOR)


@given(
    low=st.floats(-1, 1), width=st.floats(0, 1), groups=st.integers(0, 1000), down=st.floats(0, 1), fewer=st.integers(0)
)
@settings(max_examples=100, deadline=None)
def test_a_lower_interval_or_fewer_groups_never_bring_a_pass(
    low: float, width: float, groups: int, down: float, fewer: int
) -> None:
    before = judged(compared(low=low, high=low + width, groups=groups)).verdict
    after = judged(compared(low=low - down, high=low + width, groups=max(0, groups - fewer))).verdict
    assert after != "pass" or before == "pass"


def _by_a_judge(*, labels: int | None = 100, unfit: str | None = None) -> list[ScorerIdentity]:
    found = CalibrationFigures(labels=labels, good=1, bad=1, errors=0) if labels is not None else None
    return [ScorerIdentity(scorer="hit", identity={"judge": {"model": "m"}}, calibration=found, unfit=unfit)]


@pytest.mark.parametrize(
    ("scorers", "verdict"),
    [
        (_by_a_judge(), PASS),
        (_by_a_judge(labels=99), UNKNOWN),
        (_by_a_judge(labels=None), UNKNOWN),
        (_by_a_judge(unfit="its judge is another one"), UNKNOWN),
        ([ScorerIdentity(scorer="hit", identity={"libraries": {"ragas": "0.4.3"}})], PASS),
        ([one.model_copy(update={"scorer": "other"}) for one in _by_a_judge(labels=None)], PASS),
    ],
)
def test_a_policy_decides_nothing_by_a_judge_that_may_not(scorers: list[ScorerIdentity], verdict: Verdict) -> None:
    assert judged(compared(), scorers=scorers).verdict == verdict
    result = opened(KEYRING, [evaluation("evaluator-1", scorers=scorers)])
    floor = judge(situation(asks(floors={"hit": 0.5}), attested=[*GOOD[:1], *result], replaces=LIVE))
    assert check(floor, "floor:support/hit").verdict == verdict


@pytest.mark.parametrize(
    ("switched_off", "verdict"), [(None, UNKNOWN), ([], UNKNOWN), (["spare"], UNKNOWN), (["own", "spare"], PASS)]
)
def test_a_model_that_an_evaluation_left_out_may_not_answer(switched_off: list[str] | None, verdict: Verdict) -> None:
    left_out = opened(KEYRING, [evaluation("evaluator-1", skipped=["own"])])
    checks = judge(situation(asks(), attested=[*GOOD[:1], *left_out], switched_off=switched_off))
    assert check(checks, "models:support").verdict == verdict
    assert "models:support" not in {one.name for one in judge(situation(asks(), switched_off=switched_off))}


def test_an_easier_exam_of_the_same_name_is_named_where_nothing_is_pinned() -> None:
    failed = evaluation("evaluator-1", verdict="fail", why="hit: too low", dataset_digest=OTHER, age=2 * HOUR)
    seen = [*GOOD[:1], *opened(KEYRING, [failed, evaluation("evaluator-1", age=HOUR)])]
    found = check(judge(situation(asks(), attested=seen)), "evaluation:support")
    assert found.verdict == "pass" and "1 results of another exam of that name did not pass" in found.why
    pinned = check(judge(situation(asks(dataset_digest=DATASET), attested=seen)), "evaluation:support")
    assert pinned.verdict == "pass" and "another exam" not in pinned.why
