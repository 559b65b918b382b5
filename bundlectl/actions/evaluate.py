"""eval: measure a bundle by a suite, through the real router, and sign what was found."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bundlectl.actions.baselines import Baseline, find_baseline, looks_taken, measuring, stored_rows
from bundlectl.actions.caching import ingredients_of, memory_of, open_cache
from bundlectl.actions.concluding import Exam, conclude
from bundlectl.actions.conditions import bindings_of, live_bindings, named_suites
from bundlectl.actions.context import Context
from bundlectl.actions.judging import judge_bindings, judges_digest, open_judges
from bundlectl.actions.opening import load_bundle, open_trust
from bundlectl.actions.reporting import check_folder, write_reports
from bundlectl.actions.routing import router_of, without_addresses
from bundlectl.evaluation.cache import EvaluationCache
from bundlectl.evaluation.comparison import Change, changes
from bundlectl.evaluation.journal import Journal, journal_key
from bundlectl.evaluation.pace import Budget
from bundlectl.evaluation.remembering import Memory
from bundlectl.evaluation.report import Beside, CaseResult, Report, Row, make_report, report_bytes
from bundlectl.evaluation.reports.material import Material
from bundlectl.evaluation.runner import Side, run_sides
from bundlectl.evaluation.scorers.judge import Judge
from bundlectl.evaluation.scorers.score import AnyScorer
from bundlectl.evaluation.scorers.table import demands_time, make_scorers, paired, timed
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.attestation import EVALUATION, PAYLOAD_TYPE, EvaluationResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.contract import Answer
from bundlectl.model.errors import UsageError
from bundlectl.model.types import Strict
from bundlectl.router.assemble import Compiled
from bundlectl.router.identity import LOCAL, Identity
from bundlectl.trust.envelope import make_statement, seal


class Evaluated(Strict):
    """What eval returns.

    ``changes``: the cases that score otherwise than the baseline's, the greatest losses first. ``attestation`` is
    absent when the bundle is not stored, nobody signed, or the suite was not run to its end: the newest result counts
    at a gate, and part of a suite says nothing there.
    """

    app: str
    bundle: str
    result: EvaluationResult
    report: Report
    changes: list[Change] = []
    attestation: str | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to evaluate.

    ``baseline``: a bundle or an environment to compare with. ``repeats``: how often each case is asked; by default as
    the suite says. ``max_cost``: US dollars after which no further row is begun. ``only``: ids or patterns of the
    cases to run; such a run never passes. ``sign``: False to attach nothing. ``fresh``: forget what an interrupted
    run measured. ``report``: a folder for reports, with what was answered; a folder of its own for each suite where
    there are several. ``cache``: give back what earlier runs were answered to the same, and keep what is answered.
    ``judge_bindings``: a file that says where the suite's judges are reached.
    """

    concurrency: int = 8
    only: Sequence[str] = ()
    sign: bool = True
    fresh: bool = False
    baseline: str | None = None
    repeats: int | None = None
    max_cost: float | None = None
    report: Path | None = None
    cache: bool = True
    judge_bindings: Path | None = None


def evaluate(
    ctx: Context,
    reference: str,
    *,
    suite: Path | None = None,
    bindings_file: Path | None = None,
    settings: Settings | None = None,
) -> list[Evaluated]:
    """Measure a bundle by a suite, or by every suite that it names; beside a baseline where one is named.

    A run that is interrupted, or stopped by its cost, keeps what it measured and goes on from there. A stored bundle
    gets a signed result attached to its digest; a source that was not built is measured and nothing is attached.
    Evaluating a digest again adds to what was measured of it, and never replaces it.

    Args:
        ctx: the context; its signer must be an evaluator of the app.
        reference: a stored bundle, an environment, or a source path.
        suite: the suite file; by default each suite the bundle names, found beside its source.
        bindings_file: bindings to run with, baseline and candidate alike; by default those that an environment named
            as the baseline, or as the bundle to measure, is live with; else none, and models that need an address
            are skipped.
        settings: how.

    Raises:
        SourceError: suite or dataset is not right.
        UsageError: no suite was named or found, the baseline is another app's, or the key is not an evaluator's.
    """
    settings = settings or Settings()
    app, bundle = load_bundle(ctx, reference)
    baseline = find_baseline(ctx, settings.baseline, app) if settings.baseline is not None else None
    bindings, baseline = bindings_of(bindings_file, bundle, baseline, live_bindings(ctx, reference, app))
    if bindings_file is None and bindings.disabled_models and bindings == without_addresses(bundle):
        skipped = ", ".join(bindings.disabled_models)
        ctx.reporter.say(f"without --bindings, models that need an address are skipped: {skipped}")
    found = []
    files = [suite] if suite is not None else named_suites(reference, bundle)
    if settings.report is not None:
        check_folder(settings.report)
    for file in files:
        loaded = read_suite(file)
        for warning in loaded.undecidable():
            ctx.reporter.warn(warning)
        if baseline is None and (preferring := paired(loaded.suite.scorers)):
            ctx.reporter.warn(
                f"there is no baseline to prefer anything to, so nothing is scored by {', '.join(preferring)}"
            )
        loaded = loaded.only(settings.only) if settings.only else loaded
        chosen = settings
        if settings.report is not None and len(files) > 1:
            chosen = replace(settings, report=settings.report / loaded.suite.name)
        found.append(_Evaluation(ctx, app, bundle, bindings, baseline, loaded, chosen).run())
    return found


