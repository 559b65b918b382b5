"""The program: every family of commands, under one name."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

FAMILIES: dict[str, tuple[str, ...]] = {
    "source": ("init", "validate", "build"),
    "evaluating": ("eval", "drift"),
    "judging": ("judge",),
    "caching": ("cache",),
    "releases": ("promote", "rollback", "bind", "renew", "status", "history"),
    "looking": ("show", "diff", "explain", "receipts"),
    "serving": ("ask", "serve", "dev"),
    "batching": ("worker", "batch"),
    "trusting": ("sign", "approve", "attest", "override", "verify"),
    "keyrings": ("keyring",),
    "policies": ("policy",),
    "registries": ("registry",),
    "moving": ("export", "import", "copy", "index"),
    "demonstrating": ("demo",),
}
"""Each family's file, in the order of ``--help``, and the words that it gives to the command line."""


def _version(wanted: bool) -> None:
    if wanted:
        from bundlectl import __version__

        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Build, evaluate, sign, promote and roll back AI release bundles, and serve what was verified."""


def program(word: str = "") -> typer.Typer:
    """Put the program together: with the family of a word alone, or with all where no family has the word."""
    app = typer.Typer(
        name="bundlectl",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Build, evaluate, sign, promote and roll back AI release bundles, and serve what was verified.",
    )
    app.callback()(_options)
    own = [family for family, words in FAMILIES.items() if word in words]
    for family in own or FAMILIES:
        import_module(f"bundlectl.cli.{family}").register(app)
    return app


def run() -> None:
    """Run the program on argv. A command does not wait for the others to be put together."""
    program(sys.argv[1] if len(sys.argv) > 1 else "")()
