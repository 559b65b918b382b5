"""When to stop asking a model that struggles: a circuit breaker per model, and a budget for retries over all."""

from __future__ import annotations

import math
from dataclasses import dataclass

FAILURES = 5
OPEN_SECONDS = 10.0
BUDGET = 8.0
EARNED = 0.09


@dataclass(slots=True)
class Breaker:
    """Opens after :data:`FAILURES` failures in a row; after :data:`OPEN_SECONDS` one call at a time tries again.

    Times are seconds on any monotonic clock. Used on one event loop, so nothing is locked. Calls that ``began`` before
    it opened are no probe: when they end, whoever probes goes on being the only one.
    """

    failures: int = 0
    opened: float | None = None
    probing: bool = False

    def allows(self, now: float) -> bool:
        """Say whether a call may be made; while open, one per :data:`OPEN_SECONDS`, which is the probe."""
        if self.opened is None:
            return True
        if now - self.opened < OPEN_SECONDS or self.probing:
            return False
        self.probing = True
        return True

    def resting(self, now: float) -> bool:
        """Say whether calls are not made now; unlike :meth:`allows` it takes no probe."""
        return self.opened is not None and (now - self.opened < OPEN_SECONDS or self.probing)

    def succeeded(self) -> None:
        """Close it."""
        self.failures = 0
        self.opened = None
        self.probing = False

    def failed(self, now: float, began: float = math.inf) -> None:
        """Count a failure of the model, as opposed to a refusal of this one request."""
        if self.opened is not None and began < self.opened:
            return
        self.failures += 1
        self.probing = False
        if self.opened is not None or self.failures >= FAILURES:
            self.opened = now

    def released(self, began: float = math.inf) -> None:
        """End a call that says nothing about the model: the caller went away, or it was refused."""
        if self.opened is None or began >= self.opened:
            self.probing = False


@dataclass(slots=True)
class RetryBudget:
    """Retries are at most a tenth of 1,000 requests or more: a struggling model is not flooded.

    Each request earns :data:`EARNED` of a retry, and at most :data:`BUDGET` are kept.
    """

    left: float = BUDGET

    def earn(self) -> None:
        """Count a request."""
        self.left = min(BUDGET, self.left + EARNED)

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if self.left < 1:
            return False
        self.left -= 1
        return True
