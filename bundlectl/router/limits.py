"""Limits and budgets as an environment's bindings set them: what each request takes of which, and what is said of it.

Counting is :mod:`~bundlectl.router.limits_memory` in one process, :mod:`~bundlectl.router.limits_redis` in several.
Both follow the same rules:

- requests and tokens per minute refill steadily; a minute's worth is the most that can be saved up.
- dollars are counted by days of UTC. What is *spent* and what requests under way have *reserved* is together never
  more than the hard limit.
- a request reserves the upper bound of one call before it is made: the prompt's estimated tokens and the model's
  ``max_tokens``, by the dearest route that may answer. When it ends, what it really used takes the place of that;
  what a failed one reserved is released. Of a call that was given up in the middle nobody says what it used: its
  prompt and the text that had come count, estimated, or hanging up before the end would cost nothing. What goes beyond
  (asking again, a fallback after an answer that did not fit, a prompt with more tokens than estimated) is added when it
  ends: by that of requests under way, and by nothing else, a limit may be passed.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Protocol

from bundlectl.inference.prices import MILLION, PriceBook
from bundlectl.inference.provider import Priced
from bundlectl.model.bindings import DEFAULT, Limit, Limits
from bundlectl.model.errors import BackendUnavailable
from bundlectl.router.routing import CompiledRoute

ASSUMED_OUTPUT: Final = 4096
"""Tokens of an answer to reserve for where the model's parameters set no maximum."""

Kind = Literal["requests", "tokens", "usd"]


class LimitsUnavailable(BackendUnavailable):
    """Nobody can tell what was used, and the bindings say to refuse then."""

    code = "limits_unavailable"


@dataclass(slots=True)
class Need:
    """What one request takes of one subject's limits. ``subject``: ``tenant:acme``, ``task:ask`` or ``route:fast``."""

    subject: str
    limit: Limit
    requests: int = 0
    tokens: int = 0
    usd: float = 0.0

    def named(self) -> str:
        """Give the subject in words."""
        kind, _, name = self.subject.partition(":")
        return f"{kind} {name}"


@dataclass(slots=True)
class Granted:
    """What was taken. ``instead``: the cheaper needs were. ``day`` counts from 1970; ``soft`` passed a soft limit."""

    needs: Sequence[Need]
    instead: bool
    day: int
    soft: Sequence[Need]
    local: bool = True
    """Whether this process's memory counted it."""


@dataclass(slots=True)
class Exceeded:
    """Which limit would be passed. ``retry_after``: seconds until it would not; ``None``: it never fits."""

    need: Need
    kind: Kind
    retry_after: float | None

    def reason(self) -> str:
        """Say it to the caller."""
        limit, whose = self.need.limit, self.need.named()
        if self.kind == "requests":
            return f"The limit of {whose}, {limit.requests_per_minute} requests per minute, is reached."
        if self.kind == "tokens":
            bound = f"the limit of {whose}, {limit.tokens_per_minute} tokens per minute"
            if self.retry_after is None:
                return f"The request may need {self.need.tokens} tokens, more than {bound}, ever lets pass."
            return f"The request may need {self.need.tokens} tokens, and {bound}, has fewer left."
        bound = f"the limit of {whose}, {limit.usd_per_day:g} US dollars per day"
        if self.retry_after is None:
            return f"The request may cost {self.need.usd:.6f} US dollars, more than {bound}, ever lets pass."
        return f"The request does not fit into what is left of {bound}."


class Counts(Protocol):
    """Who counts what was used."""

    def take(
        self, needs: Sequence[Need], at: datetime, *, instead: Sequence[Need] = (), refuse: bool = False
    ) -> Granted | Exceeded | Coroutine[Any, Any, Granted | Exceeded]:
        """Take all that is needed, or nothing.

        Args:
            needs: what is needed.
            at: the present time, by which this process's memory tells the day.
            instead: what to take in place of it once a soft limit is passed; empty: the same.
            refuse: whether to raise where others' counts cannot be reached; else this process counts for itself.

        Raises:
            LimitsUnavailable: they cannot be reached, and ``refuse``.
        """
        ...

    def settle(self, granted: Granted, tokens: int, usd: float, at: datetime) -> None:
        """Put what was really used in place of what was reserved; it does not wait."""
        ...


@dataclass(frozen=True, slots=True)
class _Bound:
    """What one call of a route takes at most. Dollars per token; a price that is not known reserves none."""

    input: float
    output: float
    max_tokens: int


