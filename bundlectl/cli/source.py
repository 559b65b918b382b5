"""Commands on a source folder: init, validate, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.build import Built
    from bundlectl.actions.init import Scaffolded
    from bundlectl.actions.validate import LintFinding, Validated

SourcePath = Annotated[Path, typer.Argument(metavar="PATH", help="The folder that holds bundle.yaml.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(
        app,
        "init",
        examples="bundlectl init hello --app hello\nbundlectl init . --app support --owner alice@example.com",
    )
    def init(
        session: Session,
        folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the app is to be; made if it is not there.")],
        app: Annotated[str, typer.Option("--app", metavar="NAME", help="The app's name: a-z, 0-9 and -.")],
        owner: Annotated[str, typer.Option(metavar="WHO", help="Who is behind the development keys.")] = "developer",
    ) -> None:
        """Start an app: a source that validates, builds and evaluates untouched.

        Beside it, in DIR/.bundlectl: development keys (one for each role), a registry in a folder with keyring and
        policy, and the pin. Environments: dev (no gate), staging (evaluation), prod (evaluation, live in staging
        before, --confirm prod). Nothing that is already there is replaced.
        """
        from bundlectl.actions.init import init as act

        session.registry_url = str(folder / ".bundlectl" / "registry")
        result = act(session.context(), folder, app=app, owner=owner)
        session.show(result, lambda out: _initialised(out, result))

    @verb(app, "validate", examples="bundlectl validate bundles/support\nbundlectl validate . -o json")
    def validate(session: Session, path: SourcePath) -> None:
        """Check a source folder: form, names, prompts, policies, access cases, schemas, guards, suites; then lint.

        Every problem is printed as file:line, with what would be right, and the exit code is 2. Lint findings are
        allowed here; an environment's gate can forbid them.
        """
        from bundlectl.actions.validate import validate as act

        result = act(path)
        session.show(result, lambda out: _validated(out, result))

    @verb(
        app,
        "build",
        examples="bundlectl build bundles/support\n"
        "bundlectl build . --signer file:keys/builder.pem\n"
        "bundlectl build . -o json | jq -r .reference",
    )
    def build(
        session: Session,
        path: SourcePath,
        signer: SignerOption = None,
        unsigned: Annotated[bool, typer.Option("--unsigned", help="Store the bundle without provenance.")] = False,
    ) -> None:
        """Build a source into the registry and sign where it came from.

        The same source gives the same digest on every machine. Building it again is harmless.
        """
        from bundlectl.actions.build import build as act

        result = act(session.context(signer=signer), path, sign=not unsigned)
        session.show(result, lambda out: built(out, result))


def _initialised(out: Console, result: Scaffolded) -> None:
    out.print(f"made {result.app} in {result.folder}: {len(result.files)} files", markup=False)
    out.print(f"registry   {result.registry.registry}", markup=False)
    out.print(f"pin        {result.registry.registry_id}", markup=False)
    out.print(f"keys       {len(result.registry.keys)} development keys, one for each role", markup=False)
    if result.snapshot:
        out.print(f"snapshot   {result.snapshot}", markup=False)
    out.print("\nnext:")
    for line in result.next:
        out.print(f"  {line}", markup=False)


def _validated(out: Console, result: Validated) -> None:
    out.print(f"{result.app} {result.version} is valid: {result.bundle}", markup=False)
    out.print(f"tasks         {', '.join(result.tasks)}", markup=False)
    out.print(f"environments  {', '.join(result.environments) or 'none'}", markup=False)
    if result.suites:
        out.print(f"suites        {', '.join(result.suites)}", markup=False)
    for warning in result.warnings:
        out.print(f"warning: {warning}", markup=False)
    _findings(out, result.findings)


def built(out: Console, result: Built) -> None:
    """Print a build's reference and findings."""
    out.print(result.reference, markup=False)
    state = "stored" if result.new else "was already stored"
    signed = f"signed by {result.builder}" if result.builder else "not signed"
    out.print(f"{state}, {result.size:,} bytes, {signed}", markup=False)
    _findings(out, result.findings)


def _findings(out: Console, findings: list[LintFinding]) -> None:
    for finding in findings:
        out.print(f"lint: {finding.place}: {finding.message} [{finding.rule}]", markup=False)
