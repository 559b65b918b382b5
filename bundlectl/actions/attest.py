"""sign and approve: a builder's or an approver's word about a stored bundle."""

from __future__ import annotations

from pathlib import Path

from bundlectl.actions.build import provenance_of
from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle, open_current_policy, open_trust
from bundlectl.model.attestation import APPROVAL, PAYLOAD_TYPE, PROVENANCE, Approval
from bundlectl.model.errors import UsageError
from bundlectl.model.types import Strict
from bundlectl.trust.envelope import make_statement, seal


class Attestation(Strict):
    """What was attached to a bundle."""

    bundle: str
    kind: str
    digest: str
    signer: str
    environment: str | None = None


def sign(ctx: Context, reference: str, *, source: Path) -> Attestation:
    """Sign a stored bundle's provenance, after building the source again and finding the same digest.

    Raises:
        UsageError: the source builds to another bundle, or the key is not a builder's.
    """
    from bundlectl.bundling.build import build
    from bundlectl.bundling.source import read_source

    app, bundle = load_bundle(ctx, reference)
    rebuilt = build(read_source(source))
    if rebuilt.digest != bundle.digest:
        raise UsageError(
            f"{source} does not build to {bundle.digest}.",
            why=f"It builds to {rebuilt.digest}.",
            fix=f"See what differs: bundlectl diff {reference} {source}",
        )
    signer = ctx.signer("builder")
    builder = open_trust(ctx).signing_principal(signer, "builder", app, None)
    predicate = provenance_of(ctx, source, app, builder)
    envelope = seal(make_statement(app, bundle.digest, PROVENANCE, predicate), PAYLOAD_TYPE, [signer])
    stored = ctx.registry.attach(app, bundle.digest, "provenance", envelope)
    return Attestation(bundle=bundle.digest, kind="provenance", digest=stored, signer=builder)


def approve(ctx: Context, reference: str, *, environment: str, reason: str) -> Attestation:
    """Say yes to one bundle in one environment.

    Raises:
        NotFound: the app's policy does not name the environment.
        UsageError: the key is not an approver's there.
    """
    app, bundle = load_bundle(ctx, reference)
    keyring = open_trust(ctx)
    open_current_policy(ctx, keyring, app).gate(environment)
    signer = ctx.signer("approver")
    approver = keyring.signing_principal(signer, "approver", app, environment)
    approval = Approval(environment=environment, reason=reason, actor=approver, time=ctx.clock())
    statement = make_statement(app, bundle.digest, APPROVAL, approval.form())
    stored = ctx.registry.attach(app, bundle.digest, "approval", seal(statement, PAYLOAD_TYPE, [signer]))
    return Attestation(bundle=bundle.digest, kind="approval", digest=stored, signer=approver, environment=environment)
