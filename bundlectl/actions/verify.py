"""verify: check a stored bundle and what is attested about it, or what is live, as a resolver would."""

from __future__ import annotations

from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle, open_current_policy, open_trust, releases_of
from bundlectl.actions.promote import PlannedCheck, planned_checks
from bundlectl.actions.releasing import current
from bundlectl.actions.transfer import SCHEME, oci_folder
from bundlectl.model.attestation import KINDS, OTHER_KIND, Envelope
from bundlectl.model.canonical import digest
from bundlectl.model.errors import NotFound, UsageError, VerificationFailed
from bundlectl.model.reference import EnvironmentReference, SourceReference, parse_reference
from bundlectl.model.types import Strict
from bundlectl.registry.head import place
from bundlectl.registry.oci import read_layout
from bundlectl.registry.witness import check_witness
from bundlectl.resolver.trusted import verify_bundle
from bundlectl.trust.envelope import envelope_bytes, open_statement
from bundlectl.trust.evidence import Attested, gather_evidence
from bundlectl.trust.requirements import required_evidence


class VerifiedAttestation(Strict):
    """One attestation that counts, and who signed it."""

    kind: str
    predicate_type: str | None = None
    digest: str
    signers: list[str]


class Verified(Strict):
    """What verify returns: every byte and signature that counts is right."""

    reference: str
    app: str
    bundle: str
    layers: int
    attestations: list[VerifiedAttestation]
    set_aside: list[str]
    checks: list[PlannedCheck] = []
    serial: int | None = None
    alarms: list[str] = []


def verify(ctx: Context, reference: str, *, for_environment: str | None = None) -> Verified:
    """Verify a bundle or what is live in an environment.

    Args:
        ctx: the context.
        reference: a stored bundle, ``APP:ENV``, or ``oci:DIR`` for an exported one.
        for_environment: also demand the evidence that this environment's gate asks for.

    Raises:
        VerificationFailed: bytes, signatures or evidence are not what they must be.
        UsageError: a source path, which has nothing stored to verify.
    """
    if reference.startswith(SCHEME):
        return _layout(reference)
    ref = parse_reference(reference)
    if isinstance(ref, SourceReference):
        raise UsageError(f"{reference} is a source.", fix="verify looks at what is stored; validate looks at sources.")
    if isinstance(ref, EnvironmentReference) and ref.serial is None:
        return _environment(ctx, ref)
    keyring = open_trust(ctx)
    app, bundle = load_bundle(ctx, ref)
    _ = bundle.components  # every component parses
    reason = keyring.blocked(bundle.digest)
    if reason is not None:
        raise VerificationFailed(f"Root has blocked {bundle.digest}.", why=reason)
    envelopes = [envelope for _, _, envelope in ctx.registry.attestations(app, bundle.digest)]
    counted, refused = gather_evidence(envelopes, bundle.digest, app, for_environment, keyring)
    checks = []
    if for_environment is not None:
        gate = open_current_policy(ctx, keyring, app).gate(for_environment)
        checks = required_evidence(gate, counted, keyring)
        missing = [check for check in checks if check.verdict != "pass"]
        if missing:
            raise VerificationFailed(
                f"{reference} lacks what {app}:{for_environment} asks for.",
                why="; ".join(f"{check.name}: {check.why}" for check in missing),
                fix="; ".join(dict.fromkeys(check.fix for check in missing if check.fix)),
            )
    return Verified(
        reference=reference,
        app=app,
        bundle=bundle.digest,
        layers=len(bundle.manifest.layers),
        attestations=[_counted(item) for item in counted],
        set_aside=[item.why for item in refused],
        checks=planned_checks(checks),
    )


def _counted(item: Attested) -> VerifiedAttestation:
    type_ = item.predicate_type if item.kind == OTHER_KIND else None
    return VerifiedAttestation(kind=item.kind, predicate_type=type_, digest=item.digest, signers=sorted(item.signers))


def _kind(envelope: Envelope) -> str:
    return KINDS.get(open_statement(envelope).predicateType, OTHER_KIND)


def _layout(reference: str) -> Verified:
    """Check an OCI layout: every byte, and that every attestation it should hold is there."""
    folder = oci_folder(reference)
    bundle, attestations, missing = read_layout(folder)
    if missing:
        raise VerificationFailed(
            f"{folder} is not whole.",
            why="; ".join(missing),
            fix="Copy it again with all of its images: skopeo copy --all",
            details={"missing": list(missing)},
        )
    return Verified(
        reference=reference,
        app=bundle.components.application.app,
        bundle=bundle.digest,
        layers=len(bundle.manifest.layers),
        attestations=[
            VerifiedAttestation(kind=_kind(envelope), digest=digest(envelope_bytes(envelope)), signers=[])
            for envelope in attestations
        ],
        set_aside=["whose signatures count is judged in a registry: import it, then verify"],
    )


def _environment(ctx: Context, ref: EnvironmentReference) -> Verified:
    witness = ctx.locate((ref.app, ref.environment)).witness(ref.app, ref.environment)
    keyring = open_trust(ctx)
    state = releases_of(ctx).read_head(ref.app, ref.environment)
    if state is None:
        check_witness(witness, None, None, ref.app, ref.environment)
        raise NotFound(f"Nothing is live in {ref}.")
    release = current(state.data, ref.app, ref.environment, keyring, ctx.clock())
    check_witness(witness, place(release.release), state.digest, ref.app, ref.environment)
    bundle = ctx.registry.get_bundle(ref.app, release.release.bundle)
    verify_bundle(bundle, release, keyring)
    releases_of(ctx).check_newest(ref.app, ref.environment, state)
    _ = bundle.components
    return Verified(
        reference=str(ref),
        app=ref.app,
        bundle=bundle.digest,
        layers=len(bundle.manifest.layers),
        attestations=[_counted(item) for item in release.evidence],
        set_aside=[],
        serial=release.release.serial,
        alarms=list(release.alarms),
    )
