"""Calling models for one request: the chosen route and its retries, then its fallbacks, in order.

The only layer that retries. A route's timeout holds for everything that is done on it: attempts, pauses and
asking again; its fallback starts with a timeout of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from bundlectl.inference.provider import Delta, ModelCall, ModelReply, Passage, ProviderError
from bundlectl.model.contract import Usage
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.receipt import Attempt
from bundlectl.router.assemble import Compiled
from bundlectl.router.health import Breaker, RetryBudget
from bundlectl.router.routing import CompiledRoute

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
SLOW_READER = 1.0
"""Seconds that a caller may keep a stream waiting; after more, a stream that breaks says nothing of the model."""


class NothingAnswered(BackendUnavailable):
    """The route and all its fallbacks failed."""

    code = "nothing_answered"


class Invocation:
    """The calls of one request. ``attempts`` is the record of them, in order."""

    def __init__(
        self,
        compiled: Compiled,
        route: CompiledRoute,
        messages: Sequence[Mapping[str, str]],
        question: str,
        passages: tuple[Passage, ...],
        schema: Mapping[str, Any] | None,
        budget: RetryBudget,
        chance: Callable[[], float],
    ) -> None:
        self.attempts: list[Attempt] = []
        self.spent: list[tuple[str, str | None, Usage]] = []
        """(provider, model as the price book names it, usage) of each attempt that answered."""
        self.untold: list[tuple[str, str]] = []
        """(route, the text that had come) of each call that was given up in the middle: nobody says what it used."""
        self.committed = False
        """Whether text of the present attempt was released to the caller of the router."""
        self._chain = [route, *(compiled.routes[name] for name in route.fallback)]
        self._at = 0
        self._spared = ""
        self._ends: float | None = None
        self._earned = False
        self._breakers = compiled.breakers
        self._prompt = messages
        self._messages = messages
        self._question = question
        self._passages = passages
        self._schema = schema
        self._budget = budget
        self._chance = chance

    @property
    def route(self) -> CompiledRoute:
        """The route that is being tried, or that gave the last reply."""
        return self._chain[min(self._at, len(self._chain) - 1)]

    @property
    def degraded(self) -> str | None:
        """Why the last reply is not the first choice's; ``None`` when it is."""
        if self._at == 0:
            return None
        return f"{self._spared or self._failure()}; answered by {self.route.label}"

    @property
    def chain(self) -> tuple[str, ...]:
        """The routes that may answer, the present one first."""
        return tuple(route.name for route in self._chain[self._at :])

    def spare(self, name: str, why: str) -> None:
        """Begin at a fallback: the routes before it are not asked at all."""
        self._at = next(n for n, route in enumerate(self._chain) if route.name == name)
        self._spared = why

    async def reply(self) -> ModelReply:
        """Give the next reply: of the present route, else of the next that answers.

        Raises:
            NothingAnswered: no route is left.
        """
        while self._at < len(self._chain):
            found = await self._on_route(self.route)
            if found is not None:
                return found
            self.fall_back()
        raise self._nothing()

    def ask_again(self, answer: str, problem: str) -> None:
        """Prepare the next reply to be the same model's second try: it is shown its answer and what is wrong."""
        self._invalid(problem_only=False)
        self._messages = [
            *self._prompt,
            {"role": "assistant", "content": answer},
            {
                "role": "user",
                "content": f"That does not fit the required form: {problem}\n"
                "Answer again, with nothing but one JSON object of that form.",
            },
        ]

    def fall_back(self, *, invalid: bool = False) -> None:
        """Go on to the next route; ``invalid``: the last reply did not fit the required form."""
        if invalid:
            self._invalid(problem_only=True)
        self._at += 1
        self._ends = None
        self._messages = self._prompt

    @property
    def may_ask_again(self) -> bool:
        """Whether the present route's model can do better: it reads prompts and has time left."""
        provider = self.route.provider
        return provider is not None and provider.reads_prompt and self._left() > 0

    async def stream(self) -> AsyncGenerator[Delta | None, None]:
        """Give a reply's deltas; ``None`` means: that attempt failed, drop what you hold of it, another one follows.

        A caller that has released any of it sets :attr:`committed`; from then on no other model goes on.

        Raises:
            NothingAnswered: no route is left.
            ProviderError: the stream broke after it was committed to.
        """
        while self._at < len(self._chain):
            async with aclosing(self._stream_on_route(self.route)) as deltas:
                async for delta in deltas:
                    yield delta
                    if delta is not None and delta.reply is not None:
                        return
            self.fall_back()
        raise self._nothing()

    # ------------------------------------------------------------ one route

    async def _on_route(self, route: CompiledRoute) -> ModelReply | None:
        for number in range(route.retries + 1):
            breaker = self._may_call(route)
            if breaker is None or route.provider is None:
                return None
            began = time.monotonic()
            try:
                reply = await route.provider.generate(self._call(route))
            except ProviderError as error:
                self._failed(route, breaker, error, began)
                if not await self._pause(route, number, error):
                    return None
            except BaseException as ended:
                self._gave_up(route, breaker, ended, began)
                raise
            else:
                self._answered(route, breaker, reply, began)
                return reply
        return None

    async def _stream_on_route(self, route: CompiledRoute) -> AsyncGenerator[Delta | None, None]:
        for number in range(route.retries + 1):
            breaker = self._may_call(route)
            if breaker is None or route.provider is None:
                return
            began = time.monotonic()
            whole = False
            kept = 0.0
            came: list[str] = []
            try:
                async with aclosing(route.provider.stream(self._call(route))) as deltas:
                    async for delta in deltas:
                        if delta.reply is not None:
                            self._answered(route, breaker, delta.reply, began)
                            whole = True
                        came.append(delta.text)
                        at = time.monotonic()
                        yield delta
                        kept += time.monotonic() - at
                        if delta.reply is not None:
                            return
                raise ProviderError("broken_stream", f"{route.label}: the stream ended without its end marker.")
            except ProviderError as error:
                self._failed(route, breaker, error, began, blameless=kept > SLOW_READER)
                if self.committed:
                    raise
                if came:
                    yield None
                if not await self._pause(route, number, error):
                    return
            except BaseException as ended:
                if not whole:
                    self._gave_up(route, breaker, ended, began, "".join(came))
                raise

    def _may_call(self, route: CompiledRoute) -> Breaker | None:
        if route.provider is None:
            self._record(route, "disabled", "disabled by the environment's bindings", 0.0)
            return None
        now = time.monotonic()
        if self._ends is None:
            self._ends = now + route.timeout
        if not self._earned:  # once a request: fallbacks are asked because something struggles
            self._earned = True
            self._budget.earn()
        breaker = self._breakers[route.model_name]
        if self._left() <= 0:
            return None
        if not breaker.allows(now):
            self._record(route, "open_circuit", "the model failed repeatedly and is left alone for a while", 0.0)
            return None
        return breaker

    def _call(self, route: CompiledRoute) -> ModelCall:
        return ModelCall(
            model=route.model.model,
            messages=self._messages,
            question=self._question,
            passages=self._passages,
            parameters=route.model.parameters,
            schema=self._schema,
            total=self._left(),
            first_token=route.first_token,
            between_tokens=route.between_tokens,
        )

    async def _pause(self, route: CompiledRoute, number: int, error: ProviderError) -> bool:
        """Wait before a retry; False when there will be none: nothing to gain, no budget, or no time."""
        same_again = route.provider is not None and route.provider.deterministic
        if error.kind == "refused" or same_again or number >= route.retries:
            return False
        pause = self._chance() * min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        pause = max(pause, error.retry_after or 0.0)
        if pause >= self._left() or not self._budget.spend():
            return False
        await asyncio.sleep(pause)
        return True

    def _left(self) -> float:
        return self.route.timeout if self._ends is None else self._ends - time.monotonic()

    # ------------------------------------------------------------ the record

    def _answered(self, route: CompiledRoute, breaker: Breaker, reply: ModelReply, began: float) -> None:
        breaker.succeeded()
        self._record(route, "ok", "cut off at its longest" if reply.cut else "", time.monotonic() - began, reply)
        self._spend(route, reply)

    def _spend(self, route: CompiledRoute, reply: ModelReply) -> None:
        self.spent.append((route.model.provider, reply.priced_as or route.model.model, reply.usage))

    def _failed(
        self, route: CompiledRoute, breaker: Breaker, error: ProviderError, began: float, *, blameless: bool = False
    ) -> None:
        if blameless or error.kind == "refused":
            breaker.released(began)
        else:
            breaker.failed(time.monotonic(), began)
        self._record(route, error.kind, error.why, time.monotonic() - began, error.reply)
        if error.reply is not None:
            self._spend(route, error.reply)

    def _gave_up(
        self, route: CompiledRoute, breaker: Breaker, ended: BaseException, began: float, came: str = ""
    ) -> None:
        """End a call in the middle: that says nothing about the model."""
        breaker.released(began)
        if isinstance(ended, asyncio.CancelledError | GeneratorExit):
            self.untold.append((route.name, came))
            why = "the caller went away, or the answer was stopped here"
            self._record(route, "given_up", why, time.monotonic() - began)

    def _record(
        self, route: CompiledRoute, outcome: Any, why: str, seconds: float, reply: ModelReply | None = None
    ) -> None:
        self.attempts.append(
            Attempt.unchecked(
                {
                    "route": route.name,
                    "model": route.model_name,
                    "provider": route.model.provider,
                    "provider_model": reply.provider_model if reply else None,
                    "outcome": outcome,
                    "why": why,
                    "seconds": seconds,
                    "provider_seconds": reply.provider_seconds if reply else None,
                    "usage": reply.usage if reply else Usage(),
                }
            )
        )

    def _invalid(self, *, problem_only: bool) -> None:
        """Mark the last attempt: it answered, in the wrong form. The form's errors may quote texts and stay out."""
        why = "the output did not fit its schema" + ("" if problem_only else "; asked again")
        self.attempts[-1] = self.attempts[-1].model_copy(update={"outcome": "invalid", "why": why})

    def _failure(self) -> str:
        first = self._chain[0]
        of_first = [attempt for attempt in self.attempts if attempt.route == first.name]
        if not of_first:
            return f"{first.label} had no time"
        last = of_first[-1]
        return f"{first.label} failed: {last.outcome}" + (f" ({last.why})" if last.why else "")

    def _nothing(self) -> NothingAnswered:
        tried = "; ".join(
            f"{attempt.route}: {attempt.outcome}" + (f" ({attempt.why})" if attempt.why else "")
            for attempt in self.attempts
        )
        return NothingAnswered(
            "No route could answer the request.",
            why=tried,
            fix="Try again later; the receipt names every attempt.",
        )
