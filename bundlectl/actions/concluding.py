"""What a run comes to: judged together with the earlier looks at the digest, and beside the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from bundlectl.actions.baselines import (
    Baseline,
    Look,
    baseline_rows_of,
    candidates_tried,
    looks,
    rows_of,
    same_exam,
)
from bundlectl.actions.context import Context
from bundlectl.evaluation.comparison import compare
from bundlectl.evaluation.judges import identities, unfit
from bundlectl.evaluation.pace import Budget
from bundlectl.evaluation.report import CaseResult, Report, report_digest
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.scorers.score import AnyScorer
from bundlectl.evaluation.statistics import look_alpha
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.attestation import Comparison, EvaluationResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.trust.keyring import VerifiedKeyring


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One bundle by one suite.

    ``bound``: the digest of the bindings. ``keyring``: None where nothing of the registry is believed. ``signs``:
    whether a result will be signed, by ``actor``, who is an evaluator. ``repeats``: how often each case is asked.
    """

    ctx: Context
    app: str
    bundle: Bundle
    bindings: Bindings
    bound: str
    baseline: Baseline | None
    loaded: LoadedSuite
    repeats: int
    keyring: VerifiedKeyring | None
    actor: str
    signs: bool


def conclude(
    exam: Exam,
    report: Report,
    scorers: Mapping[str, AnyScorer],
    budget: Budget,
    *,
    started: datetime,
    stored: bool,
    uncompared: str,
) -> EvaluationResult:
    """Judge a run together with the earlier looks at the digest.

    Args:
        exam: what was measured by what.
        report: the rows.
        scorers: those of the run; they know who judged.
        budget: what the run cost.
        started: when it began.
        stored: whether the baseline's rows are those of its own signed result.
        uncompared: what to say where there is no baseline.
    """
    earlier, poolable = _earlier(exam, report)
    look = len(earlier) + 1
    undecided = unfit(exam.loaded.suite, scorers, exam.loaded.calibrations, *_both(report, poolable))
    compared = _compare(exam, report, poolable, look, undecided, stored=stored)
    result = summarise(
        exam.loaded,
        report.cases,
        bindings=exam.bound,
        actor=exam.actor,
        started=started,
        finished=exam.ctx.clock(),
        report=report_digest(report),
        repeats=exam.repeats,
        compared=compared,
        uncompared=uncompared,
        earlier=rows_of(poolable),
        unfit=undecided,
    )
    result = _judged(exam, result, report, scorers, poolable)
    cached, oldest = 0, None
    for row in report.cases if stored else report.rows:
        cached += row.cached is not None
        oldest = min(oldest or row.time, row.time)
    early = oldest is not None and oldest < started.replace(microsecond=0)
    if compared is None and look == 1 and not cached and not early:
        return result.model_copy(update={"usd": budget.spent} if budget.spent and not budget.unknown else {})
    return result.model_copy(
        update={
            "look": look,
            "pooled": [look.result.report for look in poolable] or None,
            "cache_hits": cached + (len(report.baseline.cases) if stored and report.baseline else 0),
            "oldest": oldest,
            "usd": None if budget.unknown else budget.spent,
        }
    )


def _earlier(exam: Exam, report: Report) -> tuple[list[Look], list[Look]]:
    """Give this evaluator's earlier looks at the digest, and those of them whose rows can be pooled.

    Another evaluator's are not among them: where a gate asks for two, neither may rest on the other's word.
    """
    if not exam.signs or exam.keyring is None:
        return [], []
    every = looks(exam.ctx, exam.keyring, exam.app, exam.bundle.digest, exam.loaded)
    own = [look for look in every if exam.actor in look.signers]
    snapshots = {index: snapshot for row in report.cases for index, snapshot in row.snapshots.items()}
    return own, [
        look
        for look in own
        if look.report is not None and same_exam(look, exam.loaded, exam.bound) and look.result.snapshots == snapshots
    ]


def _judged(
    exam: Exam,
    result: EvaluationResult,
    report: Report,
    scorers: Mapping[str, AnyScorer],
    poolable: Sequence[Look],
) -> EvaluationResult:
    """Add who judged, how well those agree with people, and what they cost."""
    spent = [row.judging for row in report.rows if row.judging is not None]
    return result.model_copy(
        update={
            "judging": math.fsum(spent) if spent else None,
            "scorers": identities(scorers, exam.loaded.calibrations, *_both(report, poolable)),
            "skipped": _skipped(exam),
        }
    )


def _skipped(exam: Exam) -> list[str] | None:
    """Name the models of the routes that were switched off."""
    routed = {route.model for route in exam.bundle.components.routes.routes.values()}
    return sorted(routed.intersection(exam.bindings.disabled_models)) or None


def _compare(
    exam: Exam, report: Report, poolable: Sequence[Look], look: int, undecided: Mapping[str, str], *, stored: bool
) -> Comparison | None:
    baseline, beside = exam.baseline, report.baseline
    if baseline is None or beside is None:
        return None
    found = compare(exam.loaded, *_both(report, poolable), look=look, unfit=undecided)
    complete = report.complete
    tried = None
    if baseline.since is not None and exam.keyring is not None:
        suite, candidate = exam.loaded.suite.name, exam.bundle.digest
        tried = candidates_tried(exam.ctx, exam.keyring, exam.app, suite, baseline.since, candidate)
    return Comparison(
        baseline=beside.bundle,
        bindings=beside.bindings,
        environment=baseline.environment,
        stored=stored,
        alpha=look_alpha(look),
        scores=list(found.scores),
        verdict=found.verdict if complete or found.verdict is None else "inconclusive",
        why=found.why if complete else "the run is not complete",
        tried=tried,
    )


def _both(report: Report, poolable: Sequence[Look]) -> tuple[Iterable[CaseResult], Iterable[CaseResult]]:
    """Give the rows that count for candidate and baseline, those of earlier looks among them."""
    beside = report.baseline
    theirs = chain(beside.cases, baseline_rows_of(poolable, beside.bundle, beside.bindings)) if beside else ()
    return chain(report.cases, rows_of(poolable)), theirs
