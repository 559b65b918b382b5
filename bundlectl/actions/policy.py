"""policy set, diff and export: the app owners' gates, from a strict YAML file to version N+1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_current_policy, open_trust
from bundlectl.actions.signing import open_signers, policy_changes, policy_signers, write_new, write_request
from bundlectl.model.attestation import POLICY_PAYLOAD_TYPE, Envelope
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import Conflict, UsageError, VerificationFailed
from bundlectl.model.keyring import Policy, PolicySource
from bundlectl.model.signing import WhoSigns
from bundlectl.model.types import Strict
from bundlectl.trust.envelope import envelope_bytes, open_document, parse_envelope, payload_of
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.policy import VerifiedPolicy, check_policy, open_policy, seal_policy


class PolicyChanged(Strict):
    """The next policy: stored, or (with ``request``) waiting for signatures."""

    app: str
    version: int
    digest: str
    changes: list[str]
    request: str | None = None
    signers: list[WhoSigns]


class PolicyDiff(Strict):
    """What a policy file would change."""

    app: str
    present: int
    changes: list[str]


class PolicyExported(Strict):
    """A policy as a file that can be edited and set again."""

    app: str
    version: int
    file: str


def set_policy(
    ctx: Context, file: Path, *, app: str, signers: Sequence[str] = (), request: Path | None = None
) -> PolicyChanged:
    """Make a policy file the app's next policy; sign and store it, or write the request to have it signed.

    Raises:
        SourceError: the file does not validate; every problem with its line.
        UsageError: nothing would change.
        VerificationFailed: it breaks a rule, or too few owners signed.
        Conflict: someone else stored that version first.
    """
    keyring = open_trust(ctx)
    present = _present(ctx, keyring, app)
    document = _next(_source(file), app, present)
    changes = policy_changes(keyring, present, document)
    if not changes:
        raise UsageError(f"{file} is what the policy of {app} says already; nothing was changed.")
    who = policy_signers(keyring, app)
    if request is not None:
        write_request(ctx, request, document, policy=present)
    else:
        envelope = seal_policy(document, open_signers(ctx, signers, "owner"))
        store_policy(ctx, keyring, envelope, app)
    return PolicyChanged(
        app=app,
        version=document.version,
        digest=digest(canonical(document.form())),
        changes=changes,
        request=str(request) if request is not None else None,
        signers=who,
    )


def diff_policy(ctx: Context, file: Path, *, app: str) -> PolicyDiff:
    """Say what a policy file would change.

    Raises:
        SourceError: the file does not validate.
        VerificationFailed: it breaks a rule of policies.
    """
    keyring = open_trust(ctx)
    present = _present(ctx, keyring, app)
    document = _next(_source(file), app, present)
    return PolicyDiff(app=app, present=document.version - 1, changes=policy_changes(keyring, present, document))


def export_policy(ctx: Context, app: str, file: Path) -> PolicyExported:
    """Write an app's policy as the YAML file that `policy set` reads.

    Raises:
        UsageError: the file exists.
        NotFound: the app has no policy.
    """
    import yaml

    policy = open_current_policy(ctx, open_trust(ctx), app).document
    source = PolicySource(apiVersion="bundlectl/v1", kind="Policy", environments=policy.environments)
    form = source.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    text = yaml.safe_dump(form, sort_keys=False, allow_unicode=True)
    write_new(file, text.encode())
    return PolicyExported(app=app, version=policy.version, file=str(file))


def store_policy(ctx: Context, keyring: VerifiedKeyring, envelope: Envelope, app: str) -> VerifiedPolicy:
    """Store an app's next policy, once enough of its owners signed it.

    Raises:
        VerificationFailed: too few did, it breaks a rule, or it does not follow the present one.
        Conflict: someone else stored that version first.
    """
    policy = open_policy(envelope, keyring, app)
    if policy.document != _next(policy.document, app, _present(ctx, keyring, app, before=policy.version)):
        raise VerificationFailed(f"Policy {policy.version} does not follow the present policy of {app}.")
    try:
        ctx.registry.put_policy(app, policy.version, envelope_bytes(envelope))
    except VerificationFailed:
        if (theirs := ctx.registry.policy_bytes(app, policy.version)) is None or not _opens(keyring, theirs, app):
            raise
        raise Conflict(
            f"Someone else stored policy {policy.version} of {app} first; nothing of yours was stored.",
            fix="See it (bundlectl policy show), and repeat the command on top of it.",
        ) from None
    return policy


def _present(ctx: Context, keyring: VerifiedKeyring, app: str, *, before: int | None = None) -> Envelope | None:
    """Give the newest stored policy (older than ``before``), whether or not it still verifies; None: there is none.

    One that a lost key signed must be succeeded too.
    """
    keyring.app(app)
    found = ctx.registry.latest_policy(app, 0)
    found = found if before is None else found[: before - 1]
    return parse_envelope(found[-1], f"policy {len(found)} of {app}") if found else None


def _next(source: PolicySource | Policy, app: str, present: Envelope | None) -> Policy:
    version, previous = 1, None
    if present is not None:
        version = open_document(present, POLICY_PAYLOAD_TYPE, Policy, "The present policy").version + 1
        previous = digest(payload_of(present))
    document = Policy(app=app, version=version, previous=previous, environments=source.environments)
    check_policy(document)
    return document


def _source(file: Path) -> PolicySource:
    from bundlectl.bundling.documents import load_document

    return load_document(file, PolicySource)


def _opens(keyring: VerifiedKeyring, data: bytes, app: str) -> bool:
    try:
        open_policy(parse_envelope(data, "a policy"), keyring, app)
    except VerificationFailed:
        return False
    return True
