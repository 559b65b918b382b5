"""promote: make a bundle live in an environment, if its gate passes; or show what the gate says (plan)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from bundlectl.actions.context import Context
from bundlectl.actions.opening import expect_trust, live_or_former, open_trust, releases_of, resolve_bundle
from bundlectl.actions.releasing import (
    Released,
    Standing,
    check_servable,
    commit_release,
    next_place,
    next_release,
    reading_ahead,
    stand,
)
from bundlectl.actions.soaking import SOAKS_IN, Soaking, soak_abroad, soaking_in
from bundlectl.bundling.lint import lint
from bundlectl.model.attestation import Envelope
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import Conflict, GateNotPassed, NotFound, UsageError
from bundlectl.model.reference import BundleReference, EnvironmentReference, SourceReference, parse_reference
from bundlectl.model.release import RollbackTarget
from bundlectl.model.types import Strict, wrong_fields
from bundlectl.model.verdict import Verdict
from bundlectl.registry.collecting import refuse_marked
from bundlectl.registry.layout import gc_key, head_key, pack_key, referrers_prefix
from bundlectl.registry.registry import check_app
from bundlectl.registry.releases import Entry
from bundlectl.resolver.trusted import VerifiedRelease
from bundlectl.trust import gate as gates
from bundlectl.trust.abroad import is_release
from bundlectl.trust.evidence import Attested, gather_evidence
from bundlectl.trust.gate import Check, Situation, judge, verdict_of
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.requirements import current_evidence


class PlannedCheck(Strict):
    """One check of the gate. A ``warning`` decides nothing; ``override`` is the digest of what made it one."""

    name: str
    verdict: Verdict
    why: str
    fix: str = ""
    warning: bool = False
    override: str | None = None


class Plan(Strict):
    """What promoting would do, and what the gate says to it.

    ``standing`` is the digest of everything the plan rests on: a saved plan whose standing differs is stale.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Plan"] = "Plan"
    app: str
    environment: str
    bundle: str
    replaces: str | None = None
    serial: int
    bindings: str
    bindings_from: str
    checks: list[PlannedCheck]
    verdict: Verdict
    standing: str


class Promoted(Strict):
    """What promote returns: the plan, and the release unless it was only planned."""

    plan: Plan
    released: Released | None


@reading_ahead
def promote(
    ctx: Context,
    reference: str,
    *,
    environment: str,
    reason: str,
    bindings_file: Path | None = None,
    confirmed: str | None = None,
    plan_only: bool = False,
    expected_plan: Plan | None = None,
) -> Promoted:
    """Make a bundle live, or say what stands in its way.

    Args:
        ctx: the context.
        reference: a stored bundle, another environment's live bundle, or the source it was built from.
        environment: where it is to be live.
        reason: why; part of the release for ever.
        bindings_file: this environment's bindings. Without it: those beside a source path, else those that are live.
        confirmed: the environment's name, where its gate asks to confirm.
        plan_only: judge, and change nothing.
        expected_plan: a saved plan that must still hold.

    Raises:
        GateNotPassed: a check fails, errs or is inconclusive; nothing was changed.
        Conflict: someone else promoted first, the saved plan is stale, or gc has marked the bundle.
        VerificationFailed: stored bytes or signatures are not what they must be.
    """
    _foresee(ctx, reference, environment)
    keyring, seen = _named_by_environment(ctx, reference)
    app, bundle_digest = (seen.release.app, seen.release.bundle) if seen else resolve_bundle(ctx, reference)
    ctx.registry.store.expect(pack_key(app, bundle_digest))
    ctx.registry.store.expect_list(referrers_prefix(app, bundle_digest))
    foresee = functools.partial(_read_because_of, bundle=bundle_digest, seen=seen)
    standing = stand(ctx, app, environment, keyring=keyring, foresee=foresee)
    bundle = ctx.registry.get_bundle(app, bundle_digest)
    check_app(bundle, app)
    soaking = soaking_in(ctx, standing, seen)
    if soaking.bundle != bundle.digest:
        # What is live there is reached, so gc does not delete it: that is known without reading what is marked.
        refuse_marked(ctx.registry.store, app, bundle)
    bindings, bindings_from = _bindings(reference, bundle, bindings_file, standing)
    evidence, brought = _evidence(ctx, standing, soaking, bundle.digest)
    target = _rollback_target(ctx, standing, bundle)
    situation = _situation(ctx, standing, bundle, bindings, soaking, evidence, brought, target, confirmed)
    checks = judge(situation)
    plan = _plan(standing, bundle, bindings, bindings_from, target, checks)
    if expected_plan is not None:
        _check_fresh(plan, expected_plan)
    if plan_only:
        return Promoted(plan=plan, released=None)
    if plan.verdict != "pass":
        raise _not_passed(plan)
    check_servable(bundle, bindings, standing.keyring)
    release = next_release(
        ctx,
        standing,
        "promoter",
        action="promotion",
        bundle=bundle.digest,
        bindings=bindings,
        reason=reason,
        since=_since(standing, bundle.digest),
        rollback_target=target,
    )
    released = commit_release(
        ctx,
        standing,
        "promoter",
        release,
        origins=[],
        evidence=_carried(standing, evidence, checks),
        policies=[standing.policy.envelope],
        warnings=[f"{check.name}: {check.why}" for check in checks if check.override],
    )
    return Promoted(plan=plan, released=released)


