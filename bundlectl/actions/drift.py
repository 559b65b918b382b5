"""drift: say whether what is live still answers as it did when its evaluation was signed.

The bundle cannot have changed, its digest says so. What can change underneath it is the model behind a name, and an
index that is followed. So the suite runs again on what is live, as it is live, and is held against the signed result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bundlectl.actions.baselines import Look, deterministic, looks, measuring, rows_of, same_exam
from bundlectl.actions.context import Context
from bundlectl.actions.judging import judge_bindings, open_judges
from bundlectl.actions.releasing import Standing, require_live, stand
from bundlectl.actions.routing import router_of
from bundlectl.evaluation.comparison import Change, changes, compare
from bundlectl.evaluation.judges import unfit
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.runner import Side, run_sides
from bundlectl.evaluation.scorers.table import make_scorers, paired
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.attestation import ComparedScore
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.model.reference import parse_environment
from bundlectl.model.types import Strict, Time
from bundlectl.router.identity import LOCAL

ALPHA = 0.005
"""One-sided: the 99 % interval. A watch that runs daily must not cry wolf every month."""

MARGIN = 0.05
"""For suites that have no margin of their own."""

AGAIN = 5
"""How often a case that flipped is asked again."""


class Moved(Strict):
    """Something the bundle rests on that is not what it was: a model as its provider names it, or a snapshot."""

    what: str
    then: list[str]
    now: list[str]


class Flip(Strict):
    """A case that scored otherwise than when it was signed. ``stayed``: in how many of ``again`` further runs."""

    case: str
    scorer: str
    then: float
    now: float
    stayed: int
    again: int


class Drifted(Strict):
    """What drift returns. ``signed``: when the result that this is held against was measured."""

    app: str
    environment: str
    bundle: str
    suite: str
    signed: Time | None
    moved: list[Moved]
    scores: list[ComparedScore]
    flips: list[Flip]
    verdict: Literal["same", "drifted", "inconclusive"]
    why: str
    fix: str = ""


def drift(
    ctx: Context, reference: str, *, suite: Path, judges_file: Path | None = None, concurrency: int = 8
) -> Drifted:
    """Run a suite on what is live and hold it against its signed result.

    Args:
        ctx: the context; nothing is signed.
        reference: the environment, ``APP:ENV``.
        suite: the suite file.
        judges_file: where the suite's judges are reached.
        concurrency: cases under way at once.

    Raises:
        NotFound: nothing is live there.
        SourceError: suite or dataset is not right.
        BackendUnavailable: more cases erred than the suite allows: an outage, which says nothing about drift.
        VerificationFailed: what is live, or a stored report, is not what its digest says.
    """
    ref = parse_environment(reference)
    if ref.serial is not None:
        raise UsageError("Drift is about what is live now.", fix=f"bundlectl drift {ref.app}:{ref.environment}")
    loaded = read_suite(suite)
    # What is live stands beside no other bundle here, so there is nothing to prefer.
    loaded = loaded.without(paired(loaded.suite.scorers))
    judges = judge_bindings(judges_file, loaded.suite)
    standing = stand(ctx, ref.app, ref.environment)
    _, live = require_live(standing)
    bundle = ctx.registry.get_bundle(ref.app, live.release.bundle)
    signed = _signed(ctx, standing, bundle, loaded)
    if not signed:
        return _unsigned(standing, bundle, loaded, suite)
    then = rows_of(signed)
    found = asyncio.run(_measure(ctx, standing, bundle, loaded, then, concurrency, judges))
    now, again = found.now, found.again
    _check_outage(now, loaded)
    if found.unfit:
        # A judge that changed, or that nobody held against people, would be a change of the measure.
        for key, why in found.unfit.items():
            ctx.reporter.warn(f"{key} is left out: {why}")
        loaded = loaded.without(found.unfit)
        if not loaded.suite.scorers:
            return _unmeasurable(standing, bundle, loaded, found.unfit)
    return _judge(standing, bundle, loaded, signed, now, again)


def _signed(ctx: Context, standing: Standing, bundle: Bundle, loaded: LoadedSuite) -> list[Look]:
    """Give the signed results that this run can be held against: the same exam, the same bindings."""
    _, live = require_live(standing)
    bound = digest(canonical(live.release.bindings.form()))
    found = looks(ctx, standing.keyring, standing.app, bundle.digest, loaded)
    return [look for look in found if look.report is not None and same_exam(look, loaded, bound)]


def _unsigned(standing: Standing, bundle: Bundle, loaded: LoadedSuite, suite: Path) -> Drifted:
    place = f"{standing.app}:{standing.environment}"
    why = f"{place} has no signed result of this suite and dataset, with the bindings that it is live with"
    return _not_compared(standing, bundle, loaded, why, f"bundlectl eval {place} --suite {suite} --signer URI")


def _unmeasurable(standing: Standing, bundle: Bundle, loaded: LoadedSuite, unfit: Mapping[str, str]) -> Drifted:
    why = "; ".join(f"{key}: {why}" for key, why in unfit.items())
    fix = "Bind the suite's judges with --judge-bindings, and calibrate them."
    return _not_compared(standing, bundle, loaded, why, fix)


def _not_compared(standing: Standing, bundle: Bundle, loaded: LoadedSuite, why: str, fix: str) -> Drifted:
    return Drifted(
        app=standing.app,
        environment=standing.environment,
        bundle=bundle.digest,
        suite=loaded.suite.name,
        signed=None,
        moved=[],
        scores=[],
        flips=[],
        verdict="inconclusive",
        why=why,
        fix=fix,
    )


@dataclass(frozen=True)
class _Found:
    """Rows of every case, and of those that flipped asked again; ``unfit``: judged scorers that say nothing here."""

    now: Sequence[CaseResult]
    again: Sequence[CaseResult]
    unfit: dict[str, str]


async def _measure(
    ctx: Context,
    standing: Standing,
    bundle: Bundle,
    loaded: LoadedSuite,
    then: Sequence[CaseResult],
    concurrency: int,
    bindings: Mapping[str, ModelBinding],
) -> _Found:
    """Ask every case, then those that flipped again."""
    _, live = require_live(standing)
    task = bundle.components.application.tasks.get(loaded.suite.task)
    if task is None:
        raise UsageError(f"What is live has no task {loaded.suite.task!r}, which suite {loaded.suite.name!r} measures.")
    async with (
        router_of(ctx, standing.app, bundle, measuring(live.release.bindings)) as (router, _),
        open_judges(ctx, loaded.suite, bindings) as judges,
    ):
        scorers = make_scorers(loaded.suite.scorers, None, loaded.code, judges)

        async def ask(part: LoadedSuite, repeats: int, label: str) -> Sequence[CaseResult]:
            side = Side(
                router,
                identity=LOCAL,
                profile=task.profiles[0],
                output=bundle.components.output.get(loaded.suite.task),
                judges=judges,
            )
            with ctx.reporter.progress(label, len(part.chosen) * repeats) as bar:
                (found,) = await run_sides(
                    part,
                    [side],
                    repeats=repeats,
                    concurrency=concurrency,
                    on_done=lambda result: bar.advance(note=result.id),
                    clock=ctx.clock,
                )
            return found

        now = await ask(loaded, loaded.suite.repeats or 1, loaded.suite.name)
        left_out = unfit(loaded.suite, scorers, loaded.calibrations, now, then, every=True)
        flipped = {change.case for change in changes(loaded.without(left_out), now, then)}
        if not flipped:
            return _Found(now, [], left_out)
        ctx.reporter.say(f"{len(flipped)} cases score otherwise than when they were signed; {AGAIN} more times each")
        part = replace(loaded, chosen=tuple(case for case in loaded.cases if case.id in flipped))
        return _Found(now, await ask(part, AGAIN, "again"), left_out)


def _check_outage(now: Sequence[CaseResult], loaded: LoadedSuite) -> None:
    errors = [row for row in now if row.error is not None]
    if len(errors) > loaded.suite.max_errors * len(now):
        why = "; ".join(sorted({row.error for row in errors if row.error})[:3])
        raise BackendUnavailable(
            f"{len(errors)} of {len(now)} cases could not be measured, so nothing is known about drift.",
            why=why,
            fix="Try again when the models answer; bundlectl receipts shows what they answered with.",
        )


# ---------------------------------------------------------------- judging


def _judge(
    standing: Standing,
    bundle: Bundle,
    loaded: LoadedSuite,
    signed: Sequence[Look],
    now: Sequence[CaseResult],
    again: Sequence[CaseResult],
) -> Drifted:
    _, live = require_live(standing)
    then = rows_of(signed)
    moved = _moved(then, now)
    margins = {} if loaded.gates else {line.key: MARGIN for line in loaded.suite.scorers if line.name != "latency"}
    compared = compare(loaded, now, then, alpha=ALPHA, margins=margins)
    flips = [_flip(change, again) for change in changes(loaded, now, then)]
    stayed = [flip for flip in flips if flip.stayed == flip.again]
    fixed = deterministic(bundle, live.release.bindings)
    differing = [score for score in compared.scores if score.claim in ("better", "worse")]
    broken = sorted({flip.case for flip in stayed if flip.case in loaded.suite.must_pass and flip.now < flip.then})
    verdict: Literal["same", "drifted", "inconclusive"] = "drifted"
    if moved:
        why = "; ".join(f"{m.what} is {', '.join(m.now)}, and was {', '.join(m.then)}" for m in moved)
    elif broken:
        why = f"cases that must pass fail now, {AGAIN + 1} times in a row: {', '.join(broken)}"
    elif differing:
        why = "; ".join(f"{score.scorer} is {score.claim}: {score.why}" for score in differing)
    elif stayed and fixed:
        why = f"{len({flip.case for flip in stayed})} cases answer otherwise for good, though no model is in play"
    elif not flips or compared.verdict == "pass":
        verdict, why = "same", f"{len(loaded.cases)} cases score as they did when they were signed"
        if flips:
            why = f"no scorer differs by its margin; {len({flip.case for flip in stayed})} cases flipped and stay"
        elif compared.verdict != "pass" and not fixed:
            verdict, why = "inconclusive", f"no case flipped, and that is not enough: {compared.why}"
    else:
        verdict, why = "inconclusive", compared.why
    return Drifted(
        app=standing.app,
        environment=standing.environment,
        bundle=bundle.digest,
        suite=loaded.suite.name,
        signed=signed[-1].result.finished,
        moved=moved,
        scores=list(compared.scores),
        flips=flips,
        verdict=verdict,
        why=why,
    )


def _moved(then: Sequence[CaseResult], now: Sequence[CaseResult]) -> list[Moved]:
    """Find models and snapshots that are not what they were, for each route and index that was used both times."""
    found: list[Moved] = []
    for what, before, after in (
        ("the model of route", _models(then), _models(now)),
        ("the snapshot of index", _snapshots(then), _snapshots(now)),
    ):
        found += [
            Moved(what=f"{what} {name}", then=sorted(before[name]), now=sorted(after[name]))
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ]
    return found


def _models(rows: Sequence[CaseResult]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.route is not None and row.model is not None and row.error is None:
            found.setdefault(row.route, set()).add(row.model)
    return found


def _snapshots(rows: Sequence[CaseResult]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for index, snapshot in row.snapshots.items():
            found.setdefault(index, set()).add(snapshot)
    return found


def _flip(change: Change, again: Sequence[CaseResult]) -> Flip:
    values = [
        score.value
        for row in again
        if row.id == change.case and (score := row.scores.get(change.scorer)) is not None and score.value is not None
    ]
    return Flip(
        case=change.case,
        scorer=change.scorer,
        then=change.baseline,
        now=change.candidate,
        stayed=sum(value != change.baseline for value in values),
        again=AGAIN,
    )
