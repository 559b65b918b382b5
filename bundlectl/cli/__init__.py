"""The command line. ``main`` is the entry point; everything else is imported when a command needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command that argv names, and exit with its code."""
    from bundlectl.cli.program import run

    run()
