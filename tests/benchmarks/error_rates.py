"""Simulate the rule of `bundlectl.evaluation.comparison` and write its error rates as a page.

    python -m tests.benchmarks.error_rates [--runs 20000] [--write docs/evaluation-error-rates.md]

Each setting has G groups of CASES cases. A case's outcome under the candidate minus that under the baseline is +1,
0 or -1; +1 and -1 together happen with the discordance, and their mean is the true difference. With the cluster
correlation c, each case of a group takes the group's common outcome with probability sqrt(c), else one of its own.
With R repeats, each repeat takes its case's outcome with probability STEADY, else a new one. So a group's mean has a
distribution over few values, which is computed exactly; a run draws how often each value occurs among G groups.

The page says how often a run passes (better, or no worse by MARGIN), and which wrong claims it makes.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from bundlectl.evaluation.statistics import LEAST_GROUPS, interval, look_alpha, t_quantile

Floats = NDArray[np.float64]

CASES = 3
STEADY = 0.5
SEED = 20261123
MARGINS = (0.02, 0.05, 0.10)
GROUPS = (20, 30, 40, 60, 80, 120, 200, 400, 800)
DISCORDANCES = (0.02, 0.05, 0.10, 0.20, 0.40)
CORRELATIONS = (0.0, 0.3, 1.0)
REPEATS = (1, 3)
LOOKS = 10


@dataclass(frozen=True)
class Setting:
    """One cell of the grid; ``shift`` is the true difference in margins: 0, -1 or -2."""

    margin: float
    shift: int
    groups: int
    discordance: float
    correlation: float
    repeats: int

    @property
    def difference(self) -> float:
        """The true difference."""
        return self.shift * self.margin


@dataclass(frozen=True)
class Rates:
    """How often of ``runs`` each claim was made."""

    setting: Setting
    runs: int
    passed: int
    better: int
    worse: int

    @property
    def pass_rate(self) -> float:
        """Share of runs that pass."""
        return self.passed / self.runs


def settings() -> Iterator[Setting]:
    """Give the grid without cells that cannot be: a difference needs as much discordance."""
    for margin in MARGINS:
        for shift in (0, -1, -2):
            for groups in GROUPS:
                for discordance in DISCORDANCES:
                    if discordance + 1e-12 < -shift * margin:
                        continue
                    for correlation in CORRELATIONS:
                        for repeats in REPEATS:
                            yield Setting(margin, shift, groups, discordance, correlation, repeats)


def group_values(setting: Setting) -> tuple[Floats, Floats]:
    """Give the values that a group's mean can take, and their probabilities."""
    plus = (setting.discordance + setting.difference) / 2
    outcome = np.array([setting.discordance - plus, 1 - setting.discordance, plus])
    follow = math.sqrt(setting.correlation)

    def repeats_given(steady: int) -> Floats:
        each = (1 - STEADY) * outcome
        each[steady] += STEADY
        return _sum_of(each, setting.repeats)

    # With one repeat a case's only outcome is its own.
    given_case = [repeats_given(y) if setting.repeats > 1 else np.eye(3)[y] for y in range(3)]
    total = np.zeros(2 * CASES * setting.repeats + 1)
    for common in range(3):
        case = (1 - follow) * outcome
        case[common] += follow
        one = sum((case[y] * given_case[y] for y in range(3)), np.zeros_like(given_case[0]))
        total += outcome[common] * _sum_of(one, CASES)
    size = CASES * setting.repeats
    return np.arange(-size, size + 1) / size, total / total.sum()


def _sum_of(distribution: Floats, times: int) -> Floats:
    result: Floats = np.array([1.0])
    for _ in range(times):
        result = np.convolve(result, distribution)
    return result


def simulate(setting: Setting, runs: int, chance: np.random.Generator) -> Rates:
    """Run one cell."""
    values, probabilities = group_values(setting)
    counts = chance.multinomial(setting.groups, probabilities, size=runs)
    low, high = limits(counts @ values, counts @ values**2, setting.groups, look_alpha(1))
    passed = low > -setting.margin
    return Rates(
        setting,
        runs,
        int(passed.sum()),
        int((low > 0).sum()),
        int(((high < 0) & ~passed).sum()),
    )


