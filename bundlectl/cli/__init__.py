"""The command line. ``main`` is the entry point; everything else is imported when a command needs it."""

from __future__ import annotations


def main() -> None:
    """Run the command that argv names, and exit with its code."""
    try:
        from bundlectl.cli.program import run

        run()
    except KeyboardInterrupt:  # before a command has begun; from then on cli.verb sees to it
        import sys

        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    finally:
        import gc

        gc.freeze()  # what is left goes with the process: to be looked through first, it took a tenth of `status`
