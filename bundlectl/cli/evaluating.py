"""Commands on evaluations: eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.evaluate import Evaluated


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(
        app,
        "eval",
        examples="bundlectl eval bundles/support\n"
        "bundlectl eval support@sha256:3f2a91c0 --suite evals/support.yaml --signer file:keys/evaluator.pem\n"
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
            Path | None, typer.Option("--bindings", metavar="FILE", help="Bindings to run with. [default: none]")
        ] = None,
        concurrency: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Cases under way at once.")] = 8,
        only: Annotated[
            list[str] | None,
            typer.Option("--only", metavar="ID", help="Run these cases (* and ? match). Never passes."),
        ] = None,
        unsigned: Annotated[bool, typer.Option("--unsigned", help="Measure and attach nothing.")] = False,
        fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted run measured.")] = False,
        signer: SignerOption = None,
    ) -> None:
        """Measure a bundle by a suite, through the real router, and sign the result.

        The signed result is attached to the bundle's digest, with the digests of suite and dataset. Every floor and
        every case that must pass is judged; the worst verdict wins, and what was not measured does not pass: exit 3.
        A run that is interrupted goes on from where it was.
        """
        from bundlectl.actions.evaluate import Settings
        from bundlectl.actions.evaluate import evaluate as act
        from bundlectl.model.verdict import worst

        results = act(
            session.context(signer=signer),
            reference,
            suite=suite,
            bindings_file=bindings,
            settings=Settings(concurrency=concurrency, only=only or [], sign=not unsigned, fresh=fresh),
        )
        if session.output == "json":
            session.json([result.form() for result in results])
        else:
            for result in results:
                scores_table(session.out, result)
        if worst(result.result.verdict for result in results) != "pass":
            raise typer.Exit(3)


_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "error": "bold red"}


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
    out.print(
        Text(f"{result.suite}: ")
        + Text(result.verdict, style=_STYLE[result.verdict])
        + Text(f" over {result.cases} cases" + (f": {result.why}" if result.why else ""))
    )
    if result.must_pass_failed:
        out.print(f"must pass and did not: {', '.join(result.must_pass_failed)}", markup=False)
    out.print(f"bundle {evaluated.bundle}", markup=False)
    if evaluated.attestation:
        out.print(f"signed by {result.actor}: {evaluated.attestation}", markup=False)
    elif evaluated.note:
        out.print(evaluated.note, markup=False)
