"""Which route serves a request: the bundle's rules, the first that matches wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bundlectl.inference.provider import Provider
from bundlectl.model.components import Between, Model, Rule, When
from bundlectl.model.contract import Request
from bundlectl.model.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class CompiledRoute:
    """A route with its provider. ``timeout``, ``first_token`` and ``between_tokens`` in seconds.

    ``provider`` is ``None`` for a model that the bindings disable: no credential of it is ever fetched.
    """

    name: str
    model_name: str
    model: Model
    provider: Provider | None
    timeout: float
    first_token: float | None
    between_tokens: float | None
    retries: int
    fallback: tuple[str, ...]
    asynchronous: bool

    @property
    def label(self) -> str:
        """How reasons name it."""
        return f"route {self.name} (model {self.model_name})"


class NoRoute(BackendUnavailable):
    """No rule of the bundle matches the request."""

    code = "no_route"


class RouteTable:
    """The rules, compiled: for each, what it asks in words and the conditions that must all hold."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(rule.when, rule.use, _why(n, len(rules), rule)) for n, rule in enumerate(rules, start=1)]

    def choose(
        self,
        request: Request,
        response_format: str,
        prompt_tokens: int,
        unhealthy: Callable[[str], bool] = lambda model: False,
    ) -> tuple[str, str]:
        """Give the route's name and why it was chosen, for people; ``unhealthy`` says it of a model.

        Raises:
            NoRoute: no rule matches.
        """
        for when, use, why in self._rules:
            if when is None or _matches(when, request, response_format, prompt_tokens, unhealthy):
                return use, why
        raise NoRoute(
            "No rule of this release selects a route for the request.",
            fix="End routes.select with a rule without 'when'.",
        )


def _matches(
    when: When, request: Request, response_format: str, prompt_tokens: int, unhealthy: Callable[[str], bool]
) -> bool:
    return (
        when.task in (None, request.task)
        and when.profile in (None, request.policy_profile)
        and when.latency_class in (None, request.latency_class)
        and when.response_format in (None, response_format)
        and when.tenant in (None, request.tenant_id)
        and when.role in (None, request.user_role)
        and (when.prompt_tokens is None or _between(when.prompt_tokens, prompt_tokens))
        and (when.unhealthy is None or unhealthy(when.unhealthy))
    )


def _between(range_: Between, value: int) -> bool:
    return (range_.over is None or value > range_.over) and (range_.under is None or value < range_.under)


def _why(number: int, count: int, rule: Rule) -> str:
    if rule.when is None:
        return f"rule {number} of {count}: matches everything"
    asked = []
    for name, value in rule.when.form().items():
        if isinstance(value, dict):
            asked += [f"{name} {side} {bound}" for side, bound in value.items()]
        else:
            asked.append(f"{name} is {value}")
    return f"rule {number} of {count}: {' and '.join(asked) or 'matches everything'}"
