"""eval: measure a bundle by a suite, through the real router, and sign what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from bundlectl.actions.context import Context, Progress
from bundlectl.actions.opening import load_bundle, open_trust
from bundlectl.actions.routing import router_of, without_addresses
from bundlectl.bundling.checks import find_suites
from bundlectl.evaluation.journal import Journal, journal_key
from bundlectl.evaluation.report import CaseResult, Report, make_report, report_bytes
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import run
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.attestation import EVALUATION, PAYLOAD_TYPE, EvaluationResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import UsageError
from bundlectl.model.reference import SourceReference, parse_reference
from bundlectl.model.types import Strict
from bundlectl.router.identity import LOCAL
from bundlectl.trust.envelope import make_statement, seal


class Evaluated(Strict):
    """What eval returns. ``attestation`` is absent when the bundle is not stored or nobody signed."""

    app: str
    bundle: str
    result: EvaluationResult
    report: Report
    attestation: str | None
    note: str = ""


def evaluate(
    ctx: Context,
    reference: str,
    *,
    suite: Path | None = None,
    bindings_file: Path | None = None,
    concurrency: int = 8,
    only: Sequence[str] = (),
    sign: bool = True,
    fresh: bool = False,
) -> list[Evaluated]:
    """Measure a bundle by a suite, or by every suite that it names.

    A run that is interrupted keeps what it measured and goes on from there. A stored bundle gets a signed
    result attached to its digest; a source that was not built is measured and nothing is attached.

    Args:
        ctx: the context; its signer must be an evaluator of the app.
        reference: a stored bundle, an environment, or a source path.
        suite: the suite file; by default each suite the bundle names, found beside its source.
        bindings_file: bindings to run with; by default none, and models that need an address are skipped.
        concurrency: cases under way at once.
        only: ids or patterns of the cases to run; such a run never passes, and nothing is attached.
        sign: False to attach nothing.
        fresh: forget what an interrupted run measured.

    Raises:
        SourceError: suite or dataset is not right.
        UsageError: no suite was named or found, or the key is not an evaluator's.
    """
    app, bundle = load_bundle(ctx, reference)
    bindings = _bindings(bindings_file, bundle)
    if bindings.disabled_models and bindings_file is None:
        skipped = ", ".join(bindings.disabled_models)
        ctx.reporter.say(f"without --bindings, models that need an address are skipped: {skipped}")
    found = []
    for file in [suite] if suite is not None else _named_suites(reference, bundle):
        loaded = read_suite(file)
        found.append(
            _one(ctx, app, bundle, bindings, loaded.only(only) if only else loaded, concurrency, sign=sign, fresh=fresh)
        )
    return found


def _one(
    ctx: Context,
    app: str,
    bundle: Bundle,
    bindings: Bindings,
    loaded: LoadedSuite,
    concurrency: int,
    *,
    sign: bool,
    fresh: bool,
) -> Evaluated:
    stored = ctx.registry.has_bundle(app, bundle.digest)
    # A part of the suite is for looking: attached, it would be the newest result and close the gate.
    signer = ctx.signer("evaluator") if sign and stored and loaded.whole else None
    actor = open_trust(ctx).signing_principal(signer, "evaluator", app, None) if signer else "unsigned"
    bound = digest(canonical(bindings.form()))
    started = ctx.clock()
    key = journal_key(loaded, bundle=bundle.digest, bindings=bound)
    with Journal(ctx.workspace / "journals", key) as journal:
        if fresh:
            journal.finished.clear()
        if journal.finished:
            ctx.reporter.say(f"going on: {len(journal.finished)} of {len(loaded.chosen)} cases were measured before")
        with ctx.reporter.progress(f"{loaded.suite.name}", len(loaded.chosen)) as bar:
            results = asyncio.run(_measure(ctx, app, bundle, bindings, loaded, concurrency, journal, bar))
        report = make_report(loaded, results, bundle=bundle.digest, bindings=bound)
        result = summarise(
            loaded,
            results,
            bindings=bound,
            actor=actor,
            started=started,
            finished=ctx.clock(),
            report=digest(report_bytes(report)),
        )
        attestation: str | None = None
        if signer is not None:
            ctx.registry.put_blob(app, report_bytes(report))
            statement = make_statement(app, bundle.digest, EVALUATION, result.form())
            envelope = seal(statement, PAYLOAD_TYPE, [signer])
            attestation = ctx.registry.attach(app, bundle.digest, "evaluation", envelope)
        journal.discard()
    note = ""
    if not stored:
        note = "the bundle is not in the registry, so nothing was attached to it"
    elif not loaded.whole:
        note = "only some cases were run, so nothing was attached to the bundle"
    return Evaluated(app=app, bundle=bundle.digest, result=result, report=report, attestation=attestation, note=note)


async def _measure(
    ctx: Context,
    app: str,
    bundle: Bundle,
    bindings: Bindings,
    loaded: LoadedSuite,
    concurrency: int,
    journal: Journal,
    bar: Progress,
) -> list[CaseResult]:
    task = bundle.components.application.tasks.get(loaded.suite.task)
    if task is None:
        raise UsageError(
            f"The bundle has no task {loaded.suite.task!r}, which suite {loaded.suite.name!r} measures.",
            fix=f"Its tasks are {', '.join(sorted(bundle.components.application.tasks))}.",
        )
    async with router_of(ctx, app, bundle, bindings) as (router, _):
        return await run(
            loaded,
            router,
            identity=LOCAL,
            profile=task.profiles[0],
            output=bundle.components.output.get(loaded.suite.task),
            concurrency=concurrency,
            journal=journal,
            on_done=lambda result: bar.advance(note=result.id),
            clock=ctx.clock,
        )


def _bindings(file: Path | None, bundle: Bundle) -> Bindings:
    if file is None:
        return without_addresses(bundle)
    from bundlectl.bundling.documents import load_document

    return load_document(file, Bindings)


def _named_suites(reference: str, bundle: Bundle) -> list[Path]:
    """Find the suites that a bundle names, beside its source: PATH/evals, or evals/ two folders up."""
    ref = parse_reference(reference)
    names = bundle.components.evaluation.suites
    if not isinstance(ref, SourceReference):
        raise UsageError("Which suite?", fix=f"Name it: --suite evals/{names[0] if names else 'NAME'}.yaml")
    if not names:
        raise UsageError("The bundle names no suite.", fix="Write evaluation: {suites: [NAME]} or add --suite FILE.")
    root = ref.path if ref.path.is_dir() else ref.path.parent
    return [suite_file(root, name) for name in names]


def suite_file(root: Path, name: str) -> Path:
    """Give the file of a suite that a bundle's source in ``root`` names.

    Raises:
        UsageError: it is not there.
    """
    folder = find_suites(root)
    if folder is not None and (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    raise UsageError(
        f"The suite {name!r} was not found.",
        why=f"There is no evals/{name}.yaml in the source's folder, beside it or one folder up.",
        fix="Name its file: --suite FILE",
    )