class _Evaluation:
    """One bundle by one suite. ``run`` reads top to bottom as what happens."""

    def __init__(
        self,
        ctx: Context,
        app: str,
        bundle: Bundle,
        bindings: Bindings,
        baseline: Baseline | None,
        loaded: LoadedSuite,
        settings: Settings,
    ) -> None:
        self._ctx, self._app, self._bundle, self._bindings = ctx, app, bundle, bindings
        self._baseline, self._loaded, self._settings = baseline, loaded, settings
        self._answers: list[dict[Row, Answer]] = [{}, {}]
        self._bound = digest(canonical(bindings.form()))
        self._judges = judge_bindings(settings.judge_bindings, loaded.suite)
        self._scorers: dict[str, AnyScorer] = {}
        self._repeats = settings.repeats or loaded.suite.repeats or 1
        stored = ctx.registry.has_bundle(app, bundle.digest)
        self._note = "" if stored else "the bundle is not in the registry, so nothing was attached to it"
        if not loaded.whole:
            self._note = "only part of the suite was run, so nothing was attached"
        self._signer = ctx.signer("evaluator") if settings.sign and stored and loaded.whole else None
        self._keyring = open_trust(ctx) if self._signer is not None or baseline is not None else None
        self._actor, self._look = "unsigned", 1
        if self._signer is not None and self._keyring is not None:
            self._actor = self._keyring.signing_principal(self._signer, "evaluator", app, None)
            self._look += looks_taken(ctx, self._keyring, app, bundle.digest, loaded.suite.name, self._actor)

    def run(self) -> Evaluated:
        """Measure, judge, sign, attach."""
        ctx, loaded, settings = self._ctx, self._loaded, self._settings
        started = ctx.clock()
        stored = self._stored_rows()
        budget = Budget(settings.max_cost)
        with ExitStack() as stack:
            journals = [stack.enter_context(journal) for journal in self._journals(measure_baseline=stored is None)]
            cache = stack.enter_context(open_cache(ctx)) if settings.cache else None
            results = asyncio.run(self._measure(journals, budget, cache))
            if not budget.open:
                ctx.reporter.warn(_stopped(budget))
            beside = self._beside(stored if stored is not None else results[1] if self._baseline else None)
            report = make_report(
                loaded,
                results[0],
                bundle=self._bundle.digest,
                bindings=self._bound,
                repeats=self._repeats,
                baseline=beside,
                baseline_repeats=self._repeats if stored is None else 1,
            )
            result = conclude(
                self._exam(),
                report,
                self._scorers,
                budget,
                started=started,
                stored=stored is not None,
                uncompared=self._uncompared(),
            )
            attestation = self._attach(report, result) if report.complete else None
            if report.complete or settings.only:
                for journal in journals:
                    journal.discard()
            else:
                self._note = "the run is not complete, so nothing was attached; what was measured is kept for the next"
        changed = changes(loaded, report.cases, report.baseline.cases) if report.baseline else []
        if settings.report is not None:
            write_reports(settings.report, Material(self._app, loaded, report, result, changed, *self._answers))
            ctx.reporter.say(f"reports: {settings.report}")
        return Evaluated(
            app=self._app,
            bundle=self._bundle.digest,
            result=result,
            report=report,
            changes=changed,
            attestation=attestation,
            note=self._note,
        )

    def _stored_rows(self) -> list[CaseResult] | None:
        if self._baseline is None or self._keyring is None:
            return None
        if paired(self._loaded.suite.scorers):
            return None  # its answers have to be at hand, to stand beside the candidate's
        found = stored_rows(self._ctx, self._keyring, self._app, self._baseline, self._loaded)
        if found is not None:
            self._ctx.reporter.say("nothing of the baseline can answer differently: its own signed result is used")
        return found

    def _journals(self, *, measure_baseline: bool) -> list[Journal]:
        ours, beside = self._bundle.digest, None
        asked = functools.partial(
            journal_key,
            self._loaded,
            judges=judges_digest(self._loaded.suite, self._judges),
            signed=(self._actor, self._look) if self._signer is not None else None,
        )
        keys = []
        if self._baseline is not None and measure_baseline:
            # Rows of a comparison are kept apart from those of a run by itself: they belong beside each other in time.
            beside = self._baseline.bundle.digest
            theirs = f"the baseline of {ours}"
            keys.append(asked(bundle=beside, bindings=self._baseline.bound, beside=theirs))
        keys.insert(0, asked(bundle=ours, bindings=self._bound, beside=beside))
        journals = [Journal(self._ctx.workspace / "journals", key) for key in keys]
        kept = sum(len(journal.finished) for journal in journals)
        if self._settings.fresh:
            for journal in journals:
                journal.forget()
        elif kept:
            total = len(self._loaded.chosen) * self._repeats * len(journals)
            self._ctx.reporter.say(f"going on: {kept} of {total} cases were measured before")
        return journals

    async def _measure(
        self, journals: Sequence[Journal], budget: Budget, cache: EvaluationCache | None
    ) -> list[Sequence[CaseResult]]:
        loaded = self._loaded
        measured = [(self._bundle, self._bindings)]
        if self._baseline is not None and len(journals) > 1:
            measured.append((self._baseline.bundle, self._baseline.run_with))
        async with AsyncExitStack() as stack:
            judges = await stack.enter_async_context(open_judges(self._ctx, loaded.suite, self._judges))
            self._scorers = make_scorers(loaded.suite.scorers, None, loaded.code, judges)
            sides = [
                await self._side(stack, bundle, bindings, journal, answers, cache, judges)
                for (bundle, bindings), journal, answers in zip(measured, journals, self._answers, strict=False)
            ]
            total = len(loaded.chosen) * self._repeats * len(sides)
            with self._ctx.reporter.progress(loaded.suite.name, total) as bar:
                return await run_sides(
                    loaded,
                    sides,
                    repeats=self._repeats,
                    concurrency=self._settings.concurrency,
                    budget=budget,
                    on_done=lambda result: bar.advance(
                        note=f"{result.id}  {budget.spent:.2f} USD" if budget.spent else result.id
                    ),
                    clock=self._ctx.clock,
                )

    async def _side(
        self,
        stack: AsyncExitStack,
        bundle: Bundle,
        bindings: Bindings,
        journal: Journal,
        answers: dict[Row, Answer],
        cache: EvaluationCache | None,
        judges: Mapping[str, Judge],
    ) -> Side[Identity]:
        suite = self._loaded.suite
        task = bundle.components.application.tasks.get(suite.task)
        if task is None:
            which = "The bundle" if bundle is self._bundle else "The baseline"
            raise UsageError(
                f"{which} has no task {suite.task!r}, which suite {suite.name!r} measures.",
                fix=f"Its tasks are {', '.join(sorted(bundle.components.application.tasks))}.",
            )
        router, compiled = await stack.enter_async_context(router_of(self._ctx, self._app, bundle, measuring(bindings)))
        return Side(
            router,
            identity=LOCAL,
            profile=task.profiles[0],
            output=bundle.components.output.get(suite.task),
            journal=journal,
            capture=answers.__setitem__ if self._settings.report is not None else None,
            judges=judges,
            memory=self._memory(cache, bundle, measuring(bindings), compiled) if cache is not None else None,
        )

    def _memory(
        self, cache: EvaluationCache, bundle: Bundle, bindings: Bindings, compiled: Compiled
    ) -> Callable[[Mapping[str, AnyScorer]], Memory]:
        beside = None
        if self._baseline is not None:
            which = "candidate" if bundle is self._bundle else "baseline"
            beside = f"{which} of {self._bundle.digest} beside {self._baseline.bundle.digest}"
        of = ingredients_of(
            self._ctx,
            bundle,
            bindings,
            compiled,
            actor=self._actor,
            look=self._look,
            suite=self._loaded.suite.name if self._signer is not None else None,
            beside=beside,
        )
        lines = self._loaded.suite.scorers
        # Answers that were given before take no time. Where time counts, every row of the run has to have its own.
        anew = demands_time(lines) or self._loaded.suite.bounds is not None
        anew = anew or (self._signer is not None and bool(timed(lines)))
        return memory_of(cache, of, bundle, compiled, self._loaded.suite, anew=anew)

    def _beside(self, rows: Sequence[CaseResult] | None) -> Beside | None:
        if self._baseline is None or rows is None:
            return None
        return Beside(bundle=self._baseline.bundle.digest, bindings=self._baseline.bound, cases=rows)

    def _exam(self) -> Exam:
        return Exam(
            ctx=self._ctx,
            app=self._app,
            bundle=self._bundle,
            bindings=self._bindings,
            bound=self._bound,
            baseline=self._baseline,
            loaded=self._loaded,
            repeats=self._repeats,
            keyring=self._keyring,
            actor=self._actor,
            signs=self._signer is not None,
        )

    def _uncompared(self) -> str:
        if self._settings.baseline is not None:
            return ""
        return f"it was compared with no baseline: name one, e.g. --baseline {self._app}:prod"

    def _attach(self, report: Report, result: EvaluationResult) -> str | None:
        if self._signer is None:
            return None
        self._ctx.registry.put_blob(self._app, report_bytes(report))
        statement = make_statement(self._app, self._bundle.digest, EVALUATION, result.form())
        envelope = seal(statement, PAYLOAD_TYPE, [self._signer])
        return self._ctx.registry.attach(self._app, self._bundle.digest, "evaluation", envelope)


def _stopped(budget: Budget) -> str:
    if budget.unknown:
        return "stopped: what a model costs is not known, so nobody knows when --max-cost is reached"
    return f"stopped: {budget.spent:.2f} USD were spent, and --max-cost allows {budget.limit or 0:g}"
