"""Run a suite: every chosen case through the router, so many at a time, each asked, scored and journalled.

How one row comes about, and what is an error of it, is in ``measuring.py``.

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
from typing import Generic

from bundlectl.evaluation.jobs import Done, Job, Jobs
from bundlectl.evaluation.journal import Journal
from bundlectl.evaluation.measuring import Answers, Identity, Measurer, mirrored
from bundlectl.evaluation.pace import Budget, Pace
from bundlectl.evaluation.remembering import Memory
from bundlectl.evaluation.report import CaseResult, Row
from bundlectl.evaluation.scorers.judge import Judge
from bundlectl.evaluation.scorers.score import AnyScorer, OpenedScorer
from bundlectl.evaluation.scorers.table import make_scorers, paired
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.components import Output
from bundlectl.model.contract import Answer
from bundlectl.model.suite import Case

PAUSE = 1.0
"""Seconds before the second attempt: throttling passes, defects do not."""


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
        Measurer(
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
