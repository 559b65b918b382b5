"""Limits per tenant, in this process's memory: requests per minute, and dollars per day (UTC).

They live beside the release, not in it: a new release brings new numbers and finds the counts as they were.
Money is checked before a request and added after it, so requests that run at once may together overshoot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

from bundlectl.model.bindings import Limit

MINUTE = 60.0
SWEEP = 10_000
"""With more tenants than this, those whose bucket is full again are forgotten."""


@dataclass(slots=True)
class _Bucket:
    """Tokens that were left at ``at`` (seconds, monotonic); a minute's worth is the most it holds."""

    tokens: float
    at: float


@dataclass(slots=True)
class TenantLimits:
    """What each tenant used."""

    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _spent: dict[str, float] = field(default_factory=dict)
    _day: date | None = None

    def take(self, tenant: str, limits: Mapping[str, Limit], now: float, today: datetime) -> str | None:
        """Count a request; give ``None``, or in words which limit it would pass."""
        limit = limits.get(tenant) or limits.get("default")
        if limit is None:
            return None
        if limit.usd_per_day is not None and self._spent_on(today.date(), tenant) >= limit.usd_per_day:
            return f"the tenant's limit of {limit.usd_per_day:g} US dollars per day is used up"
        rate = limit.requests_per_minute
        if rate is None:
            return None
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= SWEEP:
                self._sweep(now)
            bucket = self._buckets[tenant] = _Bucket(float(rate), now)
        bucket.tokens = min(float(rate), bucket.tokens + (now - bucket.at) * rate / MINUTE)
        bucket.at = now
        if bucket.tokens < 1:
            return f"the tenant's limit of {rate} requests per minute is reached"
        bucket.tokens -= 1
        return None

    def settle(self, tenant: str, usd: float | None, today: datetime) -> None:
        """Add what a request cost; an unknown price adds nothing."""
        if usd:
            self._spent[tenant] = self._spent_on(today.date(), tenant) + usd

    def _spent_on(self, day: date, tenant: str) -> float:
        if day != self._day:
            self._day = day
            self._spent.clear()
        return self._spent.get(tenant, 0.0)

    def _sweep(self, now: float) -> None:
        """Forget tenants that were quiet for a minute: their buckets are full again."""
        self._buckets = {tenant: bucket for tenant, bucket in self._buckets.items() if now - bucket.at < MINUTE}
