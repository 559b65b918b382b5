"""Latency and cost over a run: golden percentiles, and what missing rows do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.evaluation.bounds import measure_run, percentile
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.errors import SourceError
from bundlectl.model.verdict import Verdict
from tests.evaluation.builders import BINDINGS, NOW, result, suite, write_suite


def rows(*seconds: float | None, usd: float | None = 0.001, error: str | None = None) -> list[CaseResult]:
    return [
        result(f"c{n}", exact=1).model_copy(
            update={"seconds": value, "usd": usd, "error": error if value is None else None}
        )
        for n, value in enumerate(seconds)
    ]


def judged(folder: Path, measured: list[CaseResult], **bounds: Any) -> tuple[float | None, Verdict]:
    (found,) = [one for one in measure_run(suite(folder, 3, bounds=bounds).suite, measured) if one.bound is not None]
    return found.value, found.verdict


@pytest.mark.parametrize(
    ("values", "percent", "golden"),
    [
        ([15, 20, 35, 40, 50], 5, 15),  # the nearest-rank example that textbooks give
        ([15, 20, 35, 40, 50], 30, 20),
        ([15, 20, 35, 40, 50], 40, 20),
        ([15, 20, 35, 40, 50], 50, 35),
        ([15, 20, 35, 40, 50], 100, 50),
        (list(range(1, 101)), 95, 95),
        (list(range(1, 102)), 95, 96),
        ([3], 99, 3),
    ],
)
def test_percentiles_are_by_nearest_rank(values: list[float], percent: int, golden: float) -> None:
    assert percentile(values, percent) == golden


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < len(values) * percent / 100


def test_within_and_over(tmp_path: Path) -> None:
    twenty = rows(*(n / 10 for n in range(1, 21)))
    assert judged(tmp_path, twenty, latency={"p95": 1.9}) == (1.9, "pass")
    assert judged(tmp_path, twenty, latency={"p95": 1.8}) == (1.9, "fail")
    assert judged(tmp_path, twenty, latency={"p50": 1.0}) == (1.0, "pass")
    assert judged(tmp_path, twenty, cost={"mean": 0.001}) == (pytest.approx(0.001), "pass")
    assert judged(tmp_path, twenty, cost={"mean": 0.0009}) == (pytest.approx(0.001), "fail")


def test_what_is_missing_counts_as_slowest(tmp_path: Path) -> None:
    one_of_twenty = rows(*[0.1] * 19, None, error="timeout")
    assert judged(tmp_path, one_of_twenty, latency={"p95": 0.5}) == (0.1, "pass")
    assert judged(tmp_path, one_of_twenty, latency={"p99": 0.5}) == (None, "error")
    two = rows(*[0.1] * 18, None, None, error="timeout")
    assert judged(tmp_path, two, latency={"p95": 0.5}) == (None, "error")
    assert judged(tmp_path, rows(*[0.9] * 18, None, None, error="timeout"), latency={"p50": 0.5}) == (0.9, "fail")
    assert judged(tmp_path, rows(*[0.1] * 18, None, None), latency={"p95": 0.5}) == (None, "inconclusive")
    assert judged(tmp_path, [], latency={"p95": 0.5}) == (None, "inconclusive")


def test_a_price_that_is_not_known_is_missing(tmp_path: Path) -> None:
    unknown = rows(1, 1, usd=None)
    assert judged(tmp_path, unknown, cost={"mean": 1}) == (None, "inconclusive")
    dear = [*rows(1, usd=10), *unknown]
    assert judged(tmp_path, dear, cost={"mean": 1})[1] == "fail"
    judges = [one.model_copy(update={"judging": 0.0009}) for one in rows(1, 1)]
    assert judged(tmp_path, judges, cost={"mean": 0.0002}) == (pytest.approx(0.0001), "pass")


def test_it_is_said_why_a_row_is_missing(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 3, bounds={"cost": {"mean": 0.01}})
    unpriced = rows(1, 1, 1, usd=None)
    kept = [row.model_copy(update={"cached": True, "seconds": None}) for row in unpriced]
    for measured, says in ((unpriced, "BUNDLECTL_PRICE_BOOK"), (kept, "--no-cache")):
        (found,) = [one for one in measure_run(loaded.suite, measured) if one.bound is not None]
        assert found.verdict == "inconclusive" and says in found.why


def test_answers_of_an_earlier_run_tell_nothing(tmp_path: Path) -> None:
    cached = [one.model_copy(update={"cached": True, "usd": 0.0}) for one in rows(None, None)]
    assert judged(tmp_path, cached, latency={"p50": 1}) == (None, "inconclusive")
    assert judged(tmp_path, cached, cost={"mean": 1}) == (None, "inconclusive")


def test_what_is_reported(tmp_path: Path) -> None:
    def shown(**more: Any) -> list[tuple[str, str]]:
        found = measure_run(suite(tmp_path, 3, **more).suite, rows(1, 2, 3))
        assert all(one.verdict == "pass" and one.bound is None for one in found)
        return [(one.measure, one.statistic) for one in found]

    assert shown() == []
    scored = [{"name": "latency", "options": {"seconds": 1}}, {"name": "cost", "options": {"usd": 1}}]
    assert shown(scorers=scored) == [("latency", "p50"), ("latency", "p95"), ("cost", "mean"), ("cost", "p95")]


def summary(loaded: LoadedSuite, measured: list[CaseResult]) -> Any:
    return summarise(loaded, measured, bindings=BINDINGS, actor="me", started=NOW, finished=NOW)


def test_a_bound_takes_part_in_the_verdict(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 3, scorers=[{"name": "exact"}], bounds={"latency": {"p95": 2}})
    assert summary(loaded, rows(1, 1, 1)).verdict == "pass", "a bound is a demand"
    over = summary(loaded, rows(1, 1, 3))
    assert over.verdict == "fail" and "latency: p95 of 3 s is over the bound 2" in over.why
    assert over.measures is not None and [one.value for one in over.measures] == [1, 3]
    assert summary(suite(tmp_path, 3), rows(1, 1, 3)).measures is None
    assert summary(loaded, rows(1, 1)).verdict == "inconclusive"


@given(st.lists(st.one_of(st.none(), st.floats(0.1, 10)), min_size=1, max_size=30), st.floats(0.1, 10), st.data())
def test_losing_a_row_never_helps(seconds: list[float | None], bound: float, data: st.DataObject) -> None:
    from bundlectl.model.suite import Suite

    made = Suite.model_validate(
        {
            "apiVersion": "bundlectl/v1",
            "kind": "Suite",
            "name": "s",
            "task": "t",
            "dataset": "d.jsonl",
            "scorers": [{"name": "exact"}],
            "bounds": {"latency": {"p95": bound}},
        }
    )
    lost = list(seconds)
    lost[data.draw(st.integers(0, len(lost) - 1))] = None
    before, after = (
        next(one for one in measure_run(made, rows(*values, error="gone")) if one.bound) for values in (seconds, lost)
    )
    assert not (after.verdict == "pass" and before.verdict != "pass")


@pytest.mark.parametrize(
    "bounds", [{"latency": {"p95": 0}}, {"latency": {"p90": 1}}, {"cost": {"mean": math.inf}}, {"x": {}}]
)
def test_a_wrong_bound_is_refused(tmp_path: Path, bounds: Any) -> None:
    with pytest.raises(SourceError):
        text = write_suite(tmp_path, [{"id": "a", "expected": {}}], [{"name": "exact"}], bounds=bounds)
        text.write_text(text.read_text().replace("Infinity", ".inf"))
        read_suite(text)
