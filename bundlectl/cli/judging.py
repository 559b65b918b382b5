"""Commands on judges: judge calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.evaluating import JudgesOption, agreement
from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.calibrate import Calibrated


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    judge = typer.Typer(
        help="Judges: models that score answers, held against people.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(judge, name="judge")

    @verb(
        judge,
        "calibrate",
        examples="bundlectl judge calibrate evals/support.yaml --judge-bindings judges.yaml\n"
        "bundlectl judge calibrate evals/support.yaml --scorer helpful --max-cost 2 -o json",
    )
    def judge_calibrate(
        session: Session,
        suite: Annotated[Path, typer.Argument(metavar="SUITE", help="The suite's file.")],
        scorer: Annotated[
            list[str] | None,
            typer.Option(
                "--scorer", metavar="KEY", help="A scorer to calibrate. [default: each that names labels and a record]"
            ),
        ] = None,
        judges: JudgesOption = None,
        max_cost: Annotated[
            float | None,
            typer.Option("--max-cost", metavar="USD", min=0, help="Stop when so much was spent, and write nothing."),
        ] = None,
    ) -> None:
        """Hold a suite's judges against what people said of the same answers, and keep how well they agree.

        The record is written beside the suite. A judge may decide what the suite gates by it (a floor, a margin, a
        case that must pass) only with a record of at least 100 labels, and only while it is the same judge. Exit 3:
        a judge may not decide.
        """
        from bundlectl.actions.calibrate import calibrate as act

        results = act(session.context(), suite, scorers=scorer or [], bindings_file=judges, max_cost=max_cost)
        if session.output == "json":
            session.json([result.form() for result in results])
        else:
            for result in results:
                calibrated_lines(session.out, result)
        if any(result.weakness for result in results):
            raise typer.Exit(3)


def calibrated_lines(out: Console, result: Calibrated) -> None:
    """Print what was found of one judge."""
    found = result.record.figures
    who = ", ".join(result.record.models) or str(result.record.identity.get("judge", {}).get("model"))
    out.print(f"{result.scorer} judged by {who}: {agreement(found)}", markup=False)
    out.print(f"  {found.good} labelled good, {found.bad} bad; no ruling on {found.errors}", markup=False)
    if result.weakness:
        out.print(f"  it may not decide: {result.weakness}", markup=False)
    if result.usd:
        out.print(f"  cost {result.usd:.4f} USD", markup=False)
    out.print(f"  written to {result.file}: {result.digest}", markup=False)
