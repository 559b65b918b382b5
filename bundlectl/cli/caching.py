"""Commands on the evaluation cache: cache show, cache clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.evaluation.cache import Held

MIB = 2**20


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    cache = typer.Typer(help="Answers and scores kept by eval.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(cache, name="cache")

    @verb(cache, "show", examples="bundlectl cache show\nbundlectl cache show -o json")
    def show(session: Session) -> None:
        """Say how many answers and scores are kept on this machine, and where."""
        from bundlectl.actions.caching import cache_show

        result = cache_show(session.context())
        session.show(result, lambda out: _held(out, result))

    @verb(
        cache,
        "clear",
        examples="bundlectl cache clear\nbundlectl cache clear --older-than 30d\nbundlectl cache clear --max-size 200",
    )
    def clear(
        session: Session,
        older_than: Annotated[
            str | None, typer.Option("--older-than", metavar="TIME", help="Only what was kept longer ago, e.g. 30d.")
        ] = None,
        max_size: Annotated[
            int | None,
            typer.Option("--max-size", metavar="MIB", min=0, help="Only the oldest, until no more than this is left."),
        ] = None,
    ) -> None:
        """Forget kept answers and scores, all of them by default; the next evaluation asks those cases anew."""
        from bundlectl.actions.caching import cache_clear

        result = cache_clear(
            session.context(), older_than=older_than, max_size=None if max_size is None else max_size * MIB
        )
        session.show(result, lambda out: _held(out, result))


def _held(out: Console, held: Held) -> None:
    size = f"{held.bytes / MIB:.1f} of at most {held.limit / MIB:.0f} MiB"
    out.print(f"{held.answers:,} answers, {held.scores:,} scores, {size} in {held.folder}", markup=False)
