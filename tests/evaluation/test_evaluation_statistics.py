"""The arithmetic of comparing, held against scipy and against the laws that it must keep."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from bundlectl.evaluation.statistics import (
    beta_share,
    bootstrap,
    expected_interval,
    groups_needed,
    holm,
    interval,
    look_alpha,
    mcnemar,
    p_value,
    t_quantile,
    t_tail,
)
from tests.benchmarks import error_rates

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation-error-rates.md"
DIFFERENCES = st.lists(st.floats(-1, 1), max_size=60)


@pytest.mark.parametrize("df", [1, 2, 3, 5, 19, 21, 42, 100, 801, 10_001, 100_001])
@pytest.mark.parametrize("p", [0.3, 0.5, 0.6, 0.9, 0.95, 0.975, 0.99, 0.995, 1 - 0.05 / 110, 1 - 1e-6])
def test_the_t_quantile_is_scipys(p: float, df: int) -> None:
    assert t_quantile(p, df) == pytest.approx(float(stats.t.ppf(p, df)), rel=1e-9, abs=1e-9)


@given(t=st.floats(-50, 50), df=st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_the_tail_is_scipys(t: float, df: int) -> None:
    assert t_tail(t, df) == pytest.approx(float(stats.t.sf(t, df)), rel=1e-8, abs=1e-12)


@given(a=st.floats(0.1, 200), b=st.floats(0.1, 200), x=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_the_incomplete_beta_function_is_scipys(a: float, b: float, x: float) -> None:
    assert beta_share(a, b, x) == pytest.approx(float(stats.beta.cdf(x, a, b)), rel=1e-8, abs=1e-11)


@pytest.mark.parametrize(("p", "df"), [(0, 3), (1, 3), (1.5, 3), (math.nan, 3)])
def test_no_quantile_of_no_probability(p: float, df: int) -> None:
    with pytest.raises(ValueError, match="probability"):
        t_quantile(p, df)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees"):
        t_tail(1, 0)
    with pytest.raises(ValueError, match="not defined"):
        beta_share(0, 1, 0.5)
    with pytest.raises(ValueError, match="from 1"):
        look_alpha(0)
    with pytest.raises(ValueError, match="nothing to draw"):
        bootstrap([])


@given(differences=DIFFERENCES, alpha=st.sampled_from([0.025, 0.005, 0.05 / 6]))
@settings(max_examples=100, deadline=None)
def test_the_interval_is_the_plain_t_interval_with_two_pseudo_groups(differences: list[float], alpha: float) -> None:
    values = [*differences, 1.0, -1.0]
    mean, error = sum(values) / len(values), stats.sem(values)
    reach = stats.t.ppf(1 - alpha, len(values) - 1) * error
    found = interval(differences, alpha)
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach), abs=1e-9)
    assert found.groups == len(differences)
    # "no difference" is refused at 2 alpha exactly where the interval leaves 0 out
    if abs(p_value(differences) - 2 * alpha) > 1e-9:
        assert (p_value(differences) < 2 * alpha) == (found.low > 0 or found.high < 0)


@given(differences=st.lists(st.floats(-1, 1), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_smaller_alpha_gives_a_wider_interval(differences: list[float]) -> None:
    narrow, wide = interval(differences, look_alpha(1)), interval(differences, look_alpha(2))
    assert wide.low < narrow.low <= narrow.high < wide.high


@given(differences=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=80))
@settings(max_examples=50, deadline=None)
def test_the_expected_interval_of_what_was_seen_is_what_was_seen(differences: list[float]) -> None:
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else 0.0
    low, high, _ = expected_interval(n, mean, variance)
    seen = interval(differences)
    assert (low, high) == pytest.approx((seen.low, seen.high), abs=1e-9)


def test_all_looks_together_spend_a_twentieth_at_most() -> None:
    assert look_alpha(1) == 0.025
    assert sum(look_alpha(k) for k in range(1, 10_000)) < 0.05


def test_groups_needed_are_what_the_design_says() -> None:
    assert groups_needed(0.05) == pytest.approx(325, rel=0.05)
    assert groups_needed(0.10) == pytest.approx(90, rel=0.05)
    assert groups_needed(0.001) is None  # more than a million
    assert groups_needed(0.05, difference=-0.5, variance=0.2) == 20  # so much worse that few settle it
    assert (groups_needed(0.05, alpha=0.005) or 0) > (groups_needed(0.05) or 0)


@given(margin=st.floats(0.01, 0.5), variance=st.floats(0, 0.5))
@settings(max_examples=50, deadline=None)
def test_so_many_groups_settle_it_and_one_fewer_does_not(margin: float, variance: float) -> None:
    needed = groups_needed(margin, variance=variance)
    assert needed is not None
    low, _, error = expected_interval(needed, 0.0, variance)
    assert low - 0.8416 * error > -margin - 1e-6
    if needed > 20:
        low, _, error = expected_interval(needed - 1, 0.0, variance)
        assert low - 0.8417 * error <= -margin + 1e-6


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}
    assert max(holm({"a": 0.9, "b": 0.8}).values()) == 1.0


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (0, 6), (3, 10), (50, 50), (1, 4000)])
def test_mcnemar_is_the_exact_binomial_test(better: int, worse: int) -> None:
    expected = 1.0 if better + worse == 0 else float(stats.binomtest(better, better + worse).pvalue)
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-8, abs=1e-300)
    assert mcnemar(worse, better) == mcnemar(better, worse)


def test_the_bootstrap_is_the_same_every_time() -> None:
    differences = [0.0, 1.0, -1.0, 0.5] * 10
    assert bootstrap(differences) == bootstrap(differences)
    low, high = bootstrap(differences)
    assert low < 0.125 < high


def test_the_simulation_runs_and_computes_the_rule() -> None:
    import numpy as np

    chance = np.random.default_rng(1)
    error_rates.check_limits(chance)
    cell = error_rates.Setting(0.10, -1, 100, 0.20, 0.3, 3)
    values, probabilities = error_rates.group_values(cell)
    assert probabilities.sum() == pytest.approx(1) and values @ probabilities == pytest.approx(-0.10)
    assert error_rates.simulate(cell, 2000, chance).pass_rate < 0.06


def test_the_page_of_error_rates_keeps_its_promise() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"upper bound\s+\*\*([0-9.]+) %\*\*", text)
    assert found is not None and float(found[1]) <= 6.5
    assert "20,000 runs each" in text
