"""show: what a bundle holds, or one release."""

from __future__ import annotations

from typing import Any

from bundlectl.actions.context import Context
from bundlectl.actions.opening import live_or_former, load_bundle
from bundlectl.model.attestation import KINDS, EvaluationResult, ScoreSummary
from bundlectl.model.canonical import parse_json
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.reference import EnvironmentReference, SourceReference, parse_reference
from bundlectl.model.types import Strict
from bundlectl.trust.evidence import gather_evidence


class ShownAttestation(Strict):
    """An attestation by kind; ``counts`` is false where no signature of the right role is valid."""

    kind: str
    digest: str
    counts: bool
    signers: list[str]
    verdict: str | None = None
    suite: str | None = None
    predicate_type: str | None = None
    scores: list[ScoreSummary] = []
    why: str = ""


class Shown(Strict):
    """A bundle: its manifest's facts, each component whole, and what is attested about it."""

    app: str
    bundle: str
    size: int
    component_digests: dict[str, str]
    components: dict[str, Any]
    attestations: list[ShownAttestation]
    release: dict[str, Any] | None = None


def show(ctx: Context, reference: str) -> Shown:
    """Show a bundle; for ``APP:ENV`` or ``APP:ENV@SERIAL`` the release with it.

    Raises:
        NotFound: nothing is stored under the reference.
        VerificationFailed: stored bytes are not what their digests say.
    """
    ref = parse_reference(reference)
    app, bundle = load_bundle(ctx, ref)
    digests = bundle.component_digests()
    release = live_or_former(ctx, ref).release.form() if isinstance(ref, EnvironmentReference) else None
    return Shown(
        app=app,
        bundle=bundle.digest,
        size=sum(layer.size for layer in bundle.manifest.layers),
        component_digests=digests,
        components={name: parse_json(bundle.blobs[found], what=name) for name, found in digests.items()},
        attestations=[] if isinstance(ref, SourceReference) else attestations_of(ctx, app, bundle.digest),
        release=release,
    )


def attestations_of(ctx: Context, app: str, bundle: str) -> list[ShownAttestation]:
    """List what is attested about a bundle, and whether it counts."""
    from bundlectl.actions.opening import open_trust

    keyring = open_trust(ctx)
    shown: list[ShownAttestation] = []
    for kind, found, envelope in ctx.registry.attestations(app, bundle):
        environments = [None] if kind != "approval" else [_approved(envelope)]
        counted, refused = gather_evidence([envelope], bundle, app, environments[0], keyring)
        if not counted:
            why = refused[0].why if refused else ""
            shown.append(ShownAttestation(kind=kind, digest=found, counts=False, signers=[], why=why))
            continue
        predicate = counted[0].predicate
        result = predicate if isinstance(predicate, EvaluationResult) else None
        shown.append(
            ShownAttestation(
                kind=kind,
                digest=found,
                counts=True,
                signers=sorted(counted[0].signers),
                verdict=result.verdict if result else None,
                suite=result.suite if result else None,
                predicate_type=counted[0].predicate_type if kind not in KINDS.values() else None,
                scores=result.scores if result else [],
            )
        )
    return shown


def _approved(envelope: Any) -> str | None:
    """Give the environment that an approval names, to judge it there; None when it has no such form."""
    from bundlectl.trust.envelope import open_statement

    try:
        environment = open_statement(envelope).predicate.get("environment")
    except VerificationFailed:
        return None
    return environment if isinstance(environment, str) else None
