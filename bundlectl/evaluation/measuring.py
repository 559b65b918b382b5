"""One row of a run: a case asked of the router, or given back as it was answered before, and scored.

A case that erred is tried once more and then recorded as an error. An error is what says nothing about the
bundle: the router raised, or recorded a failure; a limit or a missing identity turned the request away; a
fallback answered because a model was throttled, slow or away. A fallback that answered because the model's output
was no good, or because bindings disable the model, is what the bundle does: it is scored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from bundlectl.evaluation.pace import Pace
from bundlectl.evaluation.remembering import Memory
from bundlectl.evaluation.report import CaseResult, Row
from bundlectl.evaluation.scorers.score import AnyScorer, Sample, Score, failed, measured, total, weigh_every
from bundlectl.evaluation.suite import LoadedSuite, request_of
from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Answer, Request
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case

NO_ANSWER = "the router gave no answer"

_TRANSIENT = frozenset({"throttled", "timeout", "unavailable", "broken_stream", "open_circuit"})
"""Outcomes of an attempt at a model that say nothing about the bundle."""


class Answered(Protocol):
    """What the router makes of a request."""

    @property
    def answer(self) -> Answer | None:
        """The answer, or the refusal; ``None`` when nothing could answer."""
        ...

    @property
    def receipt(self) -> Receipt:
        """The record of how it came."""
        ...

    @property
    def passages(self) -> tuple[Passage, ...]:
        """What was packed into the prompt."""
        ...


Identity_contra = TypeVar("Identity_contra", contravariant=True)


class Answers(Protocol[Identity_contra]):
    """What a runner needs of the router."""

    async def handle(self, request: Request, identity: Identity_contra, /) -> Answered:
        """Answer a request for a caller.

        Raises:
            BundlectlError: it could not be answered at all.
        """
        ...


Identity = TypeVar("Identity")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a case: an answer with its receipt unless the router raised; ``error`` if it is not to be scored.

    ``seconds`` is ``None`` for an answer that was given before.
    """

    answered: Answered | None
    error: str | None
    seconds: float | None

    @property
    def usd(self) -> float | None:
        """What it cost. A router that raised made no receipt, so nobody knows."""
        return self.answered.receipt.cost.usd if self.answered is not None else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A row that was asked and is not scored. ``usd``: what asking cost; ``mark``: of an answer that was recalled."""

    case: Case
    repeat: int
    request: Request
    attempt: Attempt
    attempts: int
    at: datetime
    usd: float | None
    mark: str | None = None

    @property
    def answer(self) -> Answer | None:
        """The answer, where there is one to score."""
        answered = self.attempt.answered
        return answered.answer if answered is not None and self.attempt.error is None else None


@dataclass(frozen=True, slots=True)
class Measurer(Generic[Identity]):
    """Measures one case at a time; holds what is the same for all of them."""

    router: Answers[Identity]
    identity: Identity
    loaded: LoadedSuite
    profile: str
    scorers: Mapping[str, AnyScorer]
    pace: Pace
    pause: float
    clock: Callable[[], datetime]
    timer: Callable[[], float]
    capture: Callable[[Row, Answer], None] | None = None
    memory: Memory | None = None

    async def ask(self, case: Case, repeat: int) -> Asked:
        """Ask, a second time after an error; or give back what was answered before. It cost nothing now."""
        request = request_of(case, self.loaded.suite, self.profile)
        recalled = self.memory.recall(request, repeat) if self.memory is not None else None
        if recalled is not None:
            if self.capture is not None:
                self.capture((case.id, repeat), recalled.answer)
            return Asked(case, repeat, request, Attempt(recalled, None, None), 1, recalled.time, 0.0, recalled.mark)
        at = self.clock()
        attempt = await self._ask(request)
        attempts = 1
        costs = [attempt.usd]
        if attempt.error is not None:
            await asyncio.sleep(self.pause)
            at = self.clock()
            attempt = await self._ask(request)
            attempts = 2
            costs.append(attempt.usd)
        if self.capture is not None and attempt.answered is not None and attempt.answered.answer is not None:
            self.capture((case.id, repeat), attempt.answered.answer)
        return Asked(case, repeat, request, attempt, attempts, at, total(costs))

    async def score(self, asked: Asked, beside: Answer | None = None) -> CaseResult:
        """Score; scores that were kept with an answer are not made again."""
        memory = self.memory
        known: dict[str, Score] = {}
        leave: frozenset[str] = frozenset()
        if memory is not None and asked.mark is not None:
            known, leave = memory.scores(asked.mark, asked.case, beside), memory.timed
        todo = {key: scorer for key, scorer in self.scorers.items() if key not in known and key not in leave}
        fresh, judging = await self._scores(asked, todo, beside)
        if memory is not None:
            mark = asked.mark or self._keep(memory, asked)
            if mark is not None and fresh:
                memory.keep_scores(mark, asked.case, fresh, beside)
        every = known | fresh
        return self._result(asked, {key: every[key] for key in self.scorers if key in every}, judging)

    def _keep(self, memory: Memory, asked: Asked) -> str | None:
        answered = asked.attempt.answered
        if asked.attempt.error is not None or answered is None or answered.answer is None:
            return None
        return memory.keep(asked.request, asked.repeat, answered.answer, answered.receipt, answered.passages, asked.at)

    async def _ask(self, request: Request) -> Attempt:
        begun = self.timer()
        try:
            answered = await self.router.handle(request, self.identity)
        except (BundlectlError, OSError) as error:
            what = error.what if isinstance(error, BundlectlError) else (error.strerror or type(error).__name__)
            return Attempt(None, what, max(0.0, self.timer() - begun))
        seconds = max(0.0, self.timer() - begun)
        if any(attempt.outcome == "throttled" for attempt in answered.receipt.attempts):
            self.pace.throttled()
        else:
            self.pace.answered()
        return Attempt(answered, not_to_be_scored(answered.answer, answered.receipt), seconds)

    def _result(self, asked: Asked, scores: dict[str, Score], judging: float | None) -> CaseResult:
        case, attempt = asked.case, asked.attempt
        answer = attempt.answered.answer if attempt.answered is not None else None
        receipt = attempt.answered.receipt if attempt.answered is not None else None
        retrieval = receipt.retrieval if receipt is not None else None
        return CaseResult(
            id=case.id,
            tags=sorted(set(case.tags)),
            split=case.split,
            group=case.group,
            scores=scores,
            error=attempt.error,
            refused=answer.refused.code if answer is not None and answer.refused is not None else None,
            degraded=answer.degraded.reason if answer is not None and answer.degraded is not None else None,
            route=answer.route if answer is not None else None,
            cited=list(dict.fromkeys(c.document for c in answer.citations)) if answer is not None else [],
            receipt=receipt.id if receipt is not None else None,
            seconds=round(attempt.seconds, 6) if attempt.seconds is not None else None,
            attempts=asked.attempts,
            snapshots={retrieval.index: retrieval.snapshot} if retrieval is not None else {},
            time=asked.at,
            repeat=asked.repeat if asked.repeat > 1 else None,
            model=next((a.provider_model for a in reversed(receipt.attempts) if a.outcome == "ok"), None)
            if receipt is not None
            else None,
            usd=total([asked.usd, judging]),
            judging=judging or None,
            cached=True if attempt.seconds is None else None,
        )

    async def _scores(
        self, asked: Asked, scorers: Mapping[str, AnyScorer], beside: Answer | None
    ) -> tuple[dict[str, Score], float | None]:
        """Give the scores, and what judges cost; None where a price is not known."""
        case, answered = asked.case, asked.attempt.answered
        if asked.attempt.error is not None or answered is None or answered.answer is None:
            why = asked.attempt.error or NO_ANSWER
            return {key: failed(why) for key, scorer in scorers.items() if scorer.applies(case)}, 0.0
        seconds = asked.attempt.seconds or 0.0
        sample = Sample(case, answered.answer, answered.receipt, seconds, answered.passages, beside)
        found = await weigh_every(scorers, sample)
        return {key: one.score for key, one in found.items()}, total([one.usd for one in found.values()])


def mirrored(baseline: CaseResult, candidate: CaseResult, pairs: frozenset[str]) -> CaseResult:
    """Give the baseline's row with what the candidate's scores beside it leave: 1 less each of them."""
    scores = {
        key: measured(1 - score.value, score.why).model_copy(update={"judge": score.judge})
        if score.value is not None
        else score
        for key, score in candidate.scores.items()
        if key in pairs
    }
    return baseline.model_copy(update={"scores": baseline.scores | scores}) if scores else baseline


def not_to_be_scored(answer: Answer | None, receipt: Receipt) -> str | None:
    """Say why an answer says nothing about the bundle; ``None`` when it is to be scored."""
    if receipt.error is not None:
        return f"the router failed: {receipt.error.get('error', 'error')}"
    if answer is None:
        return NO_ANSWER
    if answer.refused is not None and answer.refused.code in ("limited", "unauthenticated"):
        return f"turned away: {answer.refused.code}"
    if answer.degraded is not None:
        causes = sorted({attempt.outcome for attempt in receipt.attempts} & _TRANSIENT)
        if causes:
            return "a fallback answered, because a model was " + " and ".join(causes)
    return None
