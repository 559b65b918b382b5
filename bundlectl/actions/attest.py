"""sign, approve and attest: a principal's word about a stored bundle."""

from __future__ import annotations

from pathlib import Path

from bundlectl.actions.build import provenance_of
from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle, open_current_policy, open_trust
from bundlectl.model.attestation import (
    APPROVAL,
    EVALUATION,
    KINDS,
    OTHER_KIND,
    OVERRIDE,
    PAYLOAD_TYPE,
    PROVENANCE,
    RELEASE,
    Approval,
)
from bundlectl.model.canonical import canonical, parse_json
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.model.keyring import EvidenceRole
from bundlectl.model.types import Strict
from bundlectl.trust.envelope import make_statement, seal
from bundlectl.trust.evidence import SIGNER_ROLES
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.signers import AnySigner

MAX_PREDICATE = 64 * 1024
"""Bytes of a predicate: a head carries it, and a head is bounded."""

_OWN_VERB = {
    EVALUATION: "bundlectl eval",
    APPROVAL: "bundlectl approve",
    OVERRIDE: "bundlectl override",
    RELEASE: "bundlectl promote",
}


class Attestation(Strict):
    """What was attached to a bundle."""

    bundle: str
    kind: str
    digest: str
    signer: str
    environment: str | None = None
    predicate_type: str | None = None


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


def attest(
    ctx: Context, reference: str, *, predicate_type: str, predicate: Path, role: EvidenceRole | None = None
) -> Attestation:
    """Sign any statement about a bundle: SLSA provenance, a person's review, a red team's report.

    Args:
        ctx: the context.
        reference: the bundle.
        predicate_type: a URI; a gate asks for it by this name.
        predicate: a file with one JSON object of at most 64 KiB.
        role: in which role to sign; by default the signer's own.

    Raises:
        UsageError: a type that has a verb of its own, a file that holds no such predicate, or a key whose role
            is no word about a bundle.
    """
    _check_type(predicate_type)
    value = _predicate(predicate)
    app, bundle = load_bundle(ctx, reference)
    keyring = open_trust(ctx)
    kind = KINDS.get(predicate_type, OTHER_KIND)
    signer, held = _signer(ctx, keyring, kind, role)
    principal = keyring.signing_principal(signer, held, app, None)
    envelope = seal(make_statement(app, bundle.digest, predicate_type, value), PAYLOAD_TYPE, [signer])
    stored = ctx.registry.attach(app, bundle.digest, kind, envelope)
    return Attestation(bundle=bundle.digest, kind=kind, digest=stored, signer=principal, predicate_type=predicate_type)


def _signer(
    ctx: Context, keyring: VerifiedKeyring, kind: str, role: EvidenceRole | None
) -> tuple[AnySigner, EvidenceRole]:
    """Open the key and say in which role it signs: as asked for, else as the keyring has it."""
    able: list[EvidenceRole] = [found for found in ("builder", "evaluator", "approver") if found in SIGNER_ROLES[kind]]
    if role is not None and role not in able:
        raise UsageError(f"A statement of this type is not signed by a role {role}.", fix=f"Use {' or '.join(able)}.")
    signer = ctx.signer(role or able[-1])
    principal = keyring.principal_as(signer)
    roles = keyring.roles_of(principal) if principal is not None else frozenset()
    own = next((found for found in able if found in roles), able[-1])
    return signer, role or own


def _check_type(predicate_type: str) -> None:
    scheme, colon, rest = predicate_type.partition(":")
    if not (colon and scheme.isalnum() and rest) or len(predicate_type) > 200 or not predicate_type.isprintable():
        raise UsageError(
            f"{predicate_type!r} is no predicate type.",
            fix="Give a URI, e.g. https://slsa.dev/provenance/v1 or urn:example:red-team:v1",
        )
    if predicate_type in _OWN_VERB:
        raise UsageError(
            f"Statements of the type {predicate_type} are made by a verb of their own.",
            fix=_OWN_VERB[predicate_type],
        )


def _predicate(path: Path) -> dict[str, object]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The predicate {path} cannot be read.", why=error.strerror or str(error)) from error
    if len(data) > MAX_PREDICATE:
        raise UsageError(
            f"{path} has {len(data)} bytes; a predicate has at most {MAX_PREDICATE}.",
            fix="Store the report elsewhere, and attest its digest, its address and its conclusion.",
        )
    try:
        value = parse_json(data, what=str(path))
        canonical(value)
    except (VerificationFailed, ValueError) as error:
        why = error.why if isinstance(error, VerificationFailed) else str(error)
        raise UsageError(f"{path} is not JSON that can be signed.", why=why) from error
    if not isinstance(value, dict) or not value:
        raise UsageError(
            f"{path} holds no predicate.", fix='Write one JSON object, e.g. {"conclusion": "no findings"}.'
        )
    return value