def _foresee(ctx: Context, reference: str, environment: str) -> None:
    """Begin the reads that a promotion makes whatever it finds, side by side."""
    ref = parse_reference(reference)
    if isinstance(ref, EnvironmentReference):
        ctx.locate((ref.app, environment), (ref.app, ref.environment), (ref.app, SOAKS_IN))
        expect_trust(ctx)
        ctx.registry.store.expect(head_key(ref.app, environment), head_key(ref.app, ref.environment))
    elif isinstance(ref, BundleReference):
        ctx.locate((ref.app, environment), (ref.app, SOAKS_IN))


def _named_by_environment(ctx: Context, reference: str) -> tuple[VerifiedKeyring | None, Entry | None]:
    """Give what is live in the environment that names the bundle, verified and the newest; None if none names it.

    Beside it the keyring that it was verified by.
    """
    ref = parse_reference(reference)
    if not isinstance(ref, EnvironmentReference) or ref.serial is not None:
        return None, None
    keyring = open_trust(ctx)
    return keyring, live_or_former(ctx, ref, keyring)


def _read_because_of(live: VerifiedRelease, bundle: str, seen: Entry | None) -> list[str]:
    """Give what the gate will look at: the rollback target, and the environment that it is to have soaked in."""
    app, former = live.release.app, live.release.rollback_target
    soak = live.gate.soak
    keys = []
    if soak is None or soak.registry is not None:
        keys = [gc_key(app)]
    elif seen is None or seen.release.environment != soak.environment:
        keys = [head_key(app, soak.environment)]
    if live.release.bundle != bundle:
        keys.append(pack_key(app, live.release.bundle))
    elif former is not None:
        keys.append(pack_key(app, former.bundle))
    return keys


def _bindings(reference: str, bundle: Bundle, file: Path | None, standing: Standing) -> tuple[Bindings, str]:
    """Choose the bindings: the named file, the source's own, what is live, or none."""
    environment = standing.environment
    if file is not None:
        from bundlectl.bundling.bound import load_bindings

        return load_bindings(file, environment, bundle.components), str(file)
    ref = parse_reference(reference)
    if isinstance(ref, SourceReference):
        from bundlectl.bundling.source import read_source

        found = read_source(ref.path).bindings.get(environment)
        if found is not None:
            return found, f"environments/{environment}.yaml of the source"
    if standing.live is not None:
        return standing.live.release.bindings, "the live release"
    return Bindings(), "none"


