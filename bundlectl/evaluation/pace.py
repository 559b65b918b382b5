"""What a run may spend, and how many of its rows are under way at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bundlectl.evaluation.report import CaseResult

MAX_CONCURRENCY = 256


@dataclass
class Budget:
    """What a run may spend, and has spent; rows from a journal were paid for by an earlier run and count as well.

    No row is begun once ``limit`` is reached, or once a row's price is not known: then nobody knows whether it is.
    Rows under way are finished, so a run may end above its limit by what so many rows cost.
    """

    limit: float | None = None
    spent: float = 0.0
    unknown: int = 0

    @property
    def open(self) -> bool:
        """Whether another row may be begun."""
        return self.limit is None or (self.spent < self.limit and not self.unknown)

    def take(self, result: CaseResult) -> None:
        """Count a row."""
        self.charge(result.usd)

    def charge(self, usd: float | None) -> None:
        """Count what something cost; None where nobody knows."""
        if usd is None:
            self.unknown += 1
        else:
            self.spent += usd


class Pace:
    """How many rows are under way at once: halved when a model throttles, at most once a ``pause``; then growing."""

    def __init__(self, most: int, pause: float, timer: Callable[[], float]) -> None:
        self.most = max(1, min(most, MAX_CONCURRENCY))
        self.now = float(self.most)
        self._pause, self._timer = pause, timer
        self._slowed = -math.inf

    def throttled(self) -> None:
        """Slow down."""
        # Rows that were under way together are throttled together; that is one reason, not many.
        if self._timer() - self._slowed >= self._pause:
            self._slowed = self._timer()
            self.now = max(1.0, self.now / 2)

    def answered(self) -> None:
        """Grow by one when as many rows were answered as are under way."""
        self.now = min(float(self.most), self.now + 1 / self.now)