def limits(sums: Floats, squares: Floats, groups: int, alpha: float) -> tuple[Floats, Floats]:
    """Do what ``statistics.interval`` does, for many runs at once, from sums and sums of squares."""
    n = groups + 2
    mean = sums / n
    error = np.sqrt(np.maximum(squares + 2 - n * mean**2, 0) / (n - 1) / n)
    reach = t_quantile(1 - alpha, groups + 1) * error
    return mean - reach, mean + reach


def check_limits(chance: np.random.Generator) -> None:
    """Hold the arithmetic above against the rule that decides."""
    for groups in (LEAST_GROUPS, 57, 400):
        drawn = chance.choice([-1.0, -1 / 3, 0.0, 1 / 3, 1.0], size=groups)
        ours = limits(np.array([drawn.sum()]), np.array([(drawn**2).sum()]), groups, 0.025)
        rule = interval(list(drawn))
        if not (
            math.isclose(ours[0][0], rule.low, abs_tol=1e-12) and math.isclose(ours[1][0], rule.high, abs_tol=1e-12)
        ):
            raise SystemExit(f"the simulation does not compute the rule: {ours} is not {rule}")


def upper(hits: int, runs: int, level: float = 0.99) -> float:
    """Give the one-sided Clopper-Pearson upper bound of a share."""
    return 1.0 if hits == runs else float(stats.beta.ppf(level, hits + 1, runs - hits))


@dataclass(frozen=True)
class Looks:
    """How often one of LOOKS looks at one digest passes, with a true difference of minus the margin."""

    groups: int
    discordance: float
    pooled: int
    replaced: int
    runs: int


def look_again(groups: int, discordance: float, margin: float, runs: int, chance: np.random.Generator) -> Looks:
    """Evaluate one digest again and again: every look repeats every case, and what was seen before is kept.

    ``replaced`` is what would happen if each look stood alone at the first look's alpha.
    """
    plus = (discordance - margin) / 2
    outcome = [discordance - plus, 1 - discordance, plus]
    pooled_passed = replaced_passed = 0
    for _ in range(0, runs, 1000):
        size = (min(1000, runs), groups)
        own = chance.choice([-1.0, 0.0, 1.0], size=size, p=outcome)
        total = np.zeros(size)
        pooled = np.zeros(size[0], dtype=bool)
        replaced = np.zeros(size[0], dtype=bool)
        for look in range(1, LOOKS + 1):
            fresh = chance.choice([-1.0, 0.0, 1.0], size=size, p=outcome)
            seen = np.where(chance.random(size) < STEADY, own, fresh)
            total += seen
            mean = total / look
            pooled |= limits(mean.sum(axis=1), (mean**2).sum(axis=1), groups, look_alpha(look))[0] > -margin
            replaced |= limits(seen.sum(axis=1), (seen**2).sum(axis=1), groups, look_alpha(1))[0] > -margin
        pooled_passed += int(pooled.sum())
        replaced_passed += int(replaced.sum())
    return Looks(groups, discordance, pooled_passed, replaced_passed, runs)


@dataclass(frozen=True)
class Worst:
    """The number of groups at which a candidate that only ever loses, by exactly the margin, passes most often."""

    margin: float
    groups: int
    passes: float


def worst_case(margin: float) -> Worst:
    """Look at every number of groups, exactly: losses are binomial, and only so many of them still pass."""
    worst = Worst(margin, GROUPS[0], 0.0)
    for groups in range(GROUPS[0], GROUPS[-1] + 1):
        losses = np.arange(groups + 1, dtype=np.float64)
        passing = limits(-losses, losses, groups, look_alpha(1))[0] > -margin
        chance = float(stats.binom.pmf(losses, groups, margin)[passing].sum())
        worst = max(worst, Worst(margin, groups, chance), key=lambda found: found.passes)
    return worst


# ---------------------------------------------------------------- the page