class CompiledLimits:
    """The limits of one environment's bindings."""

    def __init__(
        self,
        limits: Limits,
        routes: Mapping[str, CompiledRoute],
        prices: PriceBook,
    ) -> None:
        self.refuse = limits.on_redis_down == "refuse"
        self.soft_route = limits.soft_route
        self._tenants = limits.tenants
        self._tasks = limits.tasks or {}
        self._routes = limits.routes or {}
        self._bounds = {name: _bound(route, prices) for name, route in routes.items()}
        every = [*self._tenants.values(), *self._tasks.values(), *self._routes.values()]
        self.at_entry = any(_at_entry(one) for one in [*self._tenants.values(), *self._tasks.values()])
        """Whether any request takes anything as it comes in."""
        self.when_calling = bool(self._routes) or any(_when_calling(one) for one in every)
        """Whether any reserves anything before a model is called."""

    def entering(self, tenant: str, task: str) -> list[Need]:
        """Give what a request takes as it comes in: one request, and a look at whether any money is left."""
        needs = []
        limit = self._tenants.get(tenant) or self._tenants.get(DEFAULT)
        if limit is not None and _at_entry(limit):
            needs.append(Need("tenant:" + tenant, limit, 1))
        limit = self._tasks.get(task) or self._tasks.get(DEFAULT)
        if limit is not None and _at_entry(limit):
            needs.append(Need("task:" + task, limit, 1))
        return needs

    def untold(self, route: str, prompt_tokens: int, output_tokens: int) -> tuple[int, float]:
        """Give tokens and dollars of a call that nobody says the usage of, by estimates of its tokens."""
        bound = self._bounds[route]
        if bound is None:
            return 0, 0.0
        return prompt_tokens + output_tokens, prompt_tokens * bound.input + output_tokens * bound.output

    def calling(self, tenant: str, task: str, routes: Sequence[str], prompt_tokens: int) -> list[Need]:
        """Give what a request reserves before a model is called.

        Args:
            tenant: whose it is.
            task: what it asks for.
            routes: which may answer, the first choice first.
            prompt_tokens: how long its prompt is, estimated.
        """
        tokens, usd = 0, 0.0
        for name in routes:
            bound = self._bounds[name]
            if bound is not None:
                tokens = max(tokens, prompt_tokens + bound.max_tokens)
                usd = max(usd, prompt_tokens * bound.input + bound.max_tokens * bound.output)
        needs = []
        limit = self._tenants.get(tenant) or self._tenants.get(DEFAULT)
        if limit is not None and _when_calling(limit):
            needs.append(Need("tenant:" + tenant, limit, 0, tokens, usd))
        limit = self._tasks.get(task) or self._tasks.get(DEFAULT)
        if limit is not None and _when_calling(limit):
            needs.append(Need("task:" + task, limit, 0, tokens, usd))
        limit = self._routes.get(routes[0]) or self._routes.get(DEFAULT)
        if limit is not None:
            needs.append(Need("route:" + routes[0], limit, 1, tokens, usd))
        return needs


def _at_entry(limit: Limit) -> bool:
    return limit.requests_per_minute is not None or limit.usd_per_day is not None


def _when_calling(limit: Limit) -> bool:
    return limit.tokens_per_minute is not None or limit.usd_per_day is not None or limit.soft_usd_per_day is not None


def _bound(route: CompiledRoute, prices: PriceBook) -> _Bound | None:
    """Bound one call; ``None`` where no model is called."""
    if route.provider is None or route.model.provider == "extractive":
        return None
    parameters = route.model.parameters
    stated = parameters.get("max_tokens") or parameters.get("max_completion_tokens")
    most = stated if isinstance(stated, int) and stated > 0 else ASSUMED_OUTPUT
    named = route.provider.priced_as(route.model) if isinstance(route.provider, Priced) else route.model.model or ""
    price = prices.prices.get((route.model.provider, named))
    if price is None:
        return _Bound(0.0, 0.0, most)
    dearest = max(price.input, price.cache_write_5m or 0.0, price.cache_write_1h or 0.0)
    return _Bound(dearest / MILLION, price.output / MILLION, most)


def soft_reason(soft: Sequence[Need]) -> str:
    """Say which soft limits are passed."""
    return "; ".join(
        f"{need.named()}: soft limit of {need.limit.soft_usd_per_day:g} US dollars per day" for need in soft
    )


def whole_seconds(seconds: float) -> int:
    """Give ``Retry-After`` (RFC 9110 section 10.2.3): whole seconds, at least one."""
    return max(1, math.ceil(seconds))
