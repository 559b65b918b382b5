"""A judge: a model that scores answers, reached like any other model, with its own deadline, retries and turns.

What a judge says counts only in the form that was asked for. A reply that is no JSON of that form is asked for once
more; then there is no ruling, and the row is an error. Nothing a judge can say turns that into a score.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic_core import from_json

from bundlectl.evaluation.scorers.score import total
from bundlectl.inference.prices import PriceBook
from bundlectl.inference.provider import ModelCall, ModelReply, Provider, ProviderError
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.suite import Judge as Settings
from bundlectl.model.types import seconds

PAUSE = 0.5
"""Seconds before the first retry of a call; doubled each time."""
LONGEST_PAUSE = 20.0

T = TypeVar("T")


class NoRuling(BackendUnavailable):
    """The judge did not answer, or not in the form that was asked for. ``usd``: what its replies cost."""

    code = "no_ruling"

    def __init__(self, what: str, usd: float | None) -> None:
        super().__init__(what)
        self.usd = usd


@dataclass(frozen=True, slots=True)
class Ruling(Generic[T]):
    """What a judge said. ``usd``: None where a price is not known; ``model``: its id as its provider returned it."""

    said: T
    usd: float | None
    model: str | None


class Judge:
    """One judge of a suite, for one run; concurrent calls wait for their turn."""

    def __init__(
        self, name: str, settings: Settings, binding: ModelBinding, provider: Provider, prices: PriceBook
    ) -> None:
        self.name = name
        self._settings, self._binding, self._provider, self._prices = settings, binding, provider, prices
        self._turns = asyncio.Semaphore(settings.concurrency)

    @property
    def concurrency(self) -> int:
        """How many calls of it are under way at once."""
        return self._settings.concurrency

    @property
    def identity(self) -> Mapping[str, Any]:
        """Which model judges, where and how; never a credential."""
        endpoint = endpoint_of(self._binding)
        return {
            "provider": self._settings.provider,
            "model": self._settings.model,
            **({"endpoint": endpoint} if endpoint is not None else {}),
            "parameters": self._settings.parameters,
        }

    async def rule(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], read: Callable[[Any], T]
    ) -> Ruling[T]:
        """Ask.

        Args:
            messages: the prompt.
            schema: JSON Schema of the reply.
            read: takes the reply's JSON apart; raises ValueError when it is not as it has to be.

        Raises:
            NoRuling: no reply, or twice one that cannot be read.
        """
        spent: list[float | None] = []
        problem = ""
        for _ in range(2):
            reply = await self._reply(messages, schema, spent)
            spent.append(
                self._prices.usd(self._settings.provider, reply.priced_as or self._settings.model, reply.usage)
            )
            try:
                said = read(from_json(reply.text, allow_inf_nan=False))
            except ValueError as error:
                # The parser's message would quote the reply, and with it perhaps the answer that is judged.
                problem = str(error) if isinstance(error, Misread) else "its reply is not JSON of the form"
                continue
            return Ruling(said, total(spent), reply.provider_model)
        raise NoRuling(f"the judge {self.name} gave no ruling, asked twice: {problem}", total(spent))

    async def _reply(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], spent: Sequence[float | None]
    ) -> ModelReply:
        call = ModelCall(
            model=self._settings.model,
            messages=messages,
            question="",
            parameters=self._settings.parameters,
            schema=schema,
            total=seconds(self._settings.timeout),
        )
        for number in range(self._settings.retries + 1):
            try:
                async with self._turns:
                    return await self._provider.generate(call)
            except ProviderError as error:
                if error.reply is not None:
                    return error.reply  # it came whole, and says nothing: no ruling, and not for nothing
                if error.kind == "refused" or number == self._settings.retries:
                    why = f" ({error.why})" if error.why else ""
                    raise NoRuling(f"the judge {self.name} failed: {error.kind}{why}", total(spent)) from error
                await asyncio.sleep(max(min(LONGEST_PAUSE, PAUSE * 2**number), error.retry_after or 0.0))
        raise AssertionError("a range of at least one is never empty")


class Misread(ValueError):
    """A judge's reply is JSON and not a ruling; the message says why and quotes nothing."""


def endpoint_of(binding: ModelBinding) -> str | None:
    """Say where a judge is reached, without user, password or query; None for a provider's own address."""
    for place in (binding.inference_profile, binding.endpoint):
        if place is not None:
            return place
    if binding.base_url is None:
        return binding.region
    parts = urlsplit(binding.base_url)
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"


def number_of(value: Any, key: str) -> float:
    """Take a number out of a reply.

    Raises:
        Misread: it is not there, or no finite number.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise Misread(f"its {key} is not a number")
    return float(found)
