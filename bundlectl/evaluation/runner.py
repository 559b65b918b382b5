"""Run a suite: every chosen case through the router, so many at a time, each asked, scored and journalled.

A case that erred is tried once more and then recorded as an error. An error is what says nothing about the
bundle: the router raised, or recorded a failure; a limit or a missing identity turned the request away; a
fallback answered because a model was throttled, slow or away. A fallback that answered because the model's output
was no good, or because bindings disable the model, is what the bundle does: it is scored.

Two bundles are measured side by side (:func:`run_sides`): each case is asked of both, one right after the other and
the first in turn, so that a provider that changes during the run changes for both.

A model that throttles slows the run down: so many rows at once are halved, and grow again row by row.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from bundlectl.evaluation.jobs import Done, Job, Jobs
from bundlectl.evaluation.journal import Journal
from bundlectl.evaluation.pace import Budget, Pace
from bundlectl.evaluation.remembering import Memory
from bundlectl.evaluation.report import CaseResult, Row
from bundlectl.evaluation.scorers.judge import Judge
from bundlectl.evaluation.scorers.score import (
    AnyScorer,
    OpenedScorer,
    Sample,
    Score,
    failed,
    measured,
    total,
    weigh_every,
)
from bundlectl.evaluation.scorers.table import make_scorers, paired
from bundlectl.evaluation.suite import LoadedSuite, request_of
from bundlectl.inference.provider import Passage
from bundlectl.model.components import Output
from bundlectl.model.contract import Answer, Request
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case

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
) -> Sequence[CaseResult]:
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
    side = Side(router, identity=identity, profile=profile, output=output, journal=journal)
    (results,) = await run_sides(
        loaded, [side], concurrency=concurrency, on_done=on_done, pause=pause, clock=clock, timer=timer
    )
    return results


@dataclass(frozen=True, kw_only=True)
class Side(Generic[Identity]):
    """One of the bundles of a run: its router, and what :func:`run` says of the other fields.

    ``capture`` is given each answer as it comes, for reports that show them; results hold no text. ``memory``: what
    earlier runs were answered, and where this one's answers are kept. ``judges``: those that scorers ask.
    """

    router: Answers[Identity] = field(kw_only=False)
    identity: Identity
    profile: str
    output: Output | None = None
    journal: Journal | None = None
    capture: Callable[[Row, Answer], None] | None = None
    memory: Callable[[Mapping[str, AnyScorer]], Memory] | None = None
    judges: Mapping[str, Judge] = field(default_factory=dict)


WAIT = 0.02
"""Seconds after which a worker that stands back looks again whether it may go on."""


async def run_sides(
    loaded: LoadedSuite,
    sides: Sequence[Side[Identity]],
    *,
    repeats: int = 1,
    concurrency: int = 8,
    budget: Budget | None = None,
    on_done: Callable[[CaseResult], None] = lambda result: None,
    pause: float = PAUSE,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    timer: Callable[[], float] = time.perf_counter,
) -> list[Sequence[CaseResult]]:
    """Ask every chosen case of every side, ``repeats`` times, interleaved.

    Returns:
        the results of each side, in the order of the dataset, the repeats of a case together. Rows that the budget
        did not allow are missing.

    Raises:
        BackendUnavailable: a journal cannot be written.
        UsageError: a scorer of the suite's own cannot be loaded; nothing was asked.
    """
    budget = budget or Budget()
    pace = Pace(concurrency, pause, timer)
    pairs = paired(loaded.suite.scorers)
    together = bool(pairs) and len(sides) == 2
    made = [
        {
            key: scorer
            for key, scorer in make_scorers(loaded.suite.scorers, side.output, loaded.code, side.judges).items()
            # Beside no baseline there is nothing to prefer, and the baseline's scores follow from the candidate's.
            if key not in pairs or (together and number == 0)
        }
        for number, side in enumerate(sides)
    ]
    ones = [
        _One(
            side.router,
            side.identity,
            loaded,
            side.profile,
            scorers,
            pace,
            pause,
            clock,
            timer,
            side.capture,
            side.memory(scorers) if side.memory is not None else None,
        )
        for side, scorers in zip(sides, made, strict=True)
    ]
    done = [Done(len(loaded.chosen) * repeats) for _ in sides]

    def places() -> Iterator[tuple[int, Case, int, list[int]]]:
        """Give each place with its case, its repeat and its turns, in the order in which they are asked."""
        for repeat in range(1, repeats + 1):
            for position, case in enumerate(loaded.chosen):
                turns = [(turn + position + repeat) % len(sides) for turn in range(len(sides))]
                yield position * repeats + repeat - 1, case, repeat, turns

    def jobs_left() -> Iterator[Job]:
        for place, case, repeat, turns in places():
            todo = tuple(number for number in turns if place not in done[number])
            if together and todo:
                yield Job(todo, case, repeat, place)
            else:
                yield from (Job((number,), case, repeat, place) for number in todo)

    for place, case, repeat, turns in places() if any(side.journal and side.journal.finished for side in sides) else ():
        kept = {
            number: row
            for number in turns
            if (journal := sides[number].journal) is not None
            and (row := journal.finished.get((case.id, repeat))) is not None
        }
        if together and len(kept) < len(sides):
            # A journal has no texts, so one side's answer cannot be scored beside the other's that it holds.
            continue
        for number, row in kept.items():
            done[number].put(place, row)
            budget.take(row)
            on_done(row)
    jobs = Jobs(jobs_left())

    async def rows_of(job: Job) -> dict[int, CaseResult]:
        asked = {number: await ones[number].ask(job.case, job.repeat) for number in job.sides}
        if not together:
            return {number: await ones[number].score(row) for number, row in asked.items()}
        candidate = await ones[0].score(asked[0], asked[1].answer)
        return {0: candidate, 1: mirrored(await ones[1].score(asked[1]), candidate, pairs)}

    async def work(number: int) -> None:
        # Workers share the queue: each takes the next row when it is free, which keeps all of them busy.
        while budget.open and jobs.next is not None:
            if number >= pace.now:
                await asyncio.sleep(WAIT)
                continue
            job = jobs.take()
            # What earlier runs were answered waits for nothing, and Ctrl-C has to get its turn.
            await asyncio.sleep(0)
            for side, result in (await rows_of(job)).items():
                journal = sides[side].journal
                # What the cache gave back for nothing it will give back again.
                if journal is not None and not (result.cached and not result.judging):
                    journal.add(result)
                done[side].put(job.place, result)
                budget.take(result)
                on_done(result)

    # A full look of the collector at all that is loaded takes as long as an answer, and nobody is asked meanwhile.
    resting = gc.get_freeze_count() == 0
    if resting:
        gc.freeze()
    opened = [scorer for one in ones for scorer in one.scorers.values() if isinstance(scorer, OpenedScorer)]
    workers: list[asyncio.Task[None]] = []
    try:
        # Before anything is asked: what scores nothing should cost nothing.
        await asyncio.gather(*(scorer.open() for scorer in opened if jobs.next is not None))
        workers += [asyncio.create_task(work(number)) for number in range(pace.most)]
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await asyncio.gather(*(scorer.close() for scorer in opened), return_exceptions=True)
        if resting:
            gc.unfreeze()
    return [rows.in_order() for rows in done]


@dataclass(frozen=True, slots=True)
class _Attempt:
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
class _Asked:
    """A row that was asked and is not scored. ``usd``: what asking cost; ``mark``: of an answer that was recalled."""

    case: Case
    repeat: int
    request: Request
    attempt: _Attempt
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
class _One(Generic[Identity]):
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

    async def ask(self, case: Case, repeat: int) -> _Asked:
        """Ask, a second time after an error; or give back what was answered before. It cost nothing now."""
        request = request_of(case, self.loaded.suite, self.profile)
        recalled = self.memory.recall(request, repeat) if self.memory is not None else None
        if recalled is not None:
            if self.capture is not None:
                self.capture((case.id, repeat), recalled.answer)
            return _Asked(case, repeat, request, _Attempt(recalled, None, None), 1, recalled.time, 0.0, recalled.mark)
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
        return _Asked(case, repeat, request, attempt, attempts, at, total(costs))

    async def score(self, asked: _Asked, beside: Answer | None = None) -> CaseResult:
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

    def _keep(self, memory: Memory, asked: _Asked) -> str | None:
        answered = asked.attempt.answered
        if asked.attempt.error is not None or answered is None or answered.answer is None:
            return None
        return memory.keep(asked.request, asked.repeat, answered.answer, answered.receipt, answered.passages, asked.at)

    async def _ask(self, request: Request) -> _Attempt:
        begun = self.timer()
        try:
            answered = await self.router.handle(request, self.identity)
        except (BundlectlError, OSError) as error:
            what = error.what if isinstance(error, BundlectlError) else (error.strerror or type(error).__name__)
            return _Attempt(None, what, max(0.0, self.timer() - begun))
        seconds = max(0.0, self.timer() - begun)
        if any(attempt.outcome == "throttled" for attempt in answered.receipt.attempts):
            self.pace.throttled()
        else:
            self.pace.answered()
        return _Attempt(answered, not_to_be_scored(answered.answer, answered.receipt), seconds)

    def _result(self, asked: _Asked, scores: dict[str, Score], judging: float | None) -> CaseResult:
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
        self, asked: _Asked, scorers: Mapping[str, AnyScorer], beside: Answer | None
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
