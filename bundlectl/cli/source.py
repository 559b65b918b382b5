"""Commands on a source folder: init, validate, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from bundlectl.cli.session import Session

SourcePath = Annotated[Path, typer.Argument(metavar="PATH", help="The folder that holds bundle.yaml.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""

    @verb(app, "validate", examples="bundlectl validate bundles/support\nbundlectl validate . -o json")
    def validate(session: Session, path: SourcePath) -> None:
        """Check a source folder: form, names, prompts, policies, access cases, lint.

        Every problem is printed as file:line, with what would be right. Exit 2 when there is one.
        """
