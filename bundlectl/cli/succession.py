"""Commands that make the keyring's next version, and carry signatures to and from machines that are kept offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bundlectl.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.applying import Applied
    from bundlectl.actions.signing import ShownRequest, SignedRequest
    from bundlectl.actions.succession import KeyringChanged
    from bundlectl.cli.session import Session
    from bundlectl.model.keyring import Oidc
    from bundlectl.model.signing import WhoSigns

SignersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--signer",
        metavar="URI",
        help="A key to sign with; repeatable. [default: the workspace's key of the role]",
        show_default=False,
    ),
]
RequestOption = Annotated[
    Path | None,
    typer.Option("--request", metavar="FILE", help="Sign nothing: write what is to be signed elsewhere to this file."),
]
WhyOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why. It is signed with the keyring.")]
MaybeWhyOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why. It is signed with the keyring.")
]
AddOption = Annotated[
    list[str] | None,
    typer.Option("--add", metavar="PRINCIPAL,WHO,FILE.pub", help="A new principal with its key; repeatable."),
]
ThresholdOption = Annotated[
    int | None, typer.Option("--threshold", metavar="N", min=1, help="How many of them must sign.")
]
Who = Annotated[str, typer.Argument(metavar="PRINCIPAL", help="Its name in the keyring.")]


def register(keyring: typer.Typer) -> None:
    """Add the commands to the group `keyring`."""

    @verb(
        keyring,
        "add",
        examples="bundlectl keyring add ann --owner ann@example.com --role approver --key ann.pub --apps support\n"
        "bundlectl keyring add ci --owner platform --role promoter --key awskms:alias/promoter --envs staging,prod\n"
        "bundlectl keyring add ci-build --owner platform --role builder --oidc-issuer https://gitlab.example.com "
        "--oidc-subject https://gitlab.example.com/org/app//.gitlab-ci.yml@refs/heads/main",
    )
    def add(
        session: Session,
        principal: Who,
        owner: Annotated[str, typer.Option("--owner", metavar="WHO", help="The person or team behind the key.")],
        role: Annotated[
            Literal["builder", "evaluator", "approver", "promoter", "renewer", "indexer", "gc"],
            typer.Option("--role", help="The one thing that the key may do."),
        ],
        key: Annotated[
            str | None,
            typer.Option("--key", metavar="FILE.pub|URI", help="Its public key in PEM, or its signer: awskms:…."),
        ] = None,
        oidc_issuer: Annotated[
            str | None, typer.Option("--oidc-issuer", metavar="URL", help="Instead of a key: who vouches for it.")
        ] = None,
        oidc_subject: Annotated[
            str | None,
            typer.Option("--oidc-subject", metavar="NAME", help="As its certificates name it: an e-mail, or a URI."),
        ] = None,
        apps: Annotated[str, typer.Option("--apps", metavar="A,B", help="For which apps.")] = "*",
        envs: Annotated[str, typer.Option("--envs", metavar="X,Y", help="In which environments.")] = "*",
        reason: MaybeWhyOption = None,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Give a principal a role; one that is there already gets it in more places."""
        from bundlectl.actions.succession import add as act

        result = act(
            session.context(),
            principal,
            owner=owner,
            role=role,
            key=key,
            oidc=_oidc(oidc_issuer, oidc_subject),
            apps=apps.split(","),
            environments=envs.split(","),
            reason=reason,
            signers=signer or [],
            request=request,
        )
        _show(session, result)

    @verb(
        keyring,
        "trust-root",
        examples="bundlectl keyring trust-root public --issuer https://token.actions.githubusercontent.com\n"
        "bundlectl keyring trust-root own trusted_root.json --issuer https://login.example.com --request change.json\n"
        'bundlectl keyring trust-root own --remove --reason "its log was compromised"',
    )
    def trust_root(
        session: Session,
        name: Annotated[str, typer.Argument(metavar="NAME", help="What the keyring calls the Sigstore instance.")],
        file: Annotated[
            Path | None,
            typer.Argument(
                metavar="FILE", help="Its trusted_root.json. [default: fetch the public instance's]", show_default=False
            ),
        ] = None,
        issuer: Annotated[
            list[str] | None,
            typer.Option("--issuer", metavar="URL", help="An OIDC issuer for whose identities it vouches; repeatable."),
        ] = None,
        remove: Annotated[bool, typer.Option("--remove", help="Trust it no more.")] = False,
        reason: MaybeWhyOption = None,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Trust a Sigstore instance for the identities of OIDC issuers, by its trusted root; or renew that."""
        from bundlectl.actions.trust_root import trust_root as act

        result = act(
            session.context(),
            name,
            file,
            issuers=issuer or [],
            remove=remove,
            reason=reason,
            signers=signer or [],
            request=request,
        )
        _show(session, result)

    @verb(keyring, "retire", examples='bundlectl keyring retire ci-2025 --reason "replaced by ci-2026"')
    def retire(
        session: Session, principal: Who, reason: WhyOption, signer: SignersOption = None, request: RequestOption = None
    ) -> None:
        """Retire a key: it signs no more, and what it signed still counts. Refused while a live release needs it."""
        from bundlectl.actions.succession import retire as act

        _show(session, act(session.context(), principal, reason=reason, signers=signer or [], request=request))

    @verb(keyring, "compromise", examples='bundlectl keyring compromise ci-promoter --reason "key was in a log"')
    def compromise(
        session: Session, principal: Who, reason: WhyOption, signer: SignersOption = None, request: RequestOption = None
    ) -> None:
        """Declare a key compromised, for ever: nothing that it signed counts. Names what is live and rests on it."""
        from bundlectl.actions.succession import compromise as act

        _show(session, act(session.context(), principal, reason=reason, signers=signer or [], request=request))

    @verb(keyring, "block", examples='bundlectl keyring block support@sha256:3f2a91c0 --reason "leaks a key"')
    def block(
        session: Session,
        digest: Annotated[str, typer.Argument(metavar="DIGEST", help="sha256:…, or a reference to a bundle.")],
        reason: WhyOption,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Block a bundle, a part of one, a snapshot or evidence: it stops serving as soon as routers see it."""
        from bundlectl.actions.succession import block as act

        _show(session, act(session.context(), digest, reason=reason, signers=signer or [], request=request))

    @verb(keyring, "epoch", examples='bundlectl keyring epoch support:prod --reason "the promoter key was stolen"')
    def epoch(
        session: Session,
        environment: Annotated[str, typer.Argument(metavar="APP:ENV", help="Whose releases are to begin anew.")],
        reason: WhyOption,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Raise an environment's epoch: releases made before count no more, and it is to be promoted anew."""
        from bundlectl.actions.succession import epoch as act

        _show(session, act(session.context(), environment, reason=reason, signers=signer or [], request=request))

    @verb(
        keyring,
        "rotate-root",
        examples="bundlectl keyring rotate-root --add root-2,ron,ron.pub --threshold 2 --request change.json\n"
        "bundlectl keyring rotate-root --remove root-1 --signer file:root-1.pem --signer file:root-2.pem",
    )
    def rotate_root(
        session: Session,
        add: AddOption = None,
        remove: Annotated[
            list[str] | None, typer.Option("--remove", metavar="PRINCIPAL", help="Leaves root; repeatable.")
        ] = None,
        threshold: ThresholdOption = None,
        expires: Annotated[
            str | None, typer.Option("--expires", metavar="DURATION", help="How long the keyring holds from now.")
        ] = None,
        reason: MaybeWhyOption = None,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Change who root is. The present root and the new one must both sign, each by its threshold."""
        from bundlectl.actions.succession import rotate_root as act

        result = act(
            session.context(),
            add=add or [],
            remove=remove or [],
            threshold=threshold,
            expires=expires,
            reason=reason,
            signers=signer or [],
            request=request,
        )
        _show(session, result)

    @verb(
        keyring,
        "app",
        examples="bundlectl keyring app billing --add billing-owner,olga@example.com,olga.pub\n"
        "bundlectl keyring app support --owners olga,otto --threshold 2",
    )
    def set_app(
        session: Session,
        name: Annotated[str, typer.Argument(metavar="NAME", help="The app.")],
        owners: Annotated[
            str | None, typer.Option("--owners", metavar="P,Q", help="Principals of the keyring that own its policy.")
        ] = None,
        add: AddOption = None,
        threshold: ThresholdOption = None,
        policy_floor: Annotated[
            int | None, typer.Option("--policy-floor", metavar="N", min=1, help="The least policy version that counts.")
        ] = None,
        reason: MaybeWhyOption = None,
        signer: SignersOption = None,
        request: RequestOption = None,
    ) -> None:
        """Add an app with the owners of its policy, or change them. The owners then write its gates: policy set."""
        from bundlectl.actions.succession import set_app as act

        result = act(
            session.context(),
            name,
            owners=owners.split(",") if owners is not None else None,
            add=add or [],
            threshold=threshold,
            policy_floor=policy_floor,
            reason=reason,
            signers=signer or [],
            request=request,
        )
        _show(session, result)

    @verb(
        keyring,
        "sign-request",
        examples="bundlectl keyring sign-request change.json --show\n"
        "bundlectl keyring sign-request change.json --signer file:root-1.pem",
    )
    def sign_request(
        session: Session,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="What --request wrote.")],
        show: Annotated[bool, typer.Option("--show", help="Say what it would change; sign nothing.")] = False,
        out: Annotated[
            Path | None, typer.Option("--out", metavar="SIG", help="Where the signature goes. [default: beside FILE]")
        ] = None,
        again: Annotated[
            bool, typer.Option("--again", help="Another such version was signed here before, and given up.")
        ] = False,
        signer: SignersOption = None,
    ) -> None:
        """On the machine that holds the key: show what a request changes, sign it, write the signature to a file.

        No registry is needed, only this machine's pin (BUNDLECTL_PIN). Works for keyrings and policies. On a terminal
        you are asked first.
        """
        from bundlectl.actions.signing import show_request
        from bundlectl.actions.signing import sign_request as act
        from bundlectl.model.errors import UsageError

        context = session.context()
        shown = show_request(context, file)
        if show:
            session.show(shown, lambda console: _request(console, shown))
            return
        _request(session.err, shown)
        if session.interactive and session.output == "text":
            sys.stderr.write(f"Sign this? Type the version ({shown.version}) to go on: ")
            sys.stderr.flush()
            if sys.stdin.readline().strip() != str(shown.version):
                raise UsageError("Nothing was signed.")
        result = act(context, file, signers=signer or [], out=out, again=again)
        session.show(result, lambda console: _signed(console, result))

    @verb(keyring, "apply", examples="bundlectl keyring apply change.json root-1.sig root-2.sig")
    def apply(
        session: Session,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The request.")],
        signatures: Annotated[list[Path], typer.Argument(metavar="SIG…", help="The signatures that came back.")],
    ) -> None:
        """Join signatures to a request and store the new keyring or policy, if they are enough."""
        from bundlectl.actions.applying import apply as act

        result = act(session.context(), file, signatures)
        session.show(result, lambda console: _applied(console, result))


def changed_lines(
    out: Console, what: str, digest: str, changes: list[str], request: str | None, signers: list[WhoSigns]
) -> None:
    """Print what changed, or what is to be signed and by whom."""
    out.print(f"{what} is not stored: {request} is to be signed" if request else f"{what} is stored", markup=False)
    out.print(digest, markup=False)
    for line in changes:
        out.print(f"  {line}", markup=False)
    for who in signers if request else []:
        out.print(f"sign: {who.threshold} of {', '.join(who.principals)} ({who.why})", markup=False)


def _oidc(issuer: str | None, subject: str | None) -> Oidc | None:
    """Give the identity that the two options name; None when neither is there."""
    from bundlectl.model.errors import UsageError
    from bundlectl.model.keyring import Oidc

    if issuer is None and subject is None:
        return None
    if not issuer or not subject:
        raise UsageError("An identity has an issuer and a subject.", fix="Give --oidc-issuer and --oidc-subject.")
    return Oidc(issuer=issuer, subject=subject)


def _show(session: Session, result: KeyringChanged) -> None:
    def render(out: Console) -> None:
        changed_lines(out, f"keyring {result.version}", result.digest, result.changes, result.request, result.signers)
        _consequences(out, result.consequences)

    session.show(result, render)


def _consequences(out: Console, consequences: list[str]) -> None:
    for line in consequences:
        out.print(f"  will be refused: {line}", markup=False, style="yellow")


def _request(out: Console, shown: ShownRequest) -> None:
    place = f" of {shown.app}" if shown.app else ""
    out.print(f"{shown.document} {shown.version}{place}, {shown.digest}", markup=False)
    out.print(f"on top of keyring {shown.present}, {shown.present_digest}", markup=False)
    for line in shown.changes or ["nothing changes but the version"]:
        out.print(f"  {line}", markup=False)
    for who in shown.signers:
        out.print(f"sign: {who.threshold} of {', '.join(who.principals)} ({who.why})", markup=False)


def _signed(out: Console, result: SignedRequest) -> None:
    out.print(f"{result.file}: signed by {', '.join(result.signed_by)}", markup=False)


def _applied(out: Console, result: Applied) -> None:
    place = f" of {result.app}" if result.app else ""
    out.print(f"{result.document} {result.version}{place} is stored", markup=False)
    out.print(result.digest, markup=False)
    for line in result.changes:
        out.print(f"  {line}", markup=False)
    _consequences(out, result.consequences)
