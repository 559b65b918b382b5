"""The program: every family of commands, under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from bundlectl.cli import (
    batching,
    caching,
    demonstrating,
    evaluating,
    judging,
    keyrings,
    looking,
    moving,
    policies,
    registries,
    releases,
    serving,
    source,
    trusting,
)

app = typer.Typer(
    name="bundlectl",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Build, evaluate, sign, promote and roll back AI release bundles, and serve what was verified.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from bundlectl import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Build, evaluate, sign, promote and roll back AI release bundles, and serve what was verified."""


for family in (
    source,
    evaluating,
    judging,
    caching,
    releases,
    looking,
    serving,
    batching,
    trusting,
    keyrings,
    policies,
    registries,
    moving,
    demonstrating,
):
    family.register(app)


def run() -> None:
    """Run the program on argv."""
    app()
