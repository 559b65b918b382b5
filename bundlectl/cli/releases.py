"""Commands that change or show what is live: promote, rollback, bind, renew, status, history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import ConfirmOption, ReasonOption, RenewalReasonOption, SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.bind import Bound
    from bundlectl.actions.promote import Plan, PlannedCheck, Promoted
    from bundlectl.actions.releasing import Released
    from bundlectl.actions.rollback import RolledBack
    from bundlectl.actions.status import History, Status

Ref = Annotated[str, typer.Argument(metavar="REF", help="support@sha256:…, support:staging, or a source path.")]
Env = Annotated[str, typer.Argument(metavar="APP:ENV", help="An environment, e.g. support:prod.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(
        app,
        "promote",
        examples='bundlectl promote support@sha256:3f2a91c0 --to staging --reason "new prompt"\n'
        'bundlectl promote support:staging --to prod --reason "new prompt" --plan\n'
        'bundlectl promote support:staging --to prod --reason "new prompt" --confirm prod',
    )
    def promote(
        session: Session,
        reference: Ref,
        to: Annotated[str, typer.Option("--to", metavar="ENV", help="Where it is to be live.")],
        reason: ReasonOption,
        bindings: Annotated[
            Path | None,
            typer.Option(
                "--bindings",
                metavar="FILE",
                help="The environment's bindings. Without it: those beside a source path, else those that are live.",
            ),
        ] = None,
        plan: Annotated[bool, typer.Option("--plan", help="Print every check and change nothing.")] = False,
        plan_file: Annotated[
            Path | None,
            typer.Option(
                "--plan-file", metavar="F", help="With --plan: save the plan. Without: refuse if it is stale."
            ),
        ] = None,
        confirm: ConfirmOption = None,
        signer: SignerOption = None,
    ) -> None:
        """Make a bundle live in an environment, if its gate passes.

        Every check is printed with its verdict and why. Only pass passes: fail, inconclusive and error exit with 3 and
        change nothing. If someone else promotes first, the exit code is 5. On a terminal, prod asks to be confirmed;
        anywhere else it needs --confirm ENV.
        """
        from bundlectl.actions.promote import Plan, load_plan
        from bundlectl.actions.promote import promote as act
        from bundlectl.model.errors import GateNotPassed

        expected = load_plan(plan_file) if plan_file is not None and not plan else None
        context = session.context(signer=signer)
        try:
            result = act(
                context,
                reference,
                environment=to,
                reason=reason,
                bindings_file=bindings,
                confirmed=confirm or (None if plan else session.ask_confirmation(to)),
                plan_only=plan,
                expected_plan=expected,
            )
        except GateNotPassed as error:
            if session.output == "text":
                _plan(session.out, Plan.model_validate(error.details["plan"]))
            raise
        if plan and plan_file is not None:
            plan_file.write_text(result.plan.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")
        session.show(result, lambda out: promoted(out, result))
        if plan and result.plan.verdict != "pass":
            raise typer.Exit(3)

    @verb(
        app,
        "rollback",
        examples='bundlectl rollback support:prod --reason "answers got worse"\n'
        'bundlectl rollback support:prod@41 --reason "back to Monday\'s" --confirm prod',
    )
    def rollback(
        session: Session,
        reference: Annotated[str, typer.Argument(metavar="APP:ENV[@SERIAL]", help="What to take back, or to which.")],
        reason: ReasonOption,
        confirm: ConfirmOption = None,
        signer: SignerOption = None,
    ) -> None:
        """Return to a bundle that was live here. A new release: one command, seconds.

        It needs valid signatures, unblocked digests and the bundle's bytes. Ages, regressions, soak, freezes and
        approvals do not hold it up; they are printed as warnings. The bindings that are live stay.
        """
        from bundlectl.actions.rollback import rollback as act

        environment = reference.partition(":")[2].partition("@")[0]
        confirmed = confirm or session.ask_confirmation(environment)
        result = act(session.context(signer=signer), reference, reason=reason, confirmed=confirmed)
        session.show(result, lambda out: rolled_back(out, result))

    @verb(
        app,
        "bind",
        examples='bundlectl bind support:prod --disable-model large --reason "provider outage"\n'
        'bundlectl bind support:prod --enable-model large --reason "outage is over"\n'
        'bundlectl bind support:prod --file environments/prod.yaml --reason "new endpoint"',
    )
    def bind(
        session: Session,
        environment: Env,
        reason: ReasonOption,
        file: Annotated[
            Path | None, typer.Option("--file", metavar="FILE", help="Use this bindings file from now on.")
        ] = None,
        disable_model: Annotated[
            list[str] | None,
            typer.Option("--disable-model", metavar="NAME", help="Skip this model; may be repeated."),
        ] = None,
        enable_model: Annotated[
            list[str] | None, typer.Option("--enable-model", metavar="NAME", help="No longer skip it.")
        ] = None,
        confirm: ConfirmOption = None,
        signer: SignerOption = None,
    ) -> None:
        """Release the live bundle anew with other bindings: endpoints, limits, identities, disabled models."""
        from bundlectl.actions.bind import bind as act

        confirmed = confirm or session.ask_confirmation(environment.partition(":")[2])
        result = act(
            session.context(signer=signer),
            environment,
            reason=reason,
            file=file,
            disable=disable_model or [],
            enable=enable_model or [],
            confirmed=confirmed,
        )
        session.show(result, lambda out: _bound(out, result))

    @verb(app, "renew", examples="bundlectl renew support:prod --signer file:keys/renewer.pem")
    def renew(
        session: Session,
        environment: Env,
        reason: RenewalReasonOption = "scheduled renewal",
        signer: SignerOption = None,
    ) -> None:
        """Give the live release a later expiry; nothing else changes. What a scheduled job does every day."""
        from bundlectl.actions.renew import renew as act

        result = act(session.context(signer=signer), environment, reason=reason)
        session.show(result, lambda out: _released(out, result))

    @verb(app, "status", examples="bundlectl status\nbundlectl status support -o json")
    def status(
        session: Session,
        app: Annotated[str | None, typer.Argument(metavar="[APP]", help="One app; all without it.")] = None,
    ) -> None:
        """Say what is live in each environment, verified as a resolver would.

        Every environment is shown; if one does not verify, the exit code is 4.
        """
        from bundlectl.actions.status import status as act

        result = act(session.context(), app)
        session.show(result, lambda out: _status(out, result))
        if any(environment.state == "refused" for environment in result.environments):
            raise typer.Exit(4)

    @verb(app, "history", examples="bundlectl history support:prod\nbundlectl history support:prod --verify")
    def history(
        session: Session,
        environment: Env,
        verify: Annotated[bool, typer.Option("--verify", help="Walk the whole chain and check every link.")] = False,
        limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Print at most N.")] = None,
    ) -> None:
        """List an environment's releases, newest first."""
        from bundlectl.actions.status import history as act

        result = act(session.context(), environment, verify=verify, limit=limit)
        session.show(result, lambda out: history_table(out, result))


