"""Commands that say or check something about a bundle: sign, approve, attest, override, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bundlectl.cli.verb import FirstUseOption, ReasonOption, SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.attest import Attestation
    from bundlectl.actions.override import Overridden
    from bundlectl.actions.verify import Verified

Ref = Annotated[str, typer.Argument(metavar="REF", help="support@sha256:…, support:prod, or a source path.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(
        app,
        "sign",
        examples="bundlectl sign support@sha256:3f2a91c0 --source bundles/support --signer file:second.pem",
    )
    def sign(
        session: Session,
        reference: Ref,
        source: Annotated[Path, typer.Option("--source", metavar="PATH", help="Built again, and must give REF.")],
        signer: SignerOption = None,
    ) -> None:
        """Sign a stored bundle's provenance, after building its source again and finding the same digest.

        `build` signs already. This is for a second builder, where a gate asks for two.
        """
        from bundlectl.actions.attest import sign as act

        result = act(session.context(signer=signer), reference, source=source)
        session.show(result, lambda out: _attested(out, result))

    @verb(
        app,
        "approve",
        examples='bundlectl approve support:staging --for prod --reason "read the diff and the scores"',
    )
    def approve(
        session: Session,
        reference: Ref,
        environment: Annotated[str, typer.Option("--for", metavar="ENV", help="Where it may go live.")],
        reason: ReasonOption,
        signer: SignerOption = None,
    ) -> None:
        """Say yes, as an approver, to one bundle in one environment."""
        from bundlectl.actions.attest import approve as act

        result = act(session.context(signer=signer), reference, environment=environment, reason=reason)
        session.show(result, lambda out: _attested(out, result))

    @verb(
        app,
        "attest",
        examples="bundlectl attest support:staging --type urn:example:red-team:v1 --predicate red-team.json\n"
        "bundlectl attest support@sha256:3f2a91c0 --type https://slsa.dev/provenance/v1 --predicate slsa.json",
    )
    def attest(
        session: Session,
        reference: Ref,
        predicate_type: Annotated[
            str, typer.Option("--type", metavar="URI", help="The predicate's type; a gate asks for it by this name.")
        ],
        predicate: Annotated[
            Path, typer.Option("--predicate", metavar="FILE", help="One JSON object: what is said about the bundle.")
        ],
        role: Annotated[
            Literal["builder", "evaluator", "approver"] | None,
            typer.Option("--role", help="As whom, where no --signer is named. [default: the signer's own role]"),
        ] = None,
        signer: SignerOption = None,
    ) -> None:
        """Sign any statement about a bundle: SLSA provenance, a person's review, a red team's report.

        A gate asks for it with `attestations: [{type: URI, role: approver}]`, and resolvers check it again.
        """
        from bundlectl.actions.attest import attest as act

        context = session.context(signer=signer)
        result = act(context, reference, predicate_type=predicate_type, predicate=predicate, role=role)
        session.show(result, lambda out: _attested(out, result))

    @verb(
        app,
        "override",
        examples='bundlectl override support:staging --for prod --check soak --reason "outage: fix must go out"\n'
        'bundlectl override support@sha256:3f2a91c0 --for prod --check freeze --reason "agreed with ops" --expires 1h',
    )
    def override(
        session: Session,
        reference: Ref,
        environment: Annotated[str, typer.Option("--for", metavar="ENV", help="Where it is to go live.")],
        check: Annotated[
            list[str],
            typer.Option(
                "--check", metavar="NAME", help="age:SUITE, floor:SUITE/SCORER, soak, freeze or lint:RULE; repeatable."
            ),
        ],
        reason: ReasonOption,
        expires: Annotated[str, typer.Option("--expires", metavar="DURATION", help="How long; at most 24h.")] = "4h",
        signer: SignerOption = None,
    ) -> None:
        """As an approver, set checks of a gate aside for the one promotion that comes next.

        It names the head that is live now, so it serves once. What resolvers check again cannot be set aside:
        signatures, required evidence, blocks, bytes. The release carries the override for ever.
        """
        from bundlectl.actions.override import override as act

        context = session.context(signer=signer)
        result = act(context, reference, environment=environment, checks=check, reason=reason, expires=expires)
        session.show(result, lambda out: _overridden(out, result))

    @verb(
        app,
        "verify",
        examples="bundlectl verify support:prod\n"
        "bundlectl verify support@sha256:3f2a91c0 --for prod\n"
        "bundlectl verify oci:./support",
    )
    def verify(
        session: Session,
        reference: Annotated[str, typer.Argument(metavar="REF|APP:ENV|oci:DIR", help="What to verify.")],
        environment: Annotated[
            str | None,
            typer.Option("--for", metavar="ENV", help="Also demand what this environment's gate asks for."),
        ] = None,
        trust_first_use: FirstUseOption = False,
    ) -> None:
        """Check every byte and signature: of a bundle, of what is live (as a resolver would), or of an export.

        Exit 4 when anything is not what it must be.
        """
        from bundlectl.actions.verify import verify as act

        result = act(session.context(trust_first_use=trust_first_use), reference, for_environment=environment)
        session.show(result, lambda out: _verified(out, result))


def _attested(out: Console, result: Attestation) -> None:
    place = f" for {result.environment}" if result.environment else ""
    what = result.predicate_type or result.kind
    out.print(f"{what}{place} of {result.bundle} signed by {result.signer}", markup=False)
    out.print(result.digest, markup=False)


def _overridden(out: Console, result: Overridden) -> None:
    out.print(f"{', '.join(result.checks)} overridden for {result.bundle} in {result.environment}", markup=False)
    out.print(f"  by {result.signer} until {result.expires}: {result.reason}", markup=False)
    out.print(f"  replaces {result.previous or 'nothing: the first release'}", markup=False)
    out.print(result.digest, markup=False)


def _verified(out: Console, result: Verified) -> None:
    from bundlectl.cli.releases import checks_table

    serial = f" release {result.serial}" if result.serial else ""
    out.print(f"verified {result.reference}{serial}", style="green")
    out.print(f"  bundle {result.bundle}, {result.layers} layers, every byte", markup=False)
    for item in result.attestations:
        signers = f" by {', '.join(item.signers)}" if item.signers else ""
        out.print(f"  {item.predicate_type or item.kind}{signers} {item.digest[:19]}", markup=False)
    for line in result.set_aside:
        out.print(f"  note: {line}", markup=False, style="dim")
    checks_table(out, result.checks)
    for alarm in result.alarms:
        out.print(f"  alarm: {alarm}", markup=False, style="yellow")
