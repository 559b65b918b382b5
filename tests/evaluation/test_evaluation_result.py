"""From scores to the verdict: a table of what must come out, and laws that always hold."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.evaluation.report import CaseResult, Report, make_report, report_bytes
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.scorers.score import Score
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.canonical import digest, parse_json
from bundlectl.model.suite import Scorer, Suite
from tests.evaluation.builders import BINDINGS, BUNDLE, NOW, D, case, result, suite

UNMEASURED = Score(outcome="unmeasured", why="nothing to measure on")


def judge(loaded: LoadedSuite, results: list[CaseResult]) -> EvaluationResult:
    return summarise(
        loaded, results, bindings=BINDINGS, actor="eve", started=NOW, finished=NOW + timedelta(seconds=9), report=D
    )


def made(n: int, scorers: list[dict[str, Any]], **more: Any) -> LoadedSuite:
    cases = tuple(case(f"c{i}").model_copy(update={"tags": ["even"] if i % 2 == 0 else []}) for i in range(n))
    document = {"apiVersion": "bundlectl/v1", "kind": "Suite", "name": "s", "task": "t", "dataset": "d.jsonl"}
    a_suite = Suite.model_validate({**document, "scorers": scorers, **more})
    return LoadedSuite(a_suite, cases, cases, D, D, Path())


HALF = [{"name": "exact", "floor": 0.5}]
TABLE: list[tuple[str, list[dict[str, Any]], dict[str, Any], list[Any], str, str]] = [
    ("all right", HALF, {}, [1, 1, 1, 1], "pass", ""),
    ("just reaches", HALF, {}, [1, 1, 0, 0], "pass", ""),
    ("thirds add up", [{"name": "contains", "floor": 0.1}], {}, [0.1, 0.1, 0.1], "pass", ""),
    ("under the floor", HALF, {}, [1, 0, 0, 0], "fail", "exact: 0.250 is under the floor 0.5"),
    ("one error", HALF, {}, [1, 1, 1, None], "error", "exact: 1 of 4 are errors; the suite allows none"),
    ("allowed errors count 0", HALF, {"max_errors": 0.5}, [1, None, None, 1], "pass", ""),
    ("allowed errors pull under", HALF, {"max_errors": 0.5}, [0.9, None, None, 1], "fail", "2 missing"),
    ("too many errors", HALF, {"max_errors": 0.5}, [1, None, None, None], "error", "3 of 4 are errors"),
    ("all rows throttled", HALF, {}, [None] * 4, "error", "4 of 4 are errors"),
    ("errors cannot save it", HALF, {}, [0, 0, 0, None], "fail", "even if the 1 errors were right"),
    ("one unmeasured", HALF, {}, [1, 1, 1, UNMEASURED], "inconclusive", "1 of 4 are unmeasured"),
    ("all unmeasured", HALF, {}, [UNMEASURED] * 4, "inconclusive", "4 of 4 are unmeasured"),
    ("allowed unmeasured count 0", HALF, {"max_unmeasured": 0.5}, [1, 1, UNMEASURED, UNMEASURED], "pass", ""),
    ("unmeasured pull under", HALF, {"max_unmeasured": 0.5}, [1, 0, UNMEASURED, UNMEASURED], "fail", "2 miss"),
    ("unmeasured cannot save it", HALF, {}, [0, 0, 0, UNMEASURED], "fail", "even if the 1 unmeasured"),
    ("a floor and no case", HALF, {}, [..., ..., ...], "inconclusive", "no case expects what it measures"),
    ("a tag's floor", [{"name": "exact", "tags": {"even": 1.0}}], {}, [0, 1, 1, 1], "fail", "exact [even]: 0.500"),
    ("a tag's floor held", [{"name": "exact", "tags": {"even": 1.0}}], {}, [1, 0, 1, 0], "pass", ""),
    ("a tag nobody has", [{"name": "exact", "tags": {"odd": 0.1}}], {}, [1, 1], "inconclusive", "exact [odd]: no"),
    ("nothing demanded", [{"name": "exact"}], {}, [1, 1], "inconclusive", "the suite demands nothing"),
    ("no floor, must pass", [{"name": "exact"}], {"must_pass": ["c0"]}, [1, 0], "pass", ""),
    ("must pass fails", HALF, {"must_pass": ["c1"]}, [1, 0.9, 1], "fail", "must pass: c1: exact is 0.9"),
    ("must pass errs", HALF, {"must_pass": ["c1"], "max_errors": 1.0}, [1, None, 1], "error", "must pass: c1"),
    ("must pass unmeasured", HALF, {"must_pass": ["c1"], "max_unmeasured": 1.0}, [1, UNMEASURED], "inconclusive", ""),
    ("must pass not scored", HALF, {"must_pass": ["c1"]}, [1, ..., 1], "inconclusive", "no deciding scorer applies"),
    ("floor 0 needs a case", [{"name": "exact", "floor": 0.0}], {}, [...], "inconclusive", "no case"),
    ("floor 0 takes 0", [{"name": "exact", "floor": 0.0}], {}, [0], "pass", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scorers", "more", "scores", "verdict", "why"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_verdict(scorers: Any, more: Any, scores: list[Any], verdict: str, why: str) -> None:
    loaded = made(len(scores), scorers, **more)
    key = scorers[0]["name"]
    results = [result(f"c{i}", **({} if s is ... else {key: s})) for i, s in enumerate(scores)]
    found = judge(loaded, results)
    assert (found.verdict, found.complete) == (verdict, True), found.why
    assert why in found.why
    assert (found.why == "") == (verdict == "pass")


def test_the_summary_counts_and_takes_the_mean_of_what_was_measured() -> None:
    loaded = made(5, [{"name": "exact", "floor": 0.1, "tags": {"even": 0.2}}], max_errors=1.0, max_unmeasured=1.0)
    found = judge(loaded, [result(f"c{i}", exact=s) for i, s in enumerate([1, 0.5, None, 0, UNMEASURED])])
    whole, even = found.scores
    assert (whole.mean, whole.measured, whole.unmeasured, whole.errors) == (0.5, 3, 1, 1)
    assert (even.tag, even.mean, even.measured, even.unmeasured, even.errors) == ("even", 1.0, 1, 1, 1)
    assert found.cases == 5 and found.report == D and found.actor == "eve"


def test_the_worst_verdict_wins() -> None:
    lines = [{"name": "exact", "floor": 0.5}, {"name": "regex", "floor": 0.5}, {"name": "contains", "floor": 0.5}]
    loaded = made(1, lines)
    assert judge(loaded, [result("c0", exact=1, regex=1, contains=1)]).verdict == "pass"
    assert judge(loaded, [result("c0", exact=1, regex=UNMEASURED, contains=1)]).verdict == "inconclusive"
    assert judge(loaded, [result("c0", exact=1, regex=UNMEASURED, contains=None)]).verdict == "error"
    assert judge(loaded, [result("c0", exact=0, regex=UNMEASURED, contains=None)]).verdict == "fail"


def test_a_scorer_without_floor_that_applies_to_nothing_does_not_decide() -> None:
    loaded = made(1, [{"name": "exact", "floor": 0.5}, {"name": "regex"}])
    found = judge(loaded, [result("c0", exact=1)])
    assert found.verdict == "pass" and found.scores[1].verdict == "inconclusive"


def test_graded_scorers_do_not_decide_a_must_pass_case_unless_told() -> None:
    lines: list[dict[str, Any]] = [{"name": "exact", "floor": 0.5}, {"name": "retrieval_mrr"}]
    scores = [result("c0", exact=1, retrieval_mrr=0.5)]
    assert judge(made(1, lines, must_pass=["c0"]), scores).verdict == "pass"
    told: list[dict[str, Any]] = [lines[0], {"name": "retrieval_mrr", "must_pass": True}]
    found = judge(made(1, told, must_pass=["c0"]), scores)
    assert found.verdict == "fail" and found.must_pass_failed == ["c0"]
    spared: list[dict[str, Any]] = [{"name": "exact", "must_pass": False}, {"name": "regex"}]
    assert judge(made(1, spared, must_pass=["c0"]), [result("c0", exact=0, regex=1)]).verdict == "pass"


@pytest.mark.parametrize("ran", [[], [0], [0, 1, 2]])
def test_an_incomplete_run_is_inconclusive_whatever_its_scores(ran: list[int]) -> None:
    for score in (1, 0, UNMEASURED):
        found = judge(made(4, HALF), [result(f"c{i}", exact=score) for i in ran])
        assert (found.verdict, found.complete, found.cases) == ("inconclusive", False, len(ran))
        assert {row.verdict for row in found.scores} == {"inconclusive"}
        assert found.why == f"{len(ran)} of 4 cases were run"


def test_a_failed_must_pass_case_fails_an_incomplete_run() -> None:
    assert judge(made(4, HALF, must_pass=["c0"]), [result("c0", exact=0)]).verdict == "fail"
    assert judge(made(4, HALF, must_pass=["c3"]), [result("c0", exact=1)]).verdict == "inconclusive"


def test_an_index_that_moved_is_inconclusive() -> None:
    results = [
        result(f"c{i}", exact=1).model_copy(update={"snapshots": {"docs": s}}) for i, s in enumerate([D, BUNDLE])
    ]
    found = judge(made(2, HALF), results)
    assert found.verdict == "inconclusive" and "index docs moved" in found.why
    assert judge(made(2, HALF), [results[0], results[0].model_copy(update={"id": "c1"})]).snapshots == {"docs": D}


def test_started_is_when_the_oldest_result_was_measured() -> None:
    old = result("c0", exact=1).model_copy(update={"time": NOW - timedelta(days=3)})
    assert judge(made(1, HALF), [old]).started == NOW - timedelta(days=3)


def test_results_that_are_not_the_suite_s_are_a_defect() -> None:
    with pytest.raises(ValueError, match="no case of the suite"):
        judge(made(1, HALF), [result("c7", exact=1)])
    with pytest.raises(ValueError, match="two results"):
        judge(made(1, HALF), [result("c0", exact=1), result("c0", exact=1)])


def test_splits_have_floors_as_tags_have(tmp_path: Path) -> None:
    loaded = made(2, [{"name": "exact", "tags": {"split:heldout": 1.0}}])
    cases = tuple(c.model_copy(update={"split": s}) for c, s in zip(loaded.cases, ["tuning", "heldout"], strict=True))
    loaded = LoadedSuite(loaded.suite, cases, cases, D, D, tmp_path)
    assert judge(loaded, [result("c0", exact=0), result("c1", exact=1)]).verdict == "pass"
    assert judge(loaded, [result("c0", exact=1), result("c1", exact=0)]).verdict == "fail"


# ---------------------------------------------------------------- laws

NEARNESS = {"pass": 0, "inconclusive": 1, "error": 2, "fail": 2}
SHARES = st.sampled_from([0.0, 0.01, 0.25, 0.5, 1.0])
SCORES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1), st.none(), st.just(UNMEASURED), st.just(...))
ROWS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=8)
LINES = st.tuples(
    st.none() | SHARES, st.none() | SHARES, st.dictionaries(st.sampled_from(["even", "odd"]), SHARES, max_size=1)
)


def results_of(rows: list[Any]) -> list[CaseResult]:
    named = [{k: s for k, s in zip(("exact", "regex"), row, strict=True) if s is not ...} for row in rows]
    return [result(f"c{i}", **scores) for i, scores in enumerate(named)]


@given(
    rows=ROWS, line=LINES, errors=SHARES, missing=SHARES, must=st.booleans(),
    at=st.integers(0, 7), column=st.integers(0, 1), lower=st.none() | st.floats(0, 1), short=st.booleans(),
)  # fmt: skip
def test_lowering_a_score_or_an_error_never_brings_a_verdict_nearer_to_pass(
    rows: list[Any], line: Any, errors: float, missing: float, must: bool, at: int, column: int,
    lower: float | None, short: bool,
) -> None:  # fmt: skip
    scorers = [{"name": "exact", "floor": line[0], "tags": line[2]}, {"name": "regex", "floor": line[1]}]
    loaded = made(len(rows), scorers, max_errors=errors, max_unmeasured=missing, must_pass=["c0"] if must else [])
    before = judge(loaded, results_of(rows)[: -1 if short else None])
    row = list(rows[at % len(rows)])
    if not isinstance(row[column], float):
        return
    row[column] = None if lower is None else row[column] * lower
    worse = [*rows]
    worse[at % len(rows)] = tuple(row)
    after = judge(loaded, results_of(worse)[: -1 if short else None])
    assert NEARNESS[after.verdict] >= NEARNESS[before.verdict]
    for a, b in zip(after.scores, before.scores, strict=True):
        assert NEARNESS[a.verdict] >= NEARNESS[b.verdict]


@given(rows=ROWS, floor=SHARES, missing=SHARES, at=st.integers(0, 7))
def test_nothing_that_is_missing_makes_a_pass(rows: list[Any], floor: float, missing: float, at: int) -> None:
    loaded = made(len(rows), [{"name": "exact", "floor": floor}, {"name": "regex"}], max_unmeasured=missing)
    before = judge(loaded, results_of(rows))
    for gone in (UNMEASURED, None):
        worse = [*rows]
        if worse[at % len(rows)][0] in (None, ...) or worse[at % len(rows)][0] is UNMEASURED:
            return
        worse[at % len(rows)] = (gone, worse[at % len(rows)][1])
        after = judge(loaded, results_of(worse))
        assert after.verdict != "pass" or before.verdict == "pass"


@given(rows=ROWS)
def test_a_pass_has_every_floor_measured_and_reached(rows: list[Any]) -> None:
    found = judge(made(len(rows), [Scorer(name="exact", floor=0.5).form(), {"name": "regex"}]), results_of(rows))
    if found.verdict == "pass":
        row = found.scores[0]
        assert found.complete and row.errors == row.unmeasured == 0
        assert row.mean is not None and row.mean >= 0.5 - 1e-9


# ---------------------------------------------------------------- the report


def test_the_report_is_canonical_and_reads_back(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 2)
    results = [result("c0", exact=1), result("c1", exact=None)]
    report = make_report(loaded, results, bundle=BUNDLE, bindings=BINDINGS)
    data = report_bytes(report)
    assert Report.model_validate(parse_json(data, what="report"), by_alias=True, by_name=False) == report
    assert report.complete and data == report_bytes(report) and digest(data).startswith("sha256:")
    assert not make_report(loaded, results[:1], bundle=BUNDLE, bindings=BINDINGS).complete
    assert b"question" not in data
