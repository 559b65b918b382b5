"""Latency and cost of a run as a whole: percentiles and means, and whether they keep to the suite's bounds.

A percentile belongs to the run and to no case, so it is no score. With n rows, pooled rows of earlier looks among them,
the p-th percentile is by nearest rank: the smallest value that at least p % of the rows do not exceed. An answer's cost
is what its attempts cost, judges left out.

A row that erred has no latency that says anything and perhaps no price; an answer that an earlier run was given has
neither. Such a row is missing, and counts as slower and dearer than any. The first line that holds decides:

    1. no rows                                   inconclusive
    2. value with missing rows at their worst    pass, if it is within the bound
    3. value with missing rows at 0              fail, if even that is over the bound
    4. a missing row is an error                 error
    5.                                           inconclusive
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from bundlectl.evaluation.report import CaseResult
from bundlectl.model.attestation import RunMeasure
from bundlectl.model.suite import Bounds, Suite
from bundlectl.model.verdict import Verdict

Measured = Literal["latency", "cost"]
Statistic = Literal["mean", "p50", "p95", "p99"]

SHOWN: dict[Measured, tuple[Statistic, ...]] = {"latency": ("p50", "p95"), "cost": ("mean", "p95")}
"""What is reported without a bound, where a scorer of that name or a bound on another statistic is in the suite."""

_UNIT = {"latency": "s", "cost": "USD"}


def measure_run(suite: Suite, rows: Iterable[CaseResult], *, complete: bool = True) -> list[RunMeasure]:
    """Measure what the suite bounds or scores, and judge it; of an incomplete run nothing passes or fails."""
    wanted = list(_wanted(suite))
    values: dict[Measured, list[float | None]] = {measure: [] for measure, _, _ in wanted}
    errors, cached = 0, False
    for row in rows if wanted else ():
        errors += row.error is not None  # such a row has no value
        cached = cached or bool(row.cached)
        for measure, column in values.items():
            column.append(_value(row, measure))
    found = []
    for measure, statistic, bound in wanted:
        judged = _judged(measure, statistic, bound, values[measure], errors, cached)
        if bound is not None and not complete:
            judged = judged.model_copy(update={"verdict": "inconclusive", "why": "the run is not complete"})
        found.append(judged)
    return found


def percentile(values: Sequence[float], percent: int) -> float:
    """Give the percentile by nearest rank; ``values`` holds at least one."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _wanted(suite: Suite) -> Iterator[tuple[Measured, Statistic, float | None]]:
    bounds = suite.bounds or Bounds()
    scored = {line.name for line in suite.scorers}
    measures: tuple[Measured, ...] = ("latency", "cost")
    statistics: tuple[Statistic, ...] = ("mean", "p50", "p95", "p99")
    for measure in measures:
        stated = getattr(bounds, measure)
        for statistic in statistics:
            bound = getattr(stated, statistic, None)
            if bound is not None or (statistic in SHOWN[measure] and (stated is not None or measure in scored)):
                yield measure, statistic, bound


def _value(row: CaseResult, measure: Measured) -> float | None:
    if row.error is not None or row.cached:
        return None
    if measure == "latency":
        return row.seconds
    return None if row.usd is None else max(0.0, row.usd - (row.judging or 0.0))


def _judged(
    measure: Measured,
    statistic: Statistic,
    bound: float | None,
    values: Sequence[float | None],
    errors: int,
    cached: bool,
) -> RunMeasure:
    missing = sum(value is None for value in values)
    worst = _compute(statistic, [math.inf if value is None else value for value in values])
    verdict, why = _verdict(measure, statistic, bound, values, worst, errors, cached)
    return RunMeasure(
        measure=measure,
        statistic=statistic,
        value=worst if worst is not None and math.isfinite(worst) else None,
        bound=bound,
        rows=len(values),
        missing=missing,
        verdict=verdict,
        why=why,
    )


def _verdict(
    measure: Measured,
    statistic: Statistic,
    bound: float | None,
    values: Sequence[float | None],
    worst: float | None,
    errors: int,
    cached: bool,
) -> tuple[Verdict, str]:
    if bound is None:
        return "pass", "reported; it has no bound"
    if worst is None:
        return "inconclusive", "nothing was measured"
    missing = sum(value is None for value in values)
    unit = _UNIT[measure]
    if worst <= bound:
        return "pass", f"{statistic} of {worst:.6g} {unit} is within the bound {bound:g}"
    best = _compute(statistic, [value or 0.0 for value in values]) or 0.0
    if best > bound:
        counted = f", {missing} missing counted as 0," if missing else ""
        return "fail", f"{statistic} of {best:.6g} {unit}{counted} is over the bound {bound:g}"
    why = f"{statistic} may be over the bound {bound:g} {unit}: {missing} of {len(values)} rows are missing"
    if errors:
        return "error", f"{why}, {errors} of them errors"
    if cached:
        return "inconclusive", f"{why}; answers that an earlier run was given tell nothing: --no-cache"
    price = "; what a model costs is not known: name a price book in BUNDLECTL_PRICE_BOOK"
    return "inconclusive", why + (price if measure == "cost" else "")


def _compute(statistic: Statistic, values: Sequence[float]) -> float | None:
    if not values:
        return None
    if statistic == "mean":
        return math.fsum(values) / len(values)
    return percentile(values, int(statistic[1:]))