def _evidence(ctx: Context, standing: Standing, soaking: Soaking, bundle: str) -> tuple[list[Attested], list[Envelope]]:
    """Read what is attested about the bundle; say what does not count, unless it is only meant for elsewhere.

    What lies beside the bundle decides, newest or not; a head that was read anyway spares reading it again.
    Beside it: the releases of other registries that a copy brought. They are no evidence about a bundle.
    """
    held = [*soaking.carried, *(standing.live.head.evidence if standing.live else ())]
    envelopes = [envelope for _, _, envelope in ctx.registry.attestations(standing.app, bundle, held=held)]
    brought = [envelope for envelope in envelopes if is_release(envelope)]
    envelopes = [envelope for envelope in envelopes if envelope not in brought]
    counted, refused = gather_evidence(envelopes, bundle, standing.app, standing.environment, standing.keyring)
    for why in dict.fromkeys(item.why for item in refused if not item.elsewhere):
        ctx.reporter.say(f"set aside: {why}")
    return counted, brought


def _carried(standing: Standing, evidence: Sequence[Attested], checks: Sequence[Check]) -> list[Envelope]:
    """Give what the head carries: the evidence that speaks, and the overrides that were used."""
    used = {check.override for check in checks if check.override}
    spoken = current_evidence(standing.gate, evidence, standing.keyring)
    return [found.envelope for found in (*spoken, *(item for item in evidence if item.digest in used))]


def _rollback_target(ctx: Context, standing: Standing, bundle: Bundle) -> RollbackTarget | None:
    """Find the promotion that a rollback of this release would return to."""
    live = standing.live
    named = bundle.components.application.rollback.target
    if live is None:
        return None
    if named == "previous" or named == live.release.bundle:
        if live.release.bundle == bundle.digest:
            return live.release.rollback_target
        return RollbackTarget(bundle=live.release.bundle, epoch=live.promotion.epoch, serial=live.promotion.serial)
    for entry in releases_of(ctx).history(standing.app, standing.environment):
        if entry.release.bundle == named and entry.release.action == "promotion":
            return RollbackTarget(bundle=named, epoch=entry.release.epoch, serial=entry.release.serial)
    raise NotFound(
        f"The bundle names {named} as its rollback target, which was never live in "
        f"{standing.app}:{standing.environment}.",
        fix="Name a bundle that was, or write rollback: {target: previous}.",
    )


def _situation(
    ctx: Context,
    standing: Standing,
    bundle: Bundle,
    bindings: Bindings,
    soaking: Soaking,
    evidence: Sequence[Attested],
    brought: Sequence[Envelope],
    target: RollbackTarget | None,
    confirmed: str | None,
) -> Situation:
    """Gather what the gate looks at."""
    return Situation(
        app=standing.app,
        environment=standing.environment,
        bundle=bundle.digest,
        gate=standing.gate,
        keyring=standing.keyring,
        attested=tuple(evidence),
        now=standing.now,
        bytes_present=True,
        snapshots=pinned_snapshots(bundle),
        lint=tuple((finding.rule, finding.message) for finding in lint(bundle.components)),
        live=soaking.live,
        abroad=soak_abroad(ctx, standing, brought),
        rollback_target=gates.RollbackTarget(
            bundle=target.bundle if target else None,
            present=ctx.registry.has_bundle(standing.app, target.bundle) if target else None,
        ),
        head=standing.present.digest if standing.present else None,
        replaces=gates.Replaced(standing.live.release.bundle if standing.live else None),
        switched_off=bindings.disabled_models,
        confirmed=confirmed,
    )


def _since(standing: Standing, bundle: str) -> datetime:
    if standing.live is not None and standing.live.release.bundle == bundle:
        return standing.live.release.since
    return standing.now


