"""A command's session: the context built from argv, environment and the wall clock; and where output goes."""

from __future__ import annotations

import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from bundlectl.actions.context import DEFAULT_REGISTRY, Context, Progress
from bundlectl.model.errors import BundlectlError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.model.types import Strict


class Session:
    """Holds one command's context, consoles and output format.

    Data goes to stdout; talk, progress and errors go to stderr.
    """

    def __init__(self, *, registry_url: str, output: Literal["text", "json"], debug: bool) -> None:
        self.registry_url = registry_url or DEFAULT_REGISTRY
        self.output = output
        self.debug = debug

    @cached_property
    def out(self) -> Console:
        """The console of stdout."""
        from rich.console import Console

        class Out(Console):
            def on_broken_pipe(self) -> None:
                """Leave it to run_guarded: a reader that goes away is no failure."""
                raise BrokenPipeError

        # Into a pipe or a file nothing is cut to the width of a terminal that is not there.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
        return Out(file=sys.stdout, highlight=False, soft_wrap=True, width=width)

    @cached_property
    def err(self) -> Console:
        """The console of stderr."""
        from rich.console import Console

        return Console(file=sys.stderr, highlight=False, soft_wrap=True)

    @property
    def interactive(self) -> bool:
        """True when a person is at both ends of the terminal."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def context(self, *, signer: str | None = None, trust_first_use: bool = False) -> Context:
        """Build the action's context."""
        return Context(
            registry_url=self.registry_url,
            clock=lambda: datetime.now(UTC),
            new_id=lambda: secrets.token_hex(12),
            reporter=ConsoleReporter(self),
            environ=os.environ,
            signer_uri=signer or os.environ.get("BUNDLECTL_SIGNER"),
            passphrase=self._passphrase,
            trust_first_use=trust_first_use,
        )

    def _passphrase(self, uri: str) -> bytes:
        path = os.environ.get("BUNDLECTL_PASSPHRASE_FILE")
        if path:
            try:
                with open(path, "rb") as file:  # noqa: PTH123
                    return file.read().rstrip(b"\r\n")
            except OSError as error:
                raise UsageError(f"The passphrase file {path} cannot be read.", why=str(error)) from error
        if not self.interactive:
            raise UsageError(
                f"The key {uri} is encrypted and there is no terminal to ask for its passphrase.",
                fix="Set BUNDLECTL_PASSPHRASE_FILE to a file that holds it.",
            )
        import getpass

        return getpass.getpass(f"Passphrase of {uri}: ").encode()

    def ask_confirmation(self, environment: str) -> str | None:
        """Ask a person at a terminal to type the environment's name; None without a person or without a need.

        Only ``prod`` is asked for; another environment that wants a confirmation says so and names the flag.
        """
        if environment != "prod" or not self.interactive or self.output == "json":
            return None
        sys.stderr.write(f"This changes {environment}. Type its name to go on: ")
        sys.stderr.flush()
        return sys.stdin.readline().strip() or None

    def show(self, result: Strict, render: Callable[[Console], None]) -> None:
        """Print a result: as JSON by its schema, or as text by ``render``."""
        if self.output == "json":
            self.json(result.form())
        else:
            render(self.out)

    def json(self, value: Any) -> None:
        """Print one JSON value on stdout."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")

    def flush(self) -> None:
        """Flush stdout, so that a reader who went away is noticed here."""
        sys.stdout.flush()

    def show_error(self, error: BundlectlError) -> None:
        """Print what happened, why, and what to do next, on stderr."""
        if self.debug:
            traceback.print_exception(error)
        if self.output == "json":
            sys.stderr.write(json.dumps(error.to_dict(), ensure_ascii=False, indent=2) + "\n")
            return
        from rich.text import Text

        self.err.print(Text("error: ", style="bold red") + Text(error.what))
        if error.why:
            self.err.print(Text("  why: ", style="dim") + Text(error.why.strip().replace("\n", "\n       ")))
        if error.fix:
            self.err.print(Text("  fix: ", style="dim") + Text(error.fix))

    def show_defect(self, error: Exception) -> None:
        """Print a defect of bundlectl itself."""
        if self.debug:
            traceback.print_exception(error)
        if self.output == "json":
            what = {"error": "defect", "message": f"{type(error).__name__}: {error}", "exit_code": 1}
            sys.stderr.write(json.dumps(what, ensure_ascii=False, indent=2) + "\n")
            return
        sys.stderr.write(
            f"error: a defect in bundlectl: {type(error).__name__}: {error}\n"
            "  fix: run it again with --debug and report the traceback\n"
        )


class ConsoleReporter:
    """Talk on stderr; a progress bar only on a terminal, a line at the end otherwise; silent with ``-o json``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def say(self, text: str) -> None:
        """Print one line, unless the output is JSON."""
        if self._session.output == "text":
            self._session.err.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print one line that starts with ``warning:``, or with ``-o json`` is the JSON object ``{"warning": …}``."""
        if self._session.output == "json":
            sys.stderr.write(json.dumps({"warning": text}, ensure_ascii=False) + "\n")
            return
        from rich.text import Text

        self._session.err.print(Text("warning: ", style="yellow") + Text(text))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show a bar with rate and time left on a terminal."""
        if self._session.output == "json" or not sys.stderr.isatty():
            yield _Quiet()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                """Show how many a second are done, over the last half a minute."""
                return Text(f"{task.speed:.3g}/s" if task.speed else "-/s", style="dim")

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        with RichProgress(*columns, console=self._session.err, transient=True) as shown:
            task = shown.add_task(label, total=total, note="")
            yield _Bar(shown, task)


class _Quiet:
    def advance(self, steps: int = 1, note: str = "") -> None:
        """Show nothing."""


class _Bar:
    def __init__(self, shown: Any, task: Any) -> None:
        self._shown = shown
        self._task = task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar."""
        self._shown.update(self._task, advance=steps, note=note)
