"""Commands on the registry itself: where machines find it, and putting right what was tampered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import ConfirmOption, ReasonOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.locating import LocatedRegistry
    from bundlectl.actions.repair import Repaired


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    registry = typer.Typer(help="The registry itself.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(registry, name="registry")

    @verb(registry, "locate", examples="bundlectl registry locate ssm:/bundlectl/team --registry s3://bucket/registry")
    def locate(
        session: Session,
        name: Annotated[str, typer.Argument(metavar="ssm:/bundlectl/NAME", help="What machines will know it by.")],
    ) -> None:
        """Tell machines where the registry is and which keyring is pinned, by a name in Parameter Store.

        From then on `ssm:/bundlectl/NAME` is the registry's address everywhere, and Parameter Store witnesses each
        release. The pin is the newest keyring that this machine verifies.
        """
        from bundlectl.actions.locating import registry_locate as act

        result = act(session.context(), name)
        session.show(result, lambda out: _located(out, result))

    @verb(
        registry,
        "repair",
        examples='bundlectl registry repair support:prod --reason "bucket was restored from a backup"\n'
        'bundlectl registry repair support:prod --reason "bucket was restored from a backup" --confirm prod',
    )
    def repair(
        session: Session,
        environment: Annotated[str, typer.Argument(metavar="APP:ENV", help="What is refused.")],
        reason: ReasonOption,
        confirm: ConfirmOption = None,
    ) -> None:
        """Put right an environment whose witness is ahead of its head: show what is seen, and do it with --confirm.

        Head becomes the witnessed release again where the history holds it. Where it does not, the head that is
        there is verified, and the witness written from it.
        """
        from bundlectl.actions.repair import repair as act

        result = act(session.context(), environment, reason=reason, confirmed=confirm)
        session.show(result, lambda out: _repaired(out, result))


def _located(out: Console, result: LocatedRegistry) -> None:
    out.print(f"{result.name} leads to {result.url}", markup=False)
    out.print(f"  pin       {result.pin}", markup=False)
    out.print(f"  registry  {result.registry}", markup=False)


def _repaired(out: Console, result: Repaired) -> None:
    out.print(f"{result.app}:{result.environment}: {result.contradiction or 'nothing to repair'}", markup=False)
    out.print(f"  head     {result.head or 'none'}", markup=False)
    out.print(f"  witness  {result.witness or 'none'}", markup=False)
    out.print(f"  {'done' if result.done else 'nothing was changed'}: {result.why}", markup=False)