def _plan(
    standing: Standing,
    bundle: Bundle,
    bindings: Bindings,
    bindings_from: str,
    target: RollbackTarget | None,
    checks: Sequence[Check],
) -> Plan:
    planned = planned_checks(checks)
    live = standing.live.release if standing.live else None
    basis = {
        "app": standing.app,
        "environment": standing.environment,
        "head": standing.present.digest if standing.present else None,
        "bundle": bundle.digest,
        "bindings": digest(canonical(bindings.form())),
        "keyring": standing.keyring.digest,
        "policy": standing.policy.digest,
        "rollback_target": target.form() if target else None,
        # Whether it was confirmed is the caller's to say when it promotes; a plan is made before that.
        "checks": [[c.name, c.verdict, c.warning] for c in planned if c.name != "confirm"],
    }
    return Plan(
        app=standing.app,
        environment=standing.environment,
        bundle=bundle.digest,
        replaces=live.bundle if live else None,
        serial=next_place(standing).serial,
        bindings=digest(canonical(bindings.form())),
        bindings_from=bindings_from,
        checks=planned,
        verdict=verdict_of(checks),
        standing=digest(canonical(basis)),
    )


def planned_checks(checks: Sequence[Check]) -> list[PlannedCheck]:
    """Give checks in the form that plans and results hold."""
    return [
        PlannedCheck(
            name=c.name, verdict=c.verdict, why=c.why, fix=c.fix, warning=c.warning, override=c.override or None
        )
        for c in checks
    ]


def pinned_snapshots(bundle: Bundle) -> dict[str, str]:
    """Give the snapshots that a bundle pins, by the name of the retrieval that pins it."""
    return {use: r.snapshot for use, r in bundle.components.retrieval.items() if r.snapshot != "following"}


def _check_fresh(plan: Plan, expected: Plan) -> None:
    if plan.standing != expected.standing:
        raise Conflict(
            "The saved plan is stale: what it rested on has changed.",
            why=_what_moved(plan, expected),
            fix="Plan again, read it, and promote with the new plan.",
        )


def _what_moved(plan: Plan, expected: Plan) -> str:
    moved = [
        f"{name} {old or 'none'} -> {new or 'none'}"
        for name, old, new in (
            ("app", expected.app, plan.app),
            ("environment", expected.environment, plan.environment),
            ("bundle", expected.bundle, plan.bundle),
            ("live bundle", expected.replaces, plan.replaces),
            ("serial", expected.serial, plan.serial),
            ("bindings", expected.bindings, plan.bindings),
        )
        if old != new
    ]
    before = {c.name: _said(c) for c in expected.checks}
    moved += [
        f"{c.name}: {before.get(c.name, 'absent')} -> {_said(c)}"
        for c in plan.checks
        if before.get(c.name) != _said(c) and c.name != "confirm"
    ]
    return "; ".join(moved) or "The keyring, the policy or the head has other bytes."


def _said(check: PlannedCheck) -> str:
    return f"{check.verdict}, overridden" if check.override else check.verdict


def _not_passed(plan: Plan) -> GateNotPassed:
    stopped = [c for c in plan.checks if c.verdict != "pass" and not c.warning]
    lines = "\n".join(f"{c.verdict}: {c.name}: {c.why}" for c in stopped)
    fixes = "; ".join(dict.fromkeys(c.fix for c in stopped if c.fix))
    return GateNotPassed(
        f"The gate of {plan.app}:{plan.environment} says {plan.verdict}; nothing was changed.",
        why=lines,
        fix=fixes,
        details={"plan": plan.form()},
    )


def load_plan(path: Path) -> Plan:
    """Read a saved plan.

    Raises:
        UsageError: it cannot be read or is no plan.
    """
    from pydantic import ValidationError

    try:
        return Plan.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = wrong_fields(error) if isinstance(error, ValidationError) else error.strerror or str(error)
        fix = "Save one with promote --plan --plan-file F."
        raise UsageError(f"{path} is not a saved plan.", why=why, fix=fix) from error
