"""Run a suite: every chosen case through the router, so many at a time, each asked, scored and journalled.

A case that erred is tried once more and then recorded as an error. An error is what says nothing about the
bundle: the router raised, or recorded a failure; a limit or a missing identity turned the request away; a
fallback answered because a model was throttled, slow or away. A fallback that answered because the model's output
was no good, or because bindings disable the model, is what the bundle does: it is scored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from bundlectl.evaluation.journal import Journal
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.scorers.score import Score, Scorer, failed, score_case
from bundlectl.evaluation.scorers.table import make_scorers
from bundlectl.evaluation.suite import LoadedSuite, request_of
from bundlectl.model.components import Output
from bundlectl.model.contract import Answer, Request
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case

MAX_CONCURRENCY = 256
PAUSE = 1.0
"""Seconds before the second attempt: throttling passes, defects do not."""

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


async def run(
    loaded: LoadedSuite,
    router: Answers[Identity],
    *,
    identity: Identity,
    profile: str,
    output: Output | None = None,
    concurrency: int = 8,
    journal: Journal | None = None,
    on_done: Callable[[CaseResult], None] = lambda result: None,
    pause: float = PAUSE,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    timer: Callable[[], float] = time.perf_counter,
) -> list[CaseResult]:
    """Ask and score every chosen case.

    Args:
        loaded: the suite.
        router: the bundle's router, its cache off.
        identity: a caller who may claim every tenant and role of the dataset.
        profile: the policy profile for cases where neither case nor suite names one.
        output: how the bundle's task answers; the scorer json_schema reads its schema.
        concurrency: how many cases are under way at once, 1 to 256.
        journal: holds what an earlier run finished, and is given each case as it finishes.
        on_done: called with each result as it comes, those of the journal first.
        pause: seconds before the second attempt.
        clock: the present time.
        timer: monotonic seconds, for latency.

    Returns:
        the results, in the order of the dataset. A run that is cancelled returns nothing; its journal has what
        was finished.

    Raises:
        BackendUnavailable: the journal cannot be written.
    """
    one = _One(router, identity, loaded, profile, make_scorers(loaded.suite.scorers, output), pause, clock, timer)
    done: dict[str, CaseResult] = {}
    for case in loaded.chosen:
        if journal is not None and (kept := journal.finished.get(case.id)) is not None:
            done[case.id] = kept
            on_done(kept)
    left = iter([case for case in loaded.chosen if case.id not in done])

    async def work(cases: Iterator[Case]) -> None:
        # Workers share the iterator: each takes the next case when it is free, which keeps all of them busy.
        for case in cases:
            result = await one.measure(case)
            if journal is not None:
                journal.add(result)
            done[case.id] = result
            on_done(result)

    workers = [asyncio.create_task(work(left)) for _ in range(max(1, min(concurrency, MAX_CONCURRENCY)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [done[case.id] for case in loaded.chosen]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try at a case: an answer with its receipt unless the router raised; ``error`` if it is not to be scored."""

    answered: Answered | None
    error: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _One(Generic[Identity]):
    """Measures one case at a time; holds what is the same for all of them."""

    router: Answers[Identity]
    identity: Identity
    loaded: LoadedSuite
    profile: str
    scorers: Mapping[str, Scorer]
    pause: float
    clock: Callable[[], datetime]
    timer: Callable[[], float]

    async def measure(self, case: Case) -> CaseResult:
        """Ask, a second time after an error, and score."""
        at = self.clock()
        attempt = await self._ask(case)
        attempts = 1
        if attempt.error is not None:
            await asyncio.sleep(self.pause)
            at = self.clock()
            attempt = await self._ask(case)
            attempts = 2
        return self._result(case, attempt, attempts, at)

    async def _ask(self, case: Case) -> _Attempt:
        request = request_of(case, self.loaded.suite, self.profile)
        begun = self.timer()
        try:
            answered = await self.router.handle(request, self.identity)
        except (BundlectlError, OSError) as error:
            what = error.what if isinstance(error, BundlectlError) else (error.strerror or type(error).__name__)
            return _Attempt(None, what, max(0.0, self.timer() - begun))
        seconds = max(0.0, self.timer() - begun)
        return _Attempt(answered, not_to_be_scored(answered.answer, answered.receipt), seconds)

    def _result(self, case: Case, attempt: _Attempt, attempts: int, at: datetime) -> CaseResult:
        answer = attempt.answered.answer if attempt.answered is not None else None
        receipt = attempt.answered.receipt if attempt.answered is not None else None
        retrieval = receipt.retrieval if receipt is not None else None
        return CaseResult(
            id=case.id,
            tags=sorted(set(case.tags)),
            split=case.split,
            group=case.group,
            scores=self._scores(case, attempt),
            error=attempt.error,
            refused=answer.refused.code if answer is not None and answer.refused is not None else None,
            degraded=answer.degraded.reason if answer is not None and answer.degraded is not None else None,
            route=answer.route if answer is not None else None,
            cited=list(dict.fromkeys(c.document for c in answer.citations)) if answer is not None else [],
            receipt=receipt.id if receipt is not None else None,
            seconds=round(attempt.seconds, 6),
            attempts=attempts,
            snapshots={retrieval.index: retrieval.snapshot} if retrieval is not None else {},
            time=at,
        )

    def _scores(self, case: Case, attempt: _Attempt) -> dict[str, Score]:
        answered = attempt.answered
        if attempt.error is not None or answered is None or answered.answer is None:
            why = attempt.error or NO_ANSWER
            return {key: failed(why) for key, scorer in self.scorers.items() if scorer.applies(case)}
        answer, receipt = answered.answer, answered.receipt
        scores = {
            key: score_case(scorer, case, answer, receipt, attempt.seconds) for key, scorer in self.scorers.items()
        }
        return {key: score for key, score in scores.items() if score is not None}


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
