"""Commands on policies: each environment's gate, the app owners' document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.succession import RequestOption, SignersOption, changed_lines
from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.model.keyring import Policy

AppOption = Annotated[str, typer.Option("--app", metavar="APP", help="Whose policy.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A policy file: kind Policy, environments.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    policy = typer.Typer(
        help="Each environment's gate: the app owners' document.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(policy, name="policy")

    @verb(policy, "show", examples="bundlectl policy show support\nbundlectl policy show support -o json")
    def policy_show(session: Session, app: Annotated[str, typer.Argument(metavar="APP", help="Whose policy.")]) -> None:
        """Show what each environment of an app asks of a bundle."""
        from bundlectl.actions.keyring import policy_show as act

        result = act(session.context(), app)
        session.show(result, lambda out: _policy(out, result))

    @verb(
        policy,
        "set",
        examples="bundlectl policy set policy.yaml --app support --signer file:keys/owner.pem\n"
        "bundlectl policy set policy.yaml --app support --request change.json",
    )
    def policy_set(
        session: Session,
        file: FileArgument,
        app: AppOption,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Make a policy file the app's next policy, signed by its owners.

        With --request nothing is signed: the request goes to the owners (`keyring sign-request`, `keyring apply`).
        """
        from bundlectl.actions.policy import set_policy as act

        result = act(session.context(), file, app=app, signers=signer or [], request=request)
        what = f"policy {result.version} of {app}"
        session.show(
            result, lambda out: changed_lines(out, what, result.digest, result.changes, result.request, result.signers)
        )

    @verb(policy, "diff", examples="bundlectl policy diff policy.yaml --app support")
    def policy_diff(session: Session, file: FileArgument, app: AppOption) -> None:
        """Say what a policy file would change in each environment's gate."""
        from bundlectl.actions.policy import diff_policy as act

        result = act(session.context(), file, app=app)
        session.show(result, lambda out: _lines(out, result.changes or ["nothing would change"]))

    @verb(policy, "export", examples="bundlectl policy export support policy.yaml")
    def policy_export(
        session: Session,
        app: Annotated[str, typer.Argument(metavar="APP", help="Whose policy.")],
        file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist.")],
    ) -> None:
        """Write an app's policy as the file that `policy set` reads: edit it, look at the diff, set it."""
        from bundlectl.actions.policy import export_policy as act

        result = act(session.context(), app, file)
        session.show(result, lambda out: _lines(out, [f"{result.file}: policy {result.version} of {result.app}"]))


def _lines(out: Console, lines: list[str]) -> None:
    for line in lines:
        out.print(line, markup=False)


def _policy(out: Console, policy: Policy) -> None:
    out.print(f"policy {policy.version} of {policy.app}", markup=False)
    for name, gate in policy.environments.items():
        out.print(f"\n{name}", style="bold")
        asked = []
        if gate.provenance:
            asked.append(f"provenance by {gate.provenance} builders")
        for item in gate.evaluations:
            age = f", at most {item.max_age} old" if item.max_age else ""
            floors = "".join(f", {scorer} >= {floor:g}" for scorer, floor in item.floors.items())
            asked.append(f"evaluation {item.suite} passed{age}{floors}")
        asked += [f"{a.type} signed by {a.threshold} of the role {a.role}" for a in gate.attestations or ()]
        if gate.approvals:
            asked.append(f"{gate.approvals} approvals")
        if gate.soak:
            abroad = f" of registry {gate.soak.registry.id[:19]}" if gate.soak.registry else ""
            asked.append(f"live in {gate.soak.environment}{abroad} now, for at least {gate.soak.at_least}")
        asked += [f"no lint finding {rule}" for rule in gate.forbid_lint]
        asked += [f"frozen {f.start:%Y-%m-%d %H:%M} to {f.end:%Y-%m-%d %H:%M}: {f.reason}" for f in gate.freezes]
        if gate.confirm:
            asked.append(f"--confirm {name}")
        if gate.expires_after:
            asked.append(f"releases expire after {gate.expires_after}; then: {gate.past_expiry}")
        for line in asked or ["nothing"]:
            out.print(f"  {line}", markup=False)
