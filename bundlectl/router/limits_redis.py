"""Counting what was used in Redis, so that all processes of an environment share their limits.

One script takes or refuses in one round trip, another settles. Minutes and days (UTC) are told by Redis's own clock.
One hash per subject, ``bundlectl:{app:environment}:limits:tenant:acme``: numbers only, kept for two days. While Redis
is away each process counts for itself, or requests are refused, as the bindings say; what was counted meanwhile is
not added afterwards. What could not be settled, because Redis or a process went away, counts as reserved until the
day ends: too much, never too little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, Final

from bundlectl.router.limits import Exceeded, Granted, Kind, LimitsUnavailable, Need
from bundlectl.router.limits_memory import DAY, SOON, MemoryCounts
from bundlectl.router.redis_link import RedisAway, RedisLink

KEPT_SECONDS: Final = 2 * int(DAY)

_NOW: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local day = math.floor(now / 86400)
local function text(number) return string.format('%.17g', number) end
"""

TAKE: Final = (
    _NOW
    + """
-- KEYS: subjects. ARGV: how many of them are the first choice, how long to keep, then of each: rate of requests, rate
-- of tokens, dollars, soft dollars (-1: no limit), requests, tokens, dollars needed.
local first, keep = tonumber(ARGV[1]), ARGV[2]
local function need(i)
  local at = 2 + (i - 1) * 7
  local n = {key = KEYS[i]}
  n.rpm, n.tpm = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  n.usd, n.soft = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  n.requests, n.tokens, n.dollars = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  local h = redis.call('HMGET', n.key, 'at', 'requests', 'tokens', 'day', 'spent', 'reserved')
  local passed = math.max(0, now - (tonumber(h[1]) or now)) / 60
  if n.rpm >= 0 then n.left_requests = math.min(n.rpm, (tonumber(h[2]) or n.rpm) + passed * n.rpm) end
  if n.tpm >= 0 then n.left_tokens = math.min(n.tpm, (tonumber(h[3]) or n.tpm) + passed * n.tpm) end
  n.spent, n.reserved = 0, 0
  if (tonumber(h[4]) or 0) >= day then n.spent, n.reserved = tonumber(h[5]) or 0, tonumber(h[6]) or 0 end
  return n
end
local needs, soft = {}, {}
for i = 1, first do
  needs[i] = need(i)
  local n = needs[i]
  if n.soft >= 0 and n.spent + n.reserved + n.dollars > n.soft then soft[#soft + 1] = tostring(i) end
end
local instead, from = 0, 0
if #soft > 0 and #KEYS > first then
  instead, from, needs = 1, first, {}
  for i = first + 1, #KEYS do needs[i - first] = need(i) end
end
for i, n in ipairs(needs) do
  local at = tostring(from + i)
  if n.rpm >= 0 and n.left_requests < n.requests then
    return {'no', at, 'requests', text((n.requests - n.left_requests) * 60 / n.rpm)}
  end
  if n.tpm >= 0 and n.tokens > 0 then
    if n.tokens > n.tpm then return {'no', at, 'tokens', '-1'} end
    if n.left_tokens < n.tokens then return {'no', at, 'tokens', text((n.tokens - n.left_tokens) * 60 / n.tpm)} end
  end
  if n.usd >= 0 then
    if n.dollars > n.usd then return {'no', at, 'usd', '-1'} end
    if n.spent >= n.usd or n.spent + n.dollars > n.usd then return {'no', at, 'usd', text(86400 - now % 86400)} end
    if n.spent + n.reserved + n.dollars > n.usd then return {'no', at, 'usd', 'soon'} end
  end
end
for _, n in ipairs(needs) do
  local set = {'at', text(now), 'day', tostring(day), 'spent', text(n.spent), 'reserved', text(n.reserved + n.dollars)}
  if n.left_requests then set[#set + 1] = 'requests'; set[#set + 1] = text(n.left_requests - n.requests) end
  if n.left_tokens then set[#set + 1] = 'tokens'; set[#set + 1] = text(n.left_tokens - n.tokens) end
  redis.call('HSET', n.key, unpack(set))
  redis.call('EXPIRE', n.key, keep)
end
return {'yes', tostring(instead), tostring(day), table.concat(soft, ',')}
"""
)

