"""What the measures share: paired, interleaved runs with medians, and the form of a result.

Every result is a ratio of two things that were measured in the same run, turn by turn, since machines differ and
a shared one changes its speed by the minute. ``ratio`` is the median over the turns of ours / against.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Effort:
    """How much work a measure may do: about ten seconds each, or as long as it takes (``--soak``)."""

    soak: bool = False

    def of(self, usual: int, soak: int) -> int:
        return soak if self.soak else usual


@dataclass(frozen=True)
class Result:
    """One line of build/bench.json. ``ours`` and ``against`` are in ``unit``."""

    name: str
    ours: float
    against: float
    ratio: float
    unit: str
    note: str

    def form(self) -> dict[str, Any]:
        return asdict(self) | {key: rounded(getattr(self, key)) for key in ("ours", "against", "ratio")}


def rounded(value: float) -> float:
    """Keep four digits: the fifth is noise."""
    return float(f"{value:.4g}")


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def async_seconds(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def in_turns(ours: Callable[[], float], against: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Take both figures ``rounds`` times; who goes first alternates."""
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            second, first = against(), ours()
            pairs.append((first, second))
        else:
            pairs.append((ours(), against()))
    return pairs


def paired(name: str, unit: str, note: str, pairs: list[tuple[float, float]]) -> Result:
    """Sum pairs of figures up in medians."""
    return Result(
        name,
        statistics.median(ours for ours, _ in pairs),
        statistics.median(against for _, against in pairs),
        statistics.median(ours / against for ours, against in pairs),
        unit,
        note,
    )


def rates(pairs: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Turn seconds for ``count`` into per second."""
    return [(count / ours, count / against) for ours, against in pairs]
