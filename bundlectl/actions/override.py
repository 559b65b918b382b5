"""override: an approver sets checks of a gate aside, for one promotion of one bundle, for at most a day. DESIGN 6."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pydantic import ValidationError

from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle
from bundlectl.actions.releasing import stand
from bundlectl.model.attestation import MAX_OVERRIDE, OVERRIDE, PAYLOAD_TYPE, Override
from bundlectl.model.errors import UsageError
from bundlectl.model.types import Strict, format_time, seconds
from bundlectl.trust.envelope import brief, make_statement, seal
from bundlectl.trust.evidence import gather_evidence
from bundlectl.trust.overrides import waivable
from bundlectl.trust.requirements import builders_of, same_person


class Overridden(Strict):
    """What was set aside, for the release after ``previous``, until when; ``digest`` is of the signed envelope."""

    bundle: str
    environment: str
    checks: list[str]
    previous: str | None
    reason: str
    expires: str
    signer: str
    digest: str


def override(
    ctx: Context, reference: str, *, environment: str, checks: Sequence[str], reason: str, expires: str = "4h"
) -> Overridden:
    """Set checks aside for the promotion of a bundle that comes next in an environment.

    Args:
        ctx: the context.
        reference: the bundle.
        environment: where it is to go live.
        checks: names as ``promote --plan`` prints them: ``age:SUITE``, ``floor:SUITE/SCORER``, ``soak``,
            ``freeze``, ``lint:RULE``.
        reason: why; it is in every release that rests on it.
        expires: how long it holds, at most ``24h``.

    Raises:
        UsageError: a check that cannot be set aside or that the gate does not have, too long a time, a key that is
            no approver's there, or the bundle's builder approving their own work.
        NotFound: the app's policy does not name the environment.
    """
    app, bundle = load_bundle(ctx, reference)
    standing = stand(ctx, app, environment)
    _check_names(checks, waivable(standing.gate), f"{app}:{environment}")
    now = ctx.clock().replace(microsecond=0)
    until = now + _span(expires)
    signer = ctx.signer("approver")
    approver = standing.keyring.signing_principal(signer, "approver", app, environment)
    envelopes = [envelope for _, _, envelope in ctx.registry.attestations(app, bundle.digest)]
    counted, _ = gather_evidence(envelopes, bundle.digest, app, environment, standing.keyring)
    builders = builders_of(counted)
    if not builders or same_person([approver], builders, standing.keyring):
        raise UsageError(
            f"{approver} cannot override for {reference}: "
            + ("the same person built it." if builders else "nobody signed as its builder."),
            why="Nobody waives a check of their own work.",
            fix="Have another approver sign the override." if builders else "bundlectl build PATH --signer URI",
        )
    try:
        predicate = Override(
            environment=environment,
            checks=list(dict.fromkeys(checks)),
            previous=standing.present.digest if standing.present else None,
            reason=reason,
            actor=approver,
            time=now,
            expires=until,
        )
    except ValidationError as error:
        raise UsageError("An override cannot say that.", why=brief(error)) from error
    statement = make_statement(app, bundle.digest, OVERRIDE, predicate.form())
    stored = ctx.registry.attach(app, bundle.digest, "override", seal(statement, PAYLOAD_TYPE, [signer]))
    return Overridden(
        bundle=bundle.digest,
        environment=environment,
        checks=predicate.checks,
        previous=predicate.previous,
        reason=reason,
        expires=format_time(until),
        signer=approver,
        digest=stored,
    )


def _check_names(checks: Sequence[str], possible: Sequence[str], place: str) -> None:
    wrong = [name for name in checks if name not in possible]
    if not wrong and checks:
        return
    raise UsageError(
        f"{', '.join(wrong)} cannot be overridden in {place}." if wrong else "No check was named.",
        why="Signatures, required evidence, blocks and bytes are never waived, nor is what the gate does not ask for.",
        fix=f"Name one of: {', '.join(possible)}" if possible else "This gate has nothing that can be overridden.",
    )


def _span(text: str) -> timedelta:
    try:
        span = timedelta(seconds=seconds(text))
    except ValueError as error:
        raise UsageError(str(error), fix="--expires 4h") from error
    if not timedelta(seconds=1) <= span <= MAX_OVERRIDE:
        raise UsageError(f"An override lives at most 24h, and {text} was asked for.", fix="--expires 4h")
    return span