def page(rates: list[Rates], looks: list[Looks], runs: int) -> str:
    """Write the page."""
    at_margin = [r for r in rates if r.setting.shift == -1]
    top = max(at_margin, key=lambda r: (r.passed, r.setting.groups))
    twice = max((r for r in rates if r.setting.shift == -2), key=lambda r: r.passed)
    null = [r for r in rates if r.setting.shift == 0]
    better = max(null, key=lambda r: r.better)
    worse = max(null, key=lambda r: r.worse)
    share = sum(r.passed for r in at_margin) / sum(r.runs for r in at_margin)
    lines = [
        "# Error rates of the comparison",
        "",
        "How often the rule that compares a candidate with a baseline is wrong, by simulation. This page is written by "
        "`python -m tests.benchmarks.error_rates --write docs/evaluation-error-rates.md`, which also says how outcomes "
        f"are drawn. {len(rates)} settings, {runs:,} runs each; groups of {CASES} cases.",
        "",
        "## The headline",
        "",
        f"A candidate that is worse by exactly the margin passes in at most **{_percent(top.pass_rate)}** of the runs "
        f"(99 % Monte Carlo upper bound **{_percent(upper(top.passed, runs))}**, to be at or under 6.5 %), at "
        f"{_where(top.setting)}. Over all such settings together it passes in {_percent(share)}.",
        "",
        f"- Worse by twice the margin, it passes in at most {_percent(twice.pass_rate)} ({_where(twice.setting)}).",
        f'- With no difference at all, "better" is claimed in at most {_percent(better.better / runs)}, and "worse" '
        f"in at most {_percent(worse.worse / runs)}.",
        "",
        "## The worst case, exactly",
        "",
        "The rule is hardest on a candidate that wins nothing and loses by exactly the margin, every group of one "
        "mind. Then losses are binomial, and the chance of a pass can be computed for every number of groups; it goes "
        f"up and down with it, because losses are whole. The worst number from {GROUPS[0]} to {GROUPS[-1]}:",
        "",
        "| margin | groups | passes |",
        "| ---: | ---: | ---: |",
        *(f"| {w.margin:.2f} | {w.groups} | {_percent(w.passes)} |" for w in map(worst_case, MARGINS)),
        "",
        "## Asking again until it passes",
        "",
        f"One digest is evaluated {LOOKS} times; its true difference is minus the margin of 0.05. Looks are pooled and "
        "the k-th uses a one-sided alpha of .05 / (k (k + 1)). The last column is what would happen if each look stood "
        "alone.",
        "",
        "| groups | discordance | any look passes | 99 % upper bound | if looks replaced each other |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {x.groups} | {_percent(x.discordance)} | {_percent(x.pooled / x.runs)} | "
            f"{_percent(upper(x.pooled, x.runs))} | {_percent(x.replaced / x.runs)} |"
            for x in looks
        ),
        "",
        "## How often a candidate passes",
        "",
        "Over the cluster correlations and repeats of the grid: least and most. At a difference of 0 that is the "
        "power; below, it is the error.",
    ]
    for margin in MARGINS:
        lines += ["", f"### Margin {margin:.2f}", "", *_table(rates, margin)]
    return "\n".join([_wrapped(line) for line in lines] + [""])


def _table(rates: list[Rates], margin: float) -> list[str]:
    lines = [
        "| groups | discordance | difference 0 | minus the margin | minus twice the margin |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for groups in GROUPS:
        for discordance in DISCORDANCES:
            cells = []
            for shift in (0, -1, -2):
                found = [
                    r.pass_rate
                    for r in rates
                    if (r.setting.margin, r.setting.shift, r.setting.groups, r.setting.discordance)
                    == (margin, shift, groups, discordance)
                ]
                cells.append(f"{_percent(min(found))} to {_percent(max(found))}" if found else "cannot be")
            lines.append(f"| {groups} | {_percent(discordance)} | {' | '.join(cells)} |")
    return lines


def _wrapped(line: str) -> str:
    if line.startswith(("|", "#")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return "\n".join(textwrap.wrap(line, 118, break_on_hyphens=False, subsequent_indent=indent))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _where(setting: Setting) -> str:
    return (
        f"margin {setting.margin:.2f}, {setting.groups} groups, discordance {_percent(setting.discordance)}, "
        f"cluster correlation {setting.correlation:g}, {setting.repeats} repeat{'s' if setting.repeats > 1 else ''}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.error_rates", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20_000, metavar="N", help="runs of each setting [default: 20000]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there, else to stdout")
    options: Any = parser.parse_args(argv)
    began = time.perf_counter()
    chance = np.random.default_rng(SEED)
    check_limits(chance)
    rates = [simulate(setting, options.runs, chance) for setting in settings()]
    looks = [
        look_again(groups, discordance, 0.05, options.runs, chance)
        for groups in (40, 100, 200)
        for discordance in (0.10, 0.20)
    ]
    text = page(rates, looks, options.runs)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    print(f"{len(rates)} settings in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
