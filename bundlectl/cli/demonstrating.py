"""Commands that show: demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.demo import Played

DEFAULT = Path(".bundlectl") / "demo"


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(app, "demo", examples="bundlectl demo\nbundlectl demo /tmp/demo")
    def demo(
        session: Session,
        folder: Annotated[
            Path, typer.Argument(metavar="[DIR]", help="Where to play; an earlier demo there is replaced.")
        ] = DEFAULT,
    ) -> None:
        """Play the whole story: build, evaluate, sign, promote, serve, change, diff, explain, roll back.

        On the example app, with no account and no network: the documents and tickets in the package, a registry in a
        folder, a server on loopback, and a model that quotes documents. It leaves the registry to play with.
        """
        from bundlectl.actions.demo import demo as act

        session.registry_url = str(folder / ".bundlectl" / "registry")
        narrator = Narration(session)
        result = act(session.context(), folder, narrator)
        session.show(result, lambda out: _ending(out, result))


class Narration:
    """Tells the story on stdout, each result as its own command prints it; silent with ``-o json``."""

    def __init__(self, session: object) -> None:
        from bundlectl.cli.session import Session

        assert isinstance(session, Session)
        self._session = session
        self._scene = 0

    @property
    def _quiet(self) -> bool:
        return self._session.output == "json"

    def scene(self, title: str, text: str) -> None:
        """Print a heading and why it matters."""
        if self._quiet:
            return
        self._scene += 1
        out = self._session.out
        out.print()
        out.rule(f"[bold]{self._scene}. {title}[/]", align="left", style="cyan")
        out.print(text, markup=False, soft_wrap=False, width=min(out.width, 100))

    def command(self, line: str) -> None:
        """Print the command that a reader would type."""
        if not self._quiet:
            self._session.out.print(f"\n$ {line}", markup=False, style="bold cyan")

    def note(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            self._session.out.print(f"-> {text}", markup=False, style="green")

    def result(self, result: object) -> None:
        """Print what a command gave."""
        if not self._quiet:
            _render(self._session.out, result)


def _render(out: Console, result: object) -> None:
    from bundlectl.actions.build import Built
    from bundlectl.actions.evaluate import Evaluated
    from bundlectl.actions.index import IndexBuilt
    from bundlectl.actions.keyring import Initialised
    from bundlectl.actions.promote import Promoted
    from bundlectl.actions.rollback import RolledBack
    from bundlectl.actions.status import History
    from bundlectl.cli import answers, evaluating, keyrings, looking, moving, releases, source
    from bundlectl.insight.diff import BundleDiff
    from bundlectl.insight.explain import Explanation
    from bundlectl.model.contract import Answer

    renderers: dict[type, Callable[[Console, Any], None]] = {
        Initialised: keyrings.initialised,
        IndexBuilt: moving.built,
        Built: source.built,
        Promoted: releases.promoted,
        RolledBack: releases.rolled_back,
        History: releases.history_table,
        BundleDiff: looking.differences,
        Explanation: looking.explanation,
        Answer: answers.answer_lines,
        Evaluated: evaluating.scores_table,
    }
    for one in result if isinstance(result, list) else [result]:
        renderers[type(one)](out, one)


def _ending(out: Console, result: Played) -> None:
    from rich.text import Text

    out.print()
    out.rule("[bold]The same question, three times[/]", align="left", style="cyan")
    for told in result.answers:
        out.print(Text(f"{told.when} (release {told.serial}, {told.bundle[:15]})", style="bold"))
        out.print(told.answer, markup=False)
    out.print()
    out.print(result.why, markup=False, style="bold", soft_wrap=False, width=min(out.width, 100))
    out.print(f"\n{result.seconds:.0f} seconds. The registry is yours to play with:", markup=False)
    for line in result.next:
        out.print(f"  {line}", markup=False)
