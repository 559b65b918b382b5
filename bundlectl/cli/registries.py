"""Commands on the registry itself: where machines find it, and putting right what was tampered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bundlectl.cli.verb import ConfirmOption, ReasonOption, SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.creating import CreatedRegistry
    from bundlectl.actions.doctor import Examined
    from bundlectl.actions.gc import Collected
    from bundlectl.actions.locating import LocatedRegistry
    from bundlectl.actions.repair import Repaired


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    registry = typer.Typer(help="The registry itself.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(registry, name="registry")

    @verb(
        registry,
        "create",
        examples="bundlectl registry create s3://bucket/registry --name team --app support --plan\n"
        "bundlectl registry create s3://bucket --name team --app support --app sales --object-lock 30",
    )
    def create(
        session: Session,
        url: Annotated[str, typer.Argument(metavar="s3://BUCKET[/PREFIX]", help="Where it is to be.")],
        name: Annotated[
            str, typer.Option("--name", metavar="NAME", help="What machines will know it by: ssm:/bundlectl/NAME.")
        ],
        app: Annotated[list[str], typer.Option("--app", metavar="APP", help="An app that gets roles; repeatable.")],
        environment: Annotated[
            list[str] | None,
            typer.Option("--environment", metavar="ENV", help="Its environments. [default: dev, staging, prod]"),
        ] = None,
        object_lock: Annotated[
            int,
            typer.Option("--object-lock", metavar="DAYS", help="No version can be deleted for so long; 0: no."),
        ] = 0,
        keep_versions: Annotated[
            int,
            typer.Option("--keep-versions", metavar="DAYS", help="Former versions expire after so long; 0: never."),
        ] = 90,
        encryption: Annotated[
            Literal["kms", "s3"], typer.Option("--encryption", metavar="kms|s3", help="By a key of yours, or of S3.")
        ] = "kms",
        reader_account: Annotated[
            list[str] | None,
            typer.Option("--reader-account", metavar="ID", help="Another account that may read; repeatable."),
        ] = None,
        no_keys: Annotated[bool, typer.Option("--no-keys", help="Make no signing keys in KMS.")] = False,
        region: Annotated[str | None, typer.Option("--region", metavar="REGION", help="Where in AWS.")] = None,
        plan: Annotated[bool, typer.Option("--plan", help="Show what would be made, and make nothing.")] = False,
    ) -> None:
        """Make a registry in S3 with CloudFormation: bucket, keys and a policy for each role; again: change it.

        The plan is shown first. A change that would replace or remove the bucket or a key is refused.
        """
        from bundlectl.actions.creating import ENVIRONMENTS, Wanted, registry_create

        wanted = Wanted(
            url=url,
            name=name,
            apps=tuple(app),
            environments=tuple(environment or ENVIRONMENTS),
            object_lock=object_lock,
            keep_versions=keep_versions,
            encryption=encryption,
            signing_keys=not no_keys,
            readers=tuple(reader_account or ()),
        )
        result = registry_create(session.context(), wanted, region=region, plan_only=plan)
        session.show(result, lambda out: _created(out, result))

    @verb(
        registry,
        "doctor",
        examples="bundlectl registry doctor\n"
        "bundlectl registry doctor --registry s3://bucket/registry --role promoter --app support --env prod\n"
        "bundlectl registry doctor --signer awskms:alias/bundlectl/team/support/builder",
    )
    def doctor(
        session: Session,
        role: Annotated[
            str | None,
            typer.Option("--role", metavar="ROLE", help="In S3: may these credentials write what it writes?"),
        ] = None,
        app: Annotated[str | None, typer.Option("--app", metavar="APP", help="Of the role.")] = None,
        env: Annotated[str | None, typer.Option("--env", metavar="ENV", help="Of the role.")] = None,
        signer: SignerOption = None,
    ) -> None:
        """Find what is missing or set wrongly, and say the fix; nothing is changed.

        Exit code 0: all is well; 3: something is not, or could not be looked at; 6: the registry cannot be reached.
        """
        from bundlectl.actions.doctor import examine, role_of

        result = examine(session.context(signer=signer), role=role_of(role), app=app, env=env)
        session.show(result, lambda out: _examined(out, result))
        if result.verdict != "pass":
            raise typer.Exit(6 if result.verdict == "error" else 3)

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
        "gc",
        examples="bundlectl registry gc support\n"
        "bundlectl registry gc support --delete --keep-releases 20 --keep-for 180d\n"
        "bundlectl registry gc support --spare support@sha256:3f2a77b0",
    )
    def gc(
        session: Session,
        app: Annotated[str, typer.Argument(metavar="APP", help="Whose unreachable objects.")],
        delete: Annotated[bool, typer.Option("--delete", help="Act: mark; a day later, delete.")] = False,
        keep_releases: Annotated[
            int, typer.Option("--keep-releases", metavar="N", help="Newest releases kept of each environment.")
        ] = 10,
        keep_for: Annotated[
            str, typer.Option("--keep-for", metavar="TIME", help="And all that was live or attested within it.")
        ] = "90d",
        spare: Annotated[
            str | None, typer.Option("--spare", metavar="REF", help="Lift the mark from this bundle, and no more.")
        ] = None,
        signer: SignerOption = None,
    ) -> None:
        """Collect bundles, evidence, reports and snapshots that nothing reaches any more. Without --delete: show it.

        With --delete the first run marks, signed by role gc; a run 24 hours later looks again and deletes what is
        marked and still unreachable. Keyrings, policies, heads and histories always stay.
        """
        from bundlectl.actions.gc import gc as act
        from bundlectl.actions.gc import gc_spare
        from bundlectl.actions.retaining import Retention

        ctx = session.context(signer=signer)
        if spare is not None:
            result = gc_spare(ctx, app, spare)
        else:
            result = act(ctx, app, retention=Retention(keep_releases, keep_for), delete=delete)
        session.show(result, lambda out: _collected(out, result))

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


def _created(out: Console, result: CreatedRegistry) -> None:
    from bundlectl.actions.creating import plan_lines

    if not result.done:
        for line in plan_lines(result):
            out.print(line, markup=False)
        out.print("Nothing was changed.", markup=False)
        return
    out.print(f"{result.url} is made.", markup=False)
    for who, uri in result.signers.items():
        out.print(f"  {who:<24} {uri}", markup=False)
    for line in result.next:
        out.print(f"next: {line}", markup=False)


def _examined(out: Console, result: Examined) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("why")
    for check in result.checks:
        table.add_row(check.verdict, check.name, Text(check.why))
    out.print(table)
    for check in result.checks:
        if check.verdict != "pass" and check.fix:
            out.print(f"fix {check.name}: {check.fix}", markup=False)


def _collected(out: Console, result: Collected) -> None:
    counted = ", ".join(f"{count} {kind}" for kind, count in result.objects.items()) or "nothing"
    due, app = result.due, result.app
    lines = {
        "nothing": f"{app}: nothing is unreachable or marked",
        "mark": f"{app}: {counted} marked; nothing goes before {due}"
        if result.done
        else f"{app}: {counted} would be marked; --delete marks, and deletes 24 hours later",
        "wait": f"{app}: {counted} marked and unreachable; nothing goes before {due}",
        "delete": f"{app}: {counted} {'deleted' if result.done else 'would be deleted with --delete'}",
        "spare": f"{app}: the mark is lifted from {counted}",
    }
    out.print(lines[result.step], markup=False)
    for bundle in result.bundles:
        out.print(f"  {bundle}", markup=False)
    if result.reached_again:
        out.print(f"{result.reached_again} marked objects are needed again and stay", markup=False)
    if result.left:
        out.print(f"{result.left} more are unreachable: the next mark takes them", markup=False)
    for one in result.kept:
        out.print(f"kept {one.bundle}: {one.why}", markup=False)


def _located(out: Console, result: LocatedRegistry) -> None:
    out.print(f"{result.name} leads to {result.url}", markup=False)
    out.print(f"  pin       {result.pin}", markup=False)
    out.print(f"  registry  {result.registry}", markup=False)


def _repaired(out: Console, result: Repaired) -> None:
    out.print(f"{result.app}:{result.environment}: {result.contradiction or 'nothing to repair'}", markup=False)
    out.print(f"  head     {result.head or 'none'}", markup=False)
    out.print(f"  witness  {result.witness or 'none'}", markup=False)
    out.print(f"  {'done' if result.done else 'nothing was changed'}: {result.why}", markup=False)
