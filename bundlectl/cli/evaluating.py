"""Commands on evaluations: eval, drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from bundlectl.actions.drift import Drifted
    from bundlectl.actions.evaluate import Evaluated
    from bundlectl.model.attestation import CalibrationFigures, ComparedScore, Rate, ScorerIdentity


JudgesOption = Annotated[
    Path | None,
    typer.Option(
        "--judge-bindings", metavar="FILE", help="Where the suite's judges are reached. [default: judges on AWS only]"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(
        app,
        "eval",
        examples="bundlectl eval bundles/support\n"
        "bundlectl eval support@sha256:3f2a91c0 --suite evals/support.yaml --signer file:keys/evaluator.pem\n"
        "bundlectl eval support@sha256:3f2a91c0 --suite evals/support.yaml --baseline support:prod\n"
        "bundlectl eval . --only 'retention-*'",
    )
    def evaluate(
        session: Session,
        reference: Annotated[str, typer.Argument(metavar="REF", help="A stored bundle, APP:ENV, or a source path.")],
        suite: Annotated[
            Path | None,
            typer.Option("--suite", metavar="FILE", help="The suite. [default: those that the source names]"),
        ] = None,
        bindings: Annotated[
            Path | None,
            typer.Option(
                "--bindings",
                metavar="FILE",
                help="Bindings to run with. [default: those of APP:ENV, where one is named]",
            ),
        ] = None,
        baseline: Annotated[
            str | None,
            typer.Option("--baseline", metavar="REF", help="Compare with a bundle, or with what is live in APP:ENV."),
        ] = None,
        repeat: Annotated[
            int | None,
            typer.Option("--repeat", metavar="N", min=1, max=100, help="Ask each case N times. [default: the suite's]"),
        ] = None,
        max_cost: Annotated[
            float | None,
            typer.Option(
                "--max-cost",
                metavar="USD",
                min=0,
                help="Stop when so much was spent, keep what was measured, and go on next time.",
            ),
        ] = None,
        concurrency: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Cases under way at once.")] = 8,
        only: Annotated[
            list[str] | None,
            typer.Option("--only", metavar="ID|TAG", help="Run these cases (* and ? match), or a tag's. Never passes."),
        ] = None,
        no_cache: Annotated[
            bool, typer.Option("--no-cache", help="Ask and score every case anew, and keep nothing for next time.")
        ] = False,
        unsigned: Annotated[bool, typer.Option("--unsigned", help="Measure and attach nothing.")] = False,
        report: Annotated[
            Path | None,
            typer.Option(
                "--report",
                metavar="DIR",
                help="Write report.json, junit.xml, report.html and report.md there, with questions and answers.",
            ),
        ] = None,
        judges: JudgesOption = None,
        fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run measured.")] = False,
        signer: SignerOption = None,
    ) -> None:
        """Measure a bundle by a suite, through the real router, and sign the result.

        The signed result is attached to the bundle's digest, with the digests of suite and dataset. Every floor and
        every case that must pass is judged; the worst verdict wins, and what was not measured does not pass: exit 3.
        A run that is interrupted goes on from where it was.

        With --baseline the same cases are asked of both bundles, in turn, and each scorer says better, no worse (by
        less than the suite's margin), worse, or how many groups of cases would settle it. A bundle that is evaluated
        again is judged by all that was measured of it.
        """
        from bundlectl.actions.evaluate import Settings
        from bundlectl.actions.evaluate import evaluate as act
        from bundlectl.model.verdict import worst

        results = act(
            session.context(signer=signer),
            reference,
            suite=suite,
            bindings_file=bindings,
            settings=Settings(
                concurrency=concurrency,
                only=only or [],
                sign=not unsigned,
                fresh=fresh,
                baseline=baseline,
                repeats=repeat,
                max_cost=max_cost,
                report=report,
                judge_bindings=judges,
                cache=not no_cache,
            ),
        )
        if session.output == "json":
            session.json([result.form() for result in results])
        else:
            for result in results:
                scores_table(session.out, result)
        if worst(result.result.verdict for result in results) != "pass":
            raise typer.Exit(3)

    @verb(
        app,
        "drift",
        examples="bundlectl drift support:prod --suite evals/support.yaml\n"
        "bundlectl drift support:prod --suite evals/support.yaml -o json",
    )
    def drift(
        session: Session,
        environment: Annotated[str, typer.Argument(metavar="APP:ENV", help="What is live there is measured.")],
        suite: Annotated[Path, typer.Option("--suite", metavar="FILE", help="The suite.")],
        judges: JudgesOption = None,
        concurrency: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Cases under way at once.")] = 8,
    ) -> None:
        """Say whether what is live still answers as it did when its evaluation was signed.

        A model behind a name, or an index that is followed, can change underneath a bundle that did not. The suite
        runs on what is live and is held against the bundle's own signed result. Exit 7: it changed; 6: the models do
        not answer; 3: too little to tell.
        """
        from bundlectl.actions.drift import drift as act

        result = act(session.context(), environment, suite=suite, judges_file=judges, concurrency=concurrency)
        if session.output == "json":
            session.json(result.form())
        else:
            drift_table(session.out, result)
        if result.verdict != "same":
            raise typer.Exit(7 if result.verdict == "drifted" else 3)


_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "error": "bold red"}
_CLAIM = {"better": "green", "no_worse": "green", "worse": "bold red", "inconclusive": "yellow"}
_DRIFT = {"same": "green", "drifted": "bold red", "inconclusive": "yellow"}
MOST_CHANGES = 20


def scores_table(out: Console, evaluated: Evaluated) -> None:
    """Print an evaluation: a line for each scorer and tag, then the verdict and the cases that fell short."""
    from rich.table import Table
    from rich.text import Text

    result = evaluated.result
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("scorer", "tag", "mean", "floor", "measured", "unmeasured", "errors", "verdict"):
        table.add_column(column, justify="right" if column not in ("scorer", "tag", "verdict") else "left")
    for score in result.scores:
        table.add_row(
            score.scorer,
            score.tag or "",
            "-" if score.mean is None else f"{score.mean:.3f}",
            "" if score.floor is None else f"{score.floor:.3f}",
            str(score.measured),
            str(score.unmeasured),
            str(score.errors),
            Text(score.verdict, style=_STYLE[score.verdict]),
        )
    out.print(table)
    for found in result.measures or ():
        unit = "s" if found.measure == "latency" else "USD"
        value = "-" if found.value is None else f"{found.value:.6g} {unit}"
        bound = "" if found.bound is None else f" of at most {found.bound:g} {unit}: "
        missing = f", {found.missing} of {found.rows} rows missing" if found.missing else ""
        verdict = Text(found.verdict if bound else "", style=_STYLE[found.verdict])
        out.print(Text(f"{found.measure} {found.statistic} {value}{bound}") + verdict + Text(missing))
    if result.comparison is not None:
        comparison_table(out, evaluated)
    out.print(
        Text(f"{result.suite}: ")
        + Text(result.verdict, style=_STYLE[result.verdict])
        + Text(f" over {result.cases} cases" + (f": {result.why}" if result.why else ""))
    )
    for scorer in result.scorers or []:
        if line := judge_line(scorer):
            out.print(line, markup=False)
    if result.judging:
        out.print(f"judges cost {result.judging:.4f} USD", markup=False)
    if result.must_pass_failed:
        out.print(f"must pass and did not: {', '.join(result.must_pass_failed)}", markup=False)
    if result.flaky:
        out.print(f"flaky, {len(result.flaky)} cases: {', '.join(result.flaky[:MOST_CHANGES])}", markup=False)
    if result.look is not None and result.look > 1:
        out.print(
            f"look {result.look} at this bundle; {len(result.pooled or [])} earlier results are pooled with this one",
            markup=False,
        )
    kept = [row.cached is not None for row in evaluated.report.rows]
    if cached := sum(kept):
        out.print(f"{cached} of {len(kept)} rows were answered by an earlier run", markup=False)
    out.print(f"bundle {evaluated.bundle}", markup=False)
    if evaluated.attestation:
        out.print(f"signed by {result.actor}: {evaluated.attestation}", markup=False)
    elif evaluated.note:
        out.print(evaluated.note, markup=False)


def judge_line(scorer: ScorerIdentity) -> str:
    """Say which model judged and how well it agrees with people; empty for a scorer without a judge."""
    judge = scorer.identity.get("judge")
    if not isinstance(judge, dict):
        return ""
    who = ", ".join(scorer.models) or str(judge.get("model"))
    return f"{scorer.scorer} was judged by {who}: {agreement(scorer.calibration)}"


def agreement(found: CalibrationFigures | None) -> str:
    """Say how well a judge agrees with people."""
    if found is None:
        return "not calibrated"

    def share(rate: Rate | None) -> str:
        return "unknown" if rate is None else f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"

    kappa = "unknown" if found.kappa is None else f"{found.kappa:.2f}"
    return (
        f"sensitivity {share(found.sensitivity)}, specificity {share(found.specificity)}, kappa {kappa}, "
        f"on {found.labels} labels"
    )


def comparison_table(out: Console, evaluated: Evaluated) -> None:
    """Print a comparison: a line for each scorer and tag, then the cases that changed, the greatest losses first."""
    comparison = evaluated.result.comparison
    if comparison is None:
        return
    where = f" ({evaluated.app}:{comparison.environment})" if comparison.environment else ""
    out.print(f"beside {evaluated.app}@{comparison.baseline[:19]}{where}:", markup=False)
    compared_table(out, comparison.scores, ("candidate", "baseline"))
    lost = [change for change in evaluated.changes if change.candidate < change.baseline]
    won = len(evaluated.changes) - len(lost)
    for change in lost[:MOST_CHANGES]:
        out.print(f"  worse: {change.case}  {change.scorer}  {change.baseline:g} -> {change.candidate:g}", markup=False)
    if len(lost) > MOST_CHANGES:
        out.print(f"  and {len(lost) - MOST_CHANGES} more are worse", markup=False)
    if won:
        out.print(f"  {won} are better", markup=False)
    if comparison.tried is not None and comparison.tried > 1:
        out.print(f"candidates tried since the baseline went live: {comparison.tried}", markup=False)


def compared_table(out: Console, scores: Sequence[ComparedScore], sides: tuple[str, str]) -> None:
    """Print what a comparison says of each scorer and tag."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("scorer", "tag", *sides, "difference", "interval", "margin", "groups", "verdict", "needed"):
        table.add_column(column, justify="left" if column in ("scorer", "tag", "verdict") else "right")
    for score in scores:
        table.add_row(
            score.scorer,
            score.tag or "",
            "-" if score.candidate is None else f"{score.candidate:.3f}",
            "-" if score.baseline is None else f"{score.baseline:.3f}",
            "-" if score.difference is None else f"{score.difference:+.3f}",
            f"{score.low:+.3f} {score.high:+.3f}",
            "" if score.margin is None else f"{score.margin:.3f}",
            str(score.groups),
            _claim(score),
            "" if score.needed is None else f"{score.needed:,}",
        )
    out.print(table)


def _claim(score: ComparedScore) -> Text:
    from rich.text import Text

    if score.claim == "inconclusive" and score.margin is None:
        return Text("no margin", style="dim")
    return Text(score.claim.replace("_", " ") + (" (below)" if score.below else ""), style=_CLAIM[score.claim])


def drift_table(out: Console, drifted: Drifted) -> None:
    """Print what drift found."""
    from rich.text import Text

    if drifted.scores:
        compared_table(out, drifted.scores, ("now", "signed"))
    for moved in drifted.moved:
        out.print(f"{moved.what}: {', '.join(moved.then)} -> {', '.join(moved.now)}", markup=False)
    for flip in [flip for flip in drifted.flips if flip.stayed == flip.again][:MOST_CHANGES]:
        out.print(
            f"  flipped and stays: {flip.case}  {flip.scorer}  {flip.then:g} -> {flip.now:g}"
            f" ({flip.stayed} of {flip.again} further runs)",
            markup=False,
        )
    place = f"{drifted.app}:{drifted.environment} by {drifted.suite}: "
    out.print(Text(place) + Text(drifted.verdict, style=_DRIFT[drifted.verdict]) + Text(f": {drifted.why}"))
    if drifted.fix:
        out.print(Text("  fix: ", style="dim") + Text(drifted.fix))
