"""Counting what was used in this process's memory. The counts live beside releases: a new one finds them as they were.

Minutes are told by the monotonic clock, days by the router's clock, in UTC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from bundlectl.router.limits import Exceeded, Granted, Need

MINUTE: Final = 60.0
DAY: Final = 86400.0
SOON: Final = 1.0
"""Seconds after which to try again when what is reserved by requests under way is in the way."""

SWEEP: Final = 10_000
"""With more subjects than this, those that were quiet for a minute and spent nothing today are forgotten."""


@dataclass(slots=True)
class _Count:
    """One subject's use. Levels are what is left of a minute's worth as of ``at`` (seconds, monotonic)."""

    at: float
    requests: float | None = None
    tokens: float | None = None
    day: int = 0
    spent: float = 0.0
    reserved: float = 0.0

    def refill(self, need: Need, now: float, day: int) -> None:
        """Bring it to the present; a limit that was changed counts from now on."""
        passed = (now - self.at) / MINUTE
        self.at = now
        rate = need.limit.requests_per_minute
        if rate is not None:
            self.requests = float(rate) if self.requests is None else min(float(rate), self.requests + passed * rate)
        rate = need.limit.tokens_per_minute
        if rate is not None:
            self.tokens = float(rate) if self.tokens is None else min(float(rate), self.tokens + passed * rate)
        if day > self.day:
            self.day, self.spent, self.reserved = day, 0.0, 0.0


@dataclass(slots=True)
class MemoryCounts:
    """What each subject used; on one event loop."""

    monotonic: Callable[[], float] = time.monotonic
    _counts: dict[str, _Count] = field(default_factory=dict)
    _sweep_at: int = SWEEP

    def take(
        self, needs: Sequence[Need], at: datetime, *, instead: Sequence[Need] = (), refuse: bool = False
    ) -> Granted | Exceeded:
        """Take all or nothing; see :class:`~bundlectl.router.limits.Counts`."""
        now, seconds = self.monotonic(), at.timestamp()
        day = int(seconds // DAY)
        soft = [need for need in needs if self._passes_softly(need, now, day)]
        used = instead if soft and instead else needs
        for need in used:
            exceeded = _exceeded(self._present(need, now, day), need, seconds)
            if exceeded is not None:
                return exceeded
        for need in used:
            count = self._counts[need.subject]
            if count.requests is not None:
                count.requests -= need.requests
            if count.tokens is not None:
                count.tokens -= need.tokens
            count.reserved += need.usd
        return Granted(used, used is instead, day, soft)

    def settle(self, granted: Granted, tokens: int, usd: float, at: datetime) -> None:
        """Put what was used in place of what was reserved. What belongs to a day that is over is dropped with it."""
        for need in granted.needs:
            count = self._counts.get(need.subject)
            if count is None:
                continue
            if count.tokens is not None:
                most = float(need.limit.tokens_per_minute or count.tokens)
                count.tokens = min(most, count.tokens + need.tokens - tokens)
            if count.day == granted.day:
                count.reserved = max(0.0, count.reserved - need.usd)
                count.spent += usd

    def _present(self, need: Need, now: float, day: int) -> _Count:
        count = self._counts.get(need.subject)
        if count is None:
            if len(self._counts) >= self._sweep_at:
                self._sweep(now, day)
            count = self._counts[need.subject] = _Count(now, day=day)
        count.refill(need, now, day)
        return count

    def _passes_softly(self, need: Need, now: float, day: int) -> bool:
        bound = need.limit.soft_usd_per_day
        if bound is None:
            return False
        count = self._present(need, now, day)
        return count.spent + count.reserved + need.usd > bound

    def _sweep(self, now: float, day: int) -> None:
        """Forget what is of no use; the next time only once there are twice as many, so that it costs each little."""
        self._counts = {
            subject: count
            for subject, count in self._counts.items()
            if now - count.at < MINUTE
            or (count.day >= day and (count.spent or count.reserved))
            or (count.tokens or 0.0) < 0
        }
        self._sweep_at = max(SWEEP, 2 * len(self._counts))


def _exceeded(count: _Count, need: Need, seconds: float) -> Exceeded | None:
    limit = need.limit
    rate = limit.requests_per_minute
    if rate is not None and count.requests is not None and count.requests < need.requests:
        return Exceeded(need, "requests", (need.requests - count.requests) * MINUTE / rate)
    rate = limit.tokens_per_minute
    if rate is not None and count.tokens is not None and need.tokens:
        if need.tokens > rate:
            return Exceeded(need, "tokens", None)
        if count.tokens < need.tokens:
            return Exceeded(need, "tokens", (need.tokens - count.tokens) * MINUTE / rate)
    bound = limit.usd_per_day
    if bound is not None:
        if need.usd > bound:
            return Exceeded(need, "usd", None)
        if count.spent >= bound or count.spent + need.usd > bound:
            return Exceeded(need, "usd", DAY - seconds % DAY)
        if count.spent + count.reserved + need.usd > bound:
            return Exceeded(need, "usd", SOON)
    return None