SETTLE: Final = """
-- KEYS: subjects. ARGV: tokens, dollars, day, then of each: rate of tokens (-1: none), tokens and dollars reserved.
local tokens, dollars, day = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function text(number) return string.format('%.17g', number) end
for i, key in ipairs(KEYS) do
  local at = 3 + (i - 1) * 3
  local tpm, held, reserved = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local h = redis.call('HMGET', key, 'tokens', 'day', 'spent', 'reserved')
  if h[2] then
    if h[1] and tpm >= 0 then redis.call('HSET', key, 'tokens', text(math.min(tpm, tonumber(h[1]) + held - tokens))) end
    if tonumber(h[2]) == day then
      redis.call('HSET', key, 'spent', text((tonumber(h[3]) or 0) + dollars),
        'reserved', text(math.max(0, (tonumber(h[4]) or 0) - reserved)))
    end
  end
end
return 1
"""


class RedisCounts:
    """What each subject of one environment used, over all processes."""

    def __init__(self, link: RedisLink, app: str, environment: str) -> None:
        self._link = link
        self._prefix = f"bundlectl:{{{app}:{environment}}}:limits:"
        self._take = link.client.register_script(TAKE)
        self._settle = link.client.register_script(SETTLE)
        self._local = MemoryCounts()

    def take(
        self, needs: Sequence[Need], at: datetime, *, instead: Sequence[Need] = (), refuse: bool = False
    ) -> Granted | Exceeded | Coroutine[Any, Any, Granted | Exceeded]:
        """Take all or nothing; see :class:`~bundlectl.router.limits.Counts`."""
        if self._link.up:
            return self._shared(needs, at, instead, refuse)
        return self._alone(needs, at, instead, refuse)

    def settle(self, granted: Granted, tokens: int, usd: float, at: datetime) -> None:
        """Put what was used in place of what was reserved, where that is."""
        if granted.local:
            self._local.settle(granted, tokens, usd, at)
        else:
            self._link.later(self._settled(granted, tokens, usd))

    async def _shared(
        self, needs: Sequence[Need], at: datetime, instead: Sequence[Need], refuse: bool
    ) -> Granted | Exceeded:
        taking = asyncio.ensure_future(self._taken([*needs, *instead], len(needs)))
        try:
            return await asyncio.shield(taking)
        except RedisAway:
            return self._alone(needs, at, instead, refuse)
        except asyncio.CancelledError:
            # The caller went away. Redis may have taken it all the same.
            taking.add_done_callback(self._released)
            raise

    def _alone(self, needs: Sequence[Need], at: datetime, instead: Sequence[Need], refuse: bool) -> Granted | Exceeded:
        if refuse:
            raise LimitsUnavailable(
                "What was used of the limits cannot be told now.",
                why="Redis is away, and this environment's bindings say: on_redis_down: refuse.",
                fix="Try again in some seconds.",
            )
        return self._local.take(needs, at, instead=instead)

    async def _taken(self, needs: Sequence[Need], first: int) -> Granted | Exceeded:
        keys = [self._prefix + need.subject for need in needs]
        arguments: list[str | int | float] = [first, KEPT_SECONDS]
        for need in needs:
            limit = need.limit
            bounds = (limit.requests_per_minute, limit.tokens_per_minute, limit.usd_per_day, limit.soft_usd_per_day)
            arguments += [-1 if bound is None else bound for bound in bounds]
            arguments += [need.requests, need.tokens, need.usd]
        verdict, *rest = [part.decode() for part in await self._link.call(self._take(keys, arguments))]
        if verdict == "no":
            return _exceeded(needs[int(rest[0]) - 1], rest[1], rest[2])
        instead, day, soft = rest
        passed = [needs[int(position) - 1] for position in soft.split(",") if position]
        if instead == "1":
            return Granted(needs[first:], True, int(day), passed, local=False)
        return Granted(needs[:first], False, int(day), passed, local=False)

    async def _settled(self, granted: Granted, tokens: int, usd: float) -> None:
        arguments: list[str | int | float] = [tokens, usd, granted.day]
        for need in granted.needs:
            rate = need.limit.tokens_per_minute
            arguments += [-1 if rate is None else rate, need.tokens, need.usd]
        keys = [self._prefix + need.subject for need in granted.needs]
        await self._link.call(self._settle(keys, arguments))

    def _released(self, taking: asyncio.Future[Granted | Exceeded]) -> None:
        if taking.cancelled() or taking.exception() is not None:
            return
        found = taking.result()
        if isinstance(found, Granted):
            self._link.later(self._settled(found, 0, 0.0))


def _exceeded(need: Need, kind: str, after: str) -> Exceeded:
    known: dict[str, Kind] = {"requests": "requests", "tokens": "tokens", "usd": "usd"}
    if after == "soon":
        return Exceeded(need, known[kind], SOON)
    seconds = float(after)
    return Exceeded(need, known[kind], None if seconds < 0 else seconds)
