"""The arithmetic of comparing: Student's t, the interval with two pseudo-groups, groups needed, Holm. No I/O.

The interval of G group differences in [-1, 1] is made of G + 2 numbers, the differences and +1 and -1:

    mean +- t(1 - alpha, G + 1) * s / sqrt(G + 2)

The two pseudo-groups are what keeps it honest where all differences that were seen are equal: no finite number of
equal outcomes shows that the others are equal too. ``alpha`` is one-sided throughout.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

LEAST_GROUPS = 20
"""With fewer groups nothing is decided."""

ALPHA = 0.025
"""One-sided, of a first look: the 95 % interval."""

DISCORDANCE = 0.10
"""Share of outcomes that differ between two bundles, where nothing better is known."""

POWER = 0.80
MOST_GROUPS = 1_000_000
"""Beyond this many groups nothing is called decidable."""

_TINY = 1e-300
_CLOSE = 1e-16


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval for a mean difference; ``difference`` is the plain mean of the groups, NaN where there are none."""

    groups: int
    difference: float
    low: float
    high: float


# ---------------------------------------------------------------- Student's t


def beta_share(a: float, b: float, x: float) -> float:
    """Give the regularised incomplete beta function I_x(a, b): the share of a beta distribution under x.

    Args:
        a: above 0.
        b: above 0.
        x: in [0, 1].
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"I_x(a, b) is not defined at a={a}, b={b}, x={x}")
    if x in (0.0, 1.0):
        return x
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The continued fraction converges fast on one side of the mean; the other side is its mirror image.
    if x < (a + 1) / (a + b + 2):
        return front * _continued(a, b, x) / a
    return 1 - front * _continued(b, a, 1 - x) / b


def _continued(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function by Lentz's method."""

    def safe(value: float) -> float:
        return value if abs(value) > _TINY else _TINY

    c = 1.0
    d = 1 / safe(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / safe(1 + even * d)
        c = safe(1 + even / c)
        result *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / safe(1 + odd * d)
        c = safe(1 + odd / c)
        step = d * c
        result *= step
        if abs(step - 1) < _CLOSE * 10:
            break
    return result


def t_tail(t: float, df: float) -> float:
    """Give P(T > t) of Student's t with ``df`` degrees of freedom."""
    if df <= 0:
        raise ValueError(f"Student's t needs more than {df} degrees of freedom")
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    # Of the two equal forms the one whose argument does not round to 1.
    if t * t < df:
        half = 0.5 * (1 - beta_share(0.5, df / 2, t * t / (df + t * t)))
    else:
        half = 0.5 * beta_share(df / 2, 0.5, df / (df + t * t))
    return half if t >= 0 else 1 - half


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """Give the t with P(T <= t) = p.

    Args:
        p: strictly between 0 and 1.
        df: degrees of freedom, above 0.
    """
    if not 0 < p < 1:
        raise ValueError(f"{p} is no probability strictly between 0 and 1")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    tail = 1 - p
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        low, high = high, high * 2
    # Halving is slow and cannot go wrong; 200 halvings end at neighbouring numbers.
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if t_tail(middle, df) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def look_alpha(look: int, alpha: float = ALPHA) -> float:
    """Give the one-sided alpha of the k-th look at one bundle: 2 * alpha / (k (k + 1)).

    All looks together spend at most 2 * alpha, however many there are.
    """
    if look < 1:
        raise ValueError(f"looks count from 1, not {look}")
    return 2 * alpha / (look * (look + 1))


# ---------------------------------------------------------------- the interval


def interval(differences: Sequence[float], alpha: float = ALPHA) -> Interval:
    """Give the interval of this module's rule.

    Args:
        differences: one for each group, candidate minus baseline, each in [-1, 1].
        alpha: one-sided.
    """
    groups = len(differences)
    values = [*differences, 1.0, -1.0]
    mean, error = _mean_and_error(values)
    reach = t_quantile(1 - alpha, groups + 1) * error
    plain = math.fsum(differences) / groups if groups else math.nan
    return Interval(groups, plain, mean - reach, mean + reach)


def p_value(differences: Sequence[float]) -> float:
    """Give the two-sided p-value of "no difference" that goes with :func:`interval`."""
    mean, error = _mean_and_error([*differences, 1.0, -1.0])
    return min(1.0, 2 * t_tail(abs(mean) / error, len(differences) + 1))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def variance_of(differences: Sequence[float]) -> float:
    """Give the sample variance of the groups alone, 0 for fewer than two."""
    n = len(differences)
    if n < 2:
        return 0.0
    mean = math.fsum(differences) / n
    return math.fsum((value - mean) ** 2 for value in differences) / (n - 1)


def expected_interval(
    groups: int, difference: float, variance: float, alpha: float = ALPHA
) -> tuple[float, float, float]:
    """Give (low, high, standard error) as they come out for so many groups of this mean and sample variance."""
    n = groups + 2
    mean = groups * difference / n
    squares = max(0, groups - 1) * variance + groups * (difference - mean) ** 2 + (1 - mean) ** 2 + (1 + mean) ** 2
    error = math.sqrt(squares / (n - 1) / n)
    reach = t_quantile(1 - alpha, groups + 1) * error
    return mean - reach, mean + reach, error


_Z_POWER = 0.8416212335729143
"""Standard normal quantile of POWER."""


def groups_needed(
    margin: float, *, difference: float = 0.0, variance: float = DISCORDANCE, alpha: float = ALPHA
) -> int | None:
    """Give how many groups settle it four times in five, if difference and variance are as said.

    Settled means: not worse by as much as the margin, or worse. None: more than a million.

    Args:
        margin: how much worse is still no worse.
        difference: the true mean difference.
        variance: of a group's difference; the share of differing outcomes where the difference is none.
        alpha: one-sided.
    """

    def settled(groups: int) -> bool:
        low, high, error = expected_interval(groups, difference, variance, alpha)
        reserve = _Z_POWER * error
        return low - reserve > -margin or high + reserve < 0

    enough = LEAST_GROUPS
    while not settled(enough):
        enough *= 2
        if enough > MOST_GROUPS:
            return None
    short = enough // 2
    if enough == LEAST_GROUPS:
        return enough
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if settled(middle) else (middle, enough)
    return enough


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Give Holm's adjusted p-values: claims at level a are those under a, and all of them hold together at a."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    left = len(p_values)
    for name, p in sorted(p_values.items(), key=lambda item: (item[1], item[0])):
        highest = max(highest, min(1.0, left * p))
        adjusted[name] = highest
        left -= 1
    return adjusted


# ---------------------------------------------------------------- shown, and never deciding


def bootstrap(differences: Sequence[float], alpha: float = ALPHA, draws: int = 1000) -> tuple[float, float]:
    """Give the percentile bootstrap interval of the group mean; the same differences always give the same one.

    Raises:
        ValueError: there is no group.
    """
    if not differences:
        raise ValueError("there is nothing to draw from")
    chance = random.Random(len(differences))  # noqa: S311 (not for secrets)
    groups = len(differences)
    means = sorted(math.fsum(chance.choices(differences, k=groups)) / groups for _ in range(draws))
    cut = min(draws // 2, int(alpha * draws))
    return means[cut], means[draws - 1 - cut]


def mcnemar(better: int, worse: int) -> float:
    """Give the exact two-sided p-value of so many cases better and so many worse, were both equally likely."""
    discordant = better + worse
    if discordant == 0:
        return 1.0
    fewer = min(better, worse)
    # Logarithms: 2 ** discordant is beyond floats for datasets of a few thousand cases.
    logs = [
        math.lgamma(discordant + 1) - math.lgamma(i + 1) - math.lgamma(discordant - i + 1) - discordant * math.log(2)
        for i in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))
