"""The rule: averages, groups, margins, Holm, and that what is missing helps nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.evaluation.comparison import changes, compare
from bundlectl.evaluation.pace import Budget, Pace
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import Side, run_sides
from bundlectl.evaluation.statistics import interval
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.attestation import ComparedScore
from bundlectl.model.contract import Cost, Request
from tests.evaluation.builders import BINDINGS, NOW, Outcome, ScriptedRouter, answer, receipt, result, write_suite

MARGIN = 0.1


def loaded(folder: Path, n: int = 200, groups: int | None = None, **scorer: Any) -> LoadedSuite:
    cases = [
        {"id": f"c{i}", "expected": {"exact": "yes"}, **({"group": f"g{i % groups}"} if groups else {})}
        for i in range(n)
    ]
    return read_suite(write_suite(folder, cases, [{"name": "exact", "margin": MARGIN, **scorer}]))


def rows(values: list[float | None]) -> list[CaseResult]:
    return [result(f"c{i}", exact=value) for i, value in enumerate(values)]


def one(suite: LoadedSuite, candidate: list[CaseResult], baseline: list[CaseResult], **how: Any) -> ComparedScore:
    (score,) = compare(suite, candidate, baseline, **how).scores
    return score


def lost(n: int, of: int = 200) -> list[float | None]:
    return [*([0.0] * n), *([1.0] * (of - n))]


@pytest.mark.parametrize(
    ("candidate", "baseline", "claim", "verdict"),
    [
        (lost(20), lost(20), "no_worse", "pass"),
        (lost(20), lost(60), "better", "pass"),
        (lost(60), lost(20), "worse", "fail"),
        ([1.0] * 20 + lost(32, 180), lost(20), "inconclusive", "inconclusive"),
    ],
)
def test_the_four_claims(tmp_path: Path, candidate: Any, baseline: Any, claim: str, verdict: str) -> None:
    found = compare(loaded(tmp_path), rows(candidate), rows(baseline))
    (score,) = found.scores
    assert score.claim == claim and found.verdict == verdict
    assert (score.needed is not None) == (claim == "inconclusive")
    differences = [c - b for c, b in zip(candidate, baseline, strict=True)]
    assert (score.low, score.high) == (interval(differences).low, interval(differences).high)
    assert score.difference == pytest.approx(sum(differences) / 200)


def test_surely_a_little_worse_is_no_worse_and_says_so(tmp_path: Path) -> None:
    score = one(loaded(tmp_path, 2000), rows(lost(60, 2000)), rows(lost(0, 2000)))
    assert score.claim == "no_worse" and score.below and "surely a little worse" in score.why


@pytest.mark.parametrize("groups", [1, 5, 19])
def test_fewer_than_twenty_groups_decide_nothing(tmp_path: Path, groups: int) -> None:
    score = one(loaded(tmp_path, 200, groups), rows(lost(200)), rows(lost(0)))
    assert score.claim == "inconclusive" and score.groups == groups and score.needed == 94
    assert "one outcome in ten" in score.why


def test_cases_of_a_group_count_once(tmp_path: Path) -> None:
    suite = loaded(tmp_path, 200, 50)
    score = one(suite, rows([0.0 if i % 50 == 0 else 1.0 for i in range(200)]), rows(lost(0)))
    assert score.groups == 50 and score.cases == 200
    assert score.low == interval([-1.0] + [0.0] * 49).low


def test_repeats_are_averaged_before_anything_else(tmp_path: Path) -> None:
    suite = loaded(tmp_path, 40)
    twice = [r.model_copy(update={"repeat": n or None}) for n in (0, 2) for r in rows(lost(20 if n else 0, 40))]
    score = one(suite, twice, rows(lost(0, 40)))
    assert score.low == interval([-0.5] * 20 + [0.0] * 20).low


def test_missing_rows_count_against_either_claim(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    gone: list[float | None] = [None] * 60 + [1.0] * 140
    assert one(suite, rows(gone), rows(lost(0))).claim == "inconclusive"  # might be worse: not "no worse"
    assert one(suite, rows(lost(60)), rows(gone)).claim == "inconclusive"  # might be equal: not "worse"
    assert one(suite, rows(gone[100:]), rows(lost(0))).missing >= 100  # never asked is missing as well
    assert compare(suite, [], []).verdict == "inconclusive"
    assert compare(suite, rows([None] * 200), rows([None] * 200)).verdict == "inconclusive"


def test_a_later_look_asks_for_more(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    first, tenth = (one(suite, rows(lost(30)), rows(lost(20)), look=look) for look in (1, 10))
    assert first.claim == "no_worse" and tenth.claim == "inconclusive"
    assert tenth.low < first.low


def test_every_gated_scorer_and_tag_has_to_hold_and_others_only_show(tmp_path: Path) -> None:
    cases = [{"id": f"c{i}", "expected": {"exact": "y", "contains": ["y"]}, "tags": ["t"]} for i in range(200)]
    scorers: list[dict[str, Any]] = [{"name": "exact", "tag_margins": {"t": MARGIN}}, {"name": "contains"}]
    suite = read_suite(write_suite(tmp_path, cases, scorers))
    good = [result(f"c{i}", exact=1, contains=1) for i in range(200)]
    bad_contains = [result(f"c{i}", exact=1, contains=float(i >= 100)) for i in range(200)]
    bad_exact = [result(f"c{i}", exact=float(i >= 100), contains=1) for i in range(200)]
    found = compare(suite, bad_contains, good)
    assert found.verdict == "pass" and [s.claim for s in found.scores if s.scorer == "contains"] == ["worse"]
    assert compare(suite, bad_exact, good).verdict == "fail"


def test_claims_across_scorers_stand_only_after_holm(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(10)]
    cases = [{"id": f"c{i}", "expected": {"exact": "y"}} for i in range(200)]
    scorers = [{"name": "exact", "as": name, "margin": 0.02} for name in names]
    suite = read_suite(write_suite(tmp_path, cases, scorers))

    def scored(values: dict[str, list[float | None]]) -> list[CaseResult]:
        return [result(f"c{i}", **{name: values.get(name, lost(0))[i] for name in names}) for i in range(200)]

    alone = compare(suite, scored({"s0": lost(8)}), scored({}))
    assert alone.scores[0].high < 0 and alone.scores[0].claim == "inconclusive"
    assert "10 comparisons" in alone.scores[0].why and alone.verdict == "inconclusive"
    surely = compare(suite, scored({"s0": lost(40)}), scored({}))
    assert surely.scores[0].claim == "worse" and surely.verdict == "fail"


def test_changed_cases_are_named_the_greatest_losses_first(tmp_path: Path) -> None:
    suite = loaded(tmp_path, 3)
    found = changes(suite, rows([0.5, 0.0, 1.0]), rows([1.0, 1.0, 0.0]))
    assert [(c.case, c.candidate, c.baseline) for c in found] == [("c1", 0.0, 1.0), ("c0", 0.5, 1.0), ("c2", 1.0, 0.0)]


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=30, max_size=30)


@given(candidate=SCORES, baseline=SCORES)
@settings(max_examples=40, deadline=None)
def test_what_is_missing_is_the_worst_for_low_and_the_best_for_high(
    tmp_path_factory: pytest.TempPathFactory, candidate: Any, baseline: Any
) -> None:
    def filled(values: Any, missing: float) -> list[CaseResult]:
        return rows([missing if value is None else value for value in values])

    suite = loaded(tmp_path_factory.mktemp("s"), 30)
    score = one(suite, rows(candidate), rows(baseline))
    assert score.low == one(suite, filled(candidate, 0.0), filled(baseline, 1.0)).low
    assert score.high == one(suite, filled(candidate, 1.0), filled(baseline, 0.0)).high
    assert score.low <= score.high


# ---------------------------------------------------------------- two routers in one loop


async def test_both_sides_are_asked_in_turn_and_repeats_never_collapse(tmp_path: Path) -> None:
    order: list[str] = []

    def router(name: str) -> ScriptedRouter:
        def reply(request: Request) -> Outcome:
            order.append(name)
            return Outcome(answer("yes"), receipt())

        return ScriptedRouter(reply)

    sides = [Side(router(name), identity="eve", profile="p") for name in "ab"]
    ours, theirs = await run_sides(loaded(tmp_path, 10), sides, repeats=3, concurrency=1, pause=0)
    assert len(ours) == len(theirs) == 30
    assert [row.repeat for row in ours[:3]] == [None, 2, 3]
    assert all({order[i], order[i + 1]} == {"a", "b"} for i in range(0, 60, 2))
    assert {order[i] for i in range(0, 60, 2)} == {"a", "b"}  # each goes first as often


async def test_the_spend_cap_stops_keeps_and_is_inconclusive(tmp_path: Path) -> None:
    suite = loaded(tmp_path, 100)
    dear = receipt().model_copy(update={"cost": Cost(usd=0.25, price_book="p")})
    budget = Budget(5.0)
    side = Side(ScriptedRouter(lambda request: Outcome(answer("yes"), dear)), identity="eve", profile="p")
    (found,) = await run_sides(suite, [side], concurrency=1, budget=budget, pause=0)
    assert len(found) == 20 and budget.spent == 5.0 and not budget.open
    judged = summarise(suite, found, bindings=BINDINGS, actor="eve", started=NOW, finished=NOW)
    assert judged.verdict == "inconclusive" and not judged.complete and "20 of 100 cases were run" in judged.why


def test_a_must_pass_case_that_fails_in_one_repeat_fails(tmp_path: Path) -> None:
    cases = [{"id": f"c{i}", "expected": {"exact": "y"}} for i in range(3)]
    suite = read_suite(write_suite(tmp_path, cases, [{"name": "exact", "floor": 0.5}], must_pass=["c1"]))
    first = rows([1.0, 1.0, 1.0])
    again = [row.model_copy(update={"repeat": 2}) for row in rows([1.0, 0.0, 1.0])]
    judged = summarise(suite, [*first, *again], bindings=BINDINGS, actor="e", started=NOW, finished=NOW, repeats=2)
    assert judged.verdict == "fail" and judged.must_pass_failed == ["c1"] and judged.flaky == ["c1"]
    pooled = summarise(suite, first, bindings=BINDINGS, actor="e", started=NOW, finished=NOW, earlier=rows([1, 0, 1]))
    assert pooled.verdict == "fail" and pooled.scores[0].measured == 6


# ---------------------------------------------------------------- pace


async def test_throttles_slow_a_run_down_and_it_grows_again(tmp_path: Path) -> None:
    suite = loaded(tmp_path, 120)
    under: list[int] = []

    def reply(request: Request) -> Outcome:
        under.append(router.under_way)
        if router.under_way > 3:
            return Outcome(answer("fallback", degraded="throttled"), receipt(attempts=("throttled",)))
        return Outcome(answer("yes"), receipt())

    router = ScriptedRouter(reply, delay=0.002)
    side = Side(router, identity="eve", profile="p")
    (found,) = await run_sides(suite, [side], concurrency=32, pause=0.01)
    assert len(found) == 120
    assert router.most == 32 and sum(one > 3 for one in under[40:]) < 60
    assert sum(row.error is not None for row in found) < 60


def test_pace_halves_once_for_rows_that_were_throttled_together() -> None:
    now = [0.0]
    pace = Pace(16, 1.0, lambda: now[0])
    for _ in range(10):
        pace.throttled()
    assert pace.now == 8
    now[0] = 1.0
    pace.throttled()
    assert pace.now == 4
    for _ in range(1000):
        pace.answered()
    assert pace.now == 16