_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "error": "bold red"}


def checks_table(out: Console, checks: list[PlannedCheck]) -> None:
    """Print checks one by one: verdict, name, why; and the fix under those that do not pass."""
    from rich.text import Text

    for check in checks:
        style = "yellow" if check.warning and check.verdict != "pass" else _STYLE[check.verdict]
        word = "warning" if check.warning and check.verdict != "pass" else check.verdict
        out.print(Text(f"  {word:<13}", style=style) + Text(f"{check.name}: {check.why}"))
        if check.verdict != "pass" and check.fix:
            out.print(Text(f"               fix: {check.fix}", style="dim"))


def _plan(out: Console, plan: Plan) -> None:
    out.print(f"{plan.app}@{plan.bundle}", markup=False)
    replaces = f"replaces {plan.app}@{plan.replaces}" if plan.replaces else "is the first release"
    out.print(f"to {plan.environment} as release {plan.serial}; {replaces}", markup=False)
    out.print(f"bindings: {plan.bindings_from}", markup=False)
    checks_table(out, plan.checks)


def promoted(out: Console, result: Promoted) -> None:
    """Print a plan's checks, and the release where there is one."""
    _plan(out, result.plan)
    if result.released is None:
        out.print(f"the gate says {result.plan.verdict}; this was a plan, nothing was changed", markup=False)
    else:
        _released(out, result.released)


def _released(out: Console, released: Released) -> None:
    from rich.text import Text

    place = f"{released.app}:{released.environment}"
    out.print(
        Text(f"{place} is at release {released.serial}", style="bold")
        + Text(f" ({released.action}, by {released.actor})")
    )
    out.print(f"  bundle   {released.bundle}", markup=False)
    out.print(f"  release  {released.release}", markup=False)
    if released.expires:
        out.print(f"  expires  {released.expires}", markup=False)


def rolled_back(out: Console, result: RolledBack) -> None:
    """Print a rollback's checks and the release."""
    checks_table(out, result.checks)
    out.print(f"returned to what release {result.returned_to} made live", markup=False)
    _released(out, result.released)


def _bound(out: Console, result: Bound) -> None:
    from bundlectl.cli.differences import settings_lines

    settings_lines(out, result.changes)
    _released(out, result.released)


def _status(out: Console, result: Status) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in ("environment", "release", "bundle", "since (UTC)", "expires"):
        table.add_column(column, no_wrap=True)
    notes: list[Text] = []
    for environment in result.environments:
        place = f"{environment.app}:{environment.environment}"
        if environment.state == "live":
            table.add_row(
                place,
                f"{environment.serial} {environment.action}",
                (environment.bundle or "")[:15],
                minutes(environment.since),
                (environment.expires or "never")[:10],
            )
            notes.append(Text(f"{place}: {environment.reason} (by {environment.actor})", style="dim"))
        elif environment.state == "empty":
            table.add_row(place, Text("empty", style="dim"))
        else:
            table.add_row(place, Text("refused", style="bold red"))
            notes.append(Text(f"{place}: refused: {environment.problem}", style="bold red"))
        if environment.disabled_models:
            names = ", ".join(environment.disabled_models)
            notes.append(Text(f"{place}: disabled models: {names}", style="yellow"))
        notes += [Text(f"{place}: alarm: {alarm}", style="yellow") for alarm in environment.alarms]
    out.print(table)
    for note in notes:
        out.print(note)


def minutes(time: str | None) -> str:
    """Write a time of a document for a table: to the minute."""
    return time[:16].replace("T", " ") if time else ""


def history_table(out: Console, result: History) -> None:
    """Print an environment's releases, newest first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("release", "action", "bundle", "time (UTC)", "by", "why"):
        table.add_column(column, no_wrap=column != "why")
    for entry in result.entries:
        serial = f"{entry.serial}" if entry.epoch == 1 else f"{entry.epoch}-{entry.serial}"
        mark = " live" if entry.live else ""
        table.add_row(serial + mark, entry.action, entry.bundle[:15], minutes(entry.time), entry.actor, entry.reason)
    out.print(table)
    for entry in result.entries:
        for override in entry.overrides:
            out.print(f"release {entry.serial}: {override}", markup=False, style="yellow")
        for alarm in entry.alarms:
            out.print(f"alarm: {alarm}", markup=False, style="yellow")
    if result.verified:
        out.print(f"verified: {len(result.entries)} releases, every signature and every link", style="green")
