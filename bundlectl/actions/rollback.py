"""rollback: return to a bundle that was live here. A new release, one command; not gated like a promotion."""

from __future__ import annotations

from collections.abc import Sequence

from bundlectl.actions.context import Context
from bundlectl.actions.opening import releases_of
from bundlectl.actions.promote import (
    PlannedCheck,
    pinned_snapshots,
    planned_checks,
)
from bundlectl.actions.releasing import (
    Released,
    Standing,
    check_servable,
    commit_release,
    former,
    next_release,
    reading_ahead,
    require_live,
    stand,
)
from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import GateNotPassed, UsageError, VerificationFailed
from bundlectl.model.fitting import returning
from bundlectl.model.reference import parse_environment
from bundlectl.model.release import RollbackTarget
from bundlectl.model.types import Strict
from bundlectl.registry.layout import history_key, pack_key
from bundlectl.registry.registry import check_app
from bundlectl.registry.releases import Entry
from bundlectl.resolver.trusted import VerifiedRelease
from bundlectl.trust.evidence import gather_evidence
from bundlectl.trust.gate import Origin, Replaced, Situation, judge_rollback, verdict_of


class RolledBack(Strict):
    """What rollback returns; ``warnings`` are what a promotion would have been held up by."""

    checks: list[PlannedCheck]
    released: Released
    returned_to: int


@reading_ahead
def rollback(ctx: Context, reference: str, *, reason: str, confirmed: str | None = None) -> RolledBack:
    """Make the bundle of an earlier release live again, with the bindings that are live as far as they fit it.

    Args:
        ctx: the context.
        reference: ``APP:ENV`` for the live release's rollback target, ``APP:ENV@SERIAL`` for that release's bundle.
        reason: why; part of the release for ever.
        confirmed: the environment's name, where its gate asks to confirm.

    Raises:
        GateNotPassed: the bundle is blocked, its bytes or signatures are not whole, or it was not confirmed.
        NotFound: nothing is live, or the serial never was.
        UsageError: the live release has nothing to return to.
    """
    ref = parse_environment(reference)
    standing = stand(
        ctx,
        ref.app,
        ref.environment,
        foresee=lambda live: _read_because_of(live, ref.serial),
        # A newer policy comes into force with a promotion. Nothing that it says may stand in a rollback's way.
        newest_policy=False,
    )
    _, live = require_live(standing)
    entry = _promotion(ctx, standing, live, ref.serial)
    origin = former(entry.data, ref.app, ref.environment, standing.keyring)
    bundle = _bundle(ctx, standing, origin.release.bundle)
    again = origin.release.bundle == live.release.bundle
    checks = judge_rollback(_situation(ctx, standing, origin, bundle, confirmed))
    if verdict_of(checks) != "pass":
        stopped = [c for c in checks if c.verdict != "pass" and not c.warning]
        raise GateNotPassed(
            f"{reference} cannot be rolled back to release {entry.release.serial}; nothing was changed.",
            why="; ".join(f"{c.name}: {c.why}" for c in stopped),
            fix="; ".join(dict.fromkeys(c.fix for c in stopped if c.fix)) or "Name another release: APP:ENV@SERIAL",
        )
    bindings, changes = returning(live.release.bindings, origin.release.bindings, bundle.components)
    check_servable(bundle, bindings, standing.keyring)
    release = next_release(
        ctx,
        standing,
        "promoter",
        action="rollback",
        bundle=origin.release.bundle,
        bindings=bindings,
        reason=reason,
        since=live.release.since if again else standing.now,
        # Returning to what is live already must not make it its own target: the way back would be lost.
        rollback_target=live.release.rollback_target
        if again
        else RollbackTarget(bundle=live.release.bundle, epoch=live.promotion.epoch, serial=live.promotion.serial),
    )
    released = commit_release(
        ctx,
        standing,
        "promoter",
        release,
        origins=[origin.head.release],
        evidence=origin.head.evidence,
        policies=[standing.policy.envelope, origin.promotion_policy.envelope],
        warnings=[
            *(
                [f"That bundle was live in {ref.app}:{ref.environment} already: answers do not change."]
                if again
                else []
            ),
            *_warnings(planned_checks(checks)),
            *(f"bindings: {change}" for change in changes),
        ],
    )
    return RolledBack(checks=planned_checks(checks), released=released, returned_to=entry.release.serial)


def _read_because_of(live: VerifiedRelease, serial: int | None) -> list[str]:
    """Give what a rollback reads because of what is live: the promotion that it returns to, and its bundle."""
    release, target = live.release, live.release.rollback_target
    if serial is not None:
        return [history_key(release.app, release.environment, release.epoch, serial)]
    if target is None:
        return []
    former = history_key(release.app, release.environment, target.epoch, target.serial)
    return [former, pack_key(release.app, target.bundle)]


def _promotion(ctx: Context, standing: Standing, live: VerifiedRelease, serial: int | None) -> Entry:
    """Find the promotion to return to: the live release's target, or the one behind a serial."""
    releases = releases_of(ctx)
    if serial is None:
        target = live.release.rollback_target
        if target is None:
            raise UsageError(
                f"The live release of {standing.app}:{standing.environment} has no rollback target: it is the first.",
                fix="Promote a good bundle instead, or disable what harms: bundlectl bind.",
            )
        return releases.release_at(
            standing.app, standing.environment, target.serial, epoch=target.epoch, head=standing.present
        )
    entry = releases.release_at(standing.app, standing.environment, serial, head=standing.present)
    if entry.release.action == "promotion":
        return entry
    for older in releases.history(standing.app, standing.environment):
        if (
            older.place <= entry.place
            and older.release.action == "promotion"
            and older.release.bundle == entry.release.bundle
        ):
            return older
    raise VerificationFailed(
        f"The promotion behind release {serial} is not in the history of {standing.app}:{standing.environment}.",
        fix=f"bundlectl history {standing.app}:{standing.environment} --verify",
    )


def _bundle(ctx: Context, standing: Standing, bundle_digest: str) -> Bundle:
    bundle = ctx.registry.get_bundle(standing.app, bundle_digest)
    check_app(bundle, standing.app)
    return bundle


def _situation(
    ctx: Context, standing: Standing, origin: VerifiedRelease, bundle: Bundle, confirmed: str | None
) -> Situation:
    envelopes = origin.head.evidence
    counted, _ = gather_evidence(envelopes, bundle.digest, standing.app, standing.environment, standing.keyring)
    return Situation(
        bundle=bundle.digest,
        app=standing.app,
        environment=standing.environment,
        gate=standing.gate,
        attested=counted,
        keyring=standing.keyring,
        now=standing.now,
        bytes_present=True,
        snapshots=pinned_snapshots(bundle),
        replaces=Replaced(standing.live.release.bundle if standing.live else None),
        switched_off=origin.release.bindings.disabled_models,
        confirmed=confirmed,
        in_history=True,
        origin=Origin(gate=origin.gate, attested=origin.evidence),
    )


def _warnings(checks: Sequence[PlannedCheck]) -> list[str]:
    return [f"{check.name}: {check.why}" for check in checks if check.warning and check.verdict != "pass"]
