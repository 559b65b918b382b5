"""What promote, rollback, renew and bind share: where the environment stands, and how its next release is committed.

The order is the same for all four. Read where things stand, and verify it. Decide. Make the release, sign it, and
run the resolver's own rules on the exact bytes. Then commit: one swap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from bundlectl.actions.context import Context
from bundlectl.actions.opening import expect_trust, open_current_policy, open_trust, registry_id, releases_of
from bundlectl.inference.fitting import misfits
from bundlectl.model.attestation import PAYLOAD_TYPE as STATEMENT_PAYLOAD_TYPE
from bundlectl.model.attestation import RELEASE, Envelope
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError, VerificationFailed
from bundlectl.model.keyring import Gate, Role
from bundlectl.model.reference import EnvironmentReference
from bundlectl.model.release import MAX_SERIAL, Action, Head, Release, RollbackTarget
from bundlectl.model.types import Strict, format_time, seconds
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.layout import Place, head_key, policy_key
from bundlectl.registry.releases import HeadState
from bundlectl.registry.witness import Witness, check_witness
from bundlectl.resolver.chain import verify_former
from bundlectl.resolver.trusted import VerifiedRelease, check_unblocked, verify_head
from bundlectl.trust.envelope import make_statement, seal
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.policy import VerifiedPolicy

P = ParamSpec("P")
R = TypeVar("R")


def reading_ahead(verb: Callable[Concatenate[Context, P], R]) -> Callable[Concatenate[Context, P], R]:
    """Wrap a verb that says what it will read: what it then did not read is no news for the next verb."""

    @functools.wraps(verb)
    def told(ctx: Context, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(ctx, *args, **kwargs)
        finally:
            ctx.forget()

    return told


@dataclass(frozen=True)
class Standing:
    """Where an environment stands, verified."""

    app: str
    environment: str
    keyring: VerifiedKeyring
    policy: VerifiedPolicy
    gate: Gate
    present: HeadState | None
    live: VerifiedRelease | None
    now: datetime


class Released(Strict):
    """What a release verb returns."""

    app: str
    environment: str
    epoch: int
    serial: int
    action: str
    bundle: str
    release: str
    previous_bundle: str | None
    reason: str
    actor: str
    time: str
    expires: str | None
    warnings: list[str] = []


def stand(
    ctx: Context,
    app: str,
    environment: str,
    *,
    keyring: VerifiedKeyring | None = None,
    foresee: Callable[[VerifiedRelease], Iterable[str]] = lambda live: (),
    newest_policy: bool = True,
) -> Standing:
    """Read and verify where an environment stands.

    Args:
        ctx: the context.
        app: whose.
        environment: which.
        keyring: root's newest word, where this command has opened it already.
        foresee: gives the keys that will be read because of what is live: that is begun at once.
        newest_policy: False for what stays under the policy that is in force here: that of the live release.

    Raises:
        NotFound: the app's policy does not name the environment.
        VerificationFailed: the live head does not verify, or a witness says that it was put back.
    """
    # Before head: a release that is made meanwhile then is only ever ahead of its witness.
    witness = ctx.locate((app, environment)).witness(app, environment)
    if keyring is None:
        expect_trust(ctx)
    ctx.registry.store.expect(head_key(app, environment))
    keyring = keyring or open_trust(ctx)
    present = releases_of(ctx).read_head(app, environment)
    check_witness(witness, *head_place(present, app, environment), app, environment)
    now = ctx.clock()
    live = former(present.data, app, environment, keyring) if present else None
    if live is not None:
        ctx.registry.store.expect(*foresee(live))
        if newest_policy:
            ctx.registry.store.expect(policy_key(app, live.policy.version + 1))
    policy = open_current_policy(ctx, keyring, app, live, newest=newest_policy)
    gate = policy.gate(environment)
    for alarm in live.alarms if live else ():
        ctx.reporter.warn(alarm)
    return Standing(app, environment, keyring, policy, gate, present, live, now)


def head_place(present: HeadState | None, app: str, environment: str) -> tuple[Place | None, str | None]:
    """Give a head's place and digest, as a witness is compared with; None twice where there is no head."""
    if present is None:
        return None, None
    return place(parse_head(present.data, f"the head of {app}:{environment}")[1]), present.digest


def former(data: bytes, app: str, environment: str, keyring: VerifiedKeyring) -> VerifiedRelease:
    """Verify a head that is to be succeeded or returned to.

    It must have been right when it was made. That its epoch is over, its key compromised, its bundle blocked
    or its time up since then is why it is succeeded, and is told as an alarm.
    """
    return verify_former(data, app=app, environment=environment, registry_id=registry_id(keyring), keyring=keyring)


def current(
    data: bytes, app: str, environment: str, keyring: VerifiedKeyring, now: datetime, *, serving: bool = False
) -> VerifiedRelease:
    """Run the resolver's rules on a head; past its expiry is told, and refused by policy only when ``serving``."""
    return verify_head(
        data,
        app=app,
        environment=environment,
        registry_id=registry_id(keyring),
        keyring=keyring,
        state=None,
        now=now,
        serving=serving,
    )


def require_live(standing: Standing) -> tuple[HeadState, VerifiedRelease]:
    """Give what is live.

    Raises:
        NotFound: nothing is.
    """
    if standing.present is None or standing.live is None:
        ref = EnvironmentReference(standing.app, standing.environment)
        raise NotFound(
            f"Nothing is live in {ref}.",
            fix=f"bundlectl promote {standing.app}@sha256:… --to {standing.environment} --reason TEXT",
        )
    return standing.present, standing.live


def next_place(standing: Standing) -> Place:
    """Give the place of the release that would follow: serials start again with an epoch."""
    live = standing.live.release if standing.live else None
    epoch = standing.keyring.epoch(standing.app, standing.environment)
    if live is None or live.epoch != epoch:
        return Place(epoch, 1)
    if live.serial >= MAX_SERIAL:
        where = EnvironmentReference(standing.app, standing.environment)
        raise VerificationFailed(
            f"The serials of {where} are used up: whoever could sign releases pushed them to their end.",
            fix=f"Root begins the next epoch, in which they start again: bundlectl keyring epoch {where} --reason TEXT",
        )
    return Place(epoch, live.serial + 1)


def check_servable(bundle: Bundle, bindings: Bindings, keyring: VerifiedKeyring) -> None:
    """Refuse to make live what every resolver would refuse to load: they would go on with what they have.

    Raises:
        Blocked: root has blocked a part of the bundle or a snapshot that it pins.
        UsageError: the bindings do not fit the bundle.
    """
    check_unblocked(bundle, keyring)
    parts = bundle.components
    problems = misfits(bindings, parts)
    if problems:
        raise UsageError(
            f"The bindings do not fit {parts.application.app}@{bundle.digest}; nothing was changed.",
            why="; ".join(problems),
            fix="Correct the environment's file and name it: promote --bindings FILE, or bind --file FILE.",
        )


def expiry(gate: Gate, now: datetime) -> datetime | None:
    """Give when a release made now expires by its gate."""
    if gate.expires_after is None:
        return None
    return now + timedelta(seconds=seconds(gate.expires_after))


def next_release(
    ctx: Context,
    standing: Standing,
    role: Role,
    *,
    action: Action,
    bundle: str,
    bindings: Bindings,
    reason: str,
    since: datetime,
    rollback_target: RollbackTarget | None,
) -> Release:
    """Write the release that would follow the present one."""
    at = next_place(standing)
    signer = ctx.signer(role)
    actor = standing.keyring.signing_principal(signer, role, standing.app, standing.environment)
    return Release(
        registry=registry_id(standing.keyring),
        app=standing.app,
        environment=standing.environment,
        epoch=at.epoch,
        serial=at.serial,
        previous=standing.present.digest if standing.present else None,
        action=action,
        bundle=bundle,
        bindings=bindings,
        rollback_target=rollback_target,
        reason=reason,
        actor=actor,
        since=since,
        time=standing.now,
        expires=expiry(standing.gate, standing.now),
        keyring=standing.keyring.version,
        policy=standing.policy.version,
    )


def commit_release(
    ctx: Context,
    standing: Standing,
    role: Role,
    release: Release,
    *,
    origins: Sequence[Envelope],
    evidence: Sequence[Envelope],
    policies: Sequence[Envelope],
    warnings: Sequence[str] = (),
) -> Released:
    """Sign a release, run the resolver's rules on the exact bytes, and swap head.

    Raises:
        VerificationFailed: the rules refuse it; nothing was stored.
        Conflict: someone else committed first.
        BackendUnavailable: nothing was committed, or the outcome is unknown, as it says.
    """
    data = head_bytes(ctx, role, release, origins=origins, evidence=evidence, policies=policies)
    state = standing.live.trusted_state(standing.keyring) if standing.live else None
    verify_head(
        data,
        app=standing.app,
        environment=standing.environment,
        registry_id=registry_id(standing.keyring),
        keyring=standing.keyring,
        state=state,
        now=standing.now,
    )
    committed = releases_of(ctx).commit(standing.app, standing.environment, standing.present, data)
    untold = [*_opened(ctx, standing, release), *_bear_witness(ctx, release, committed.digest)]
    return Released(
        app=release.app,
        environment=release.environment,
        epoch=release.epoch,
        serial=release.serial,
        action=release.action,
        bundle=release.bundle,
        release=committed.digest,
        previous_bundle=standing.live.release.bundle if standing.live else None,
        reason=release.reason,
        actor=release.actor,
        time=format_time(release.time),
        expires=format_time(release.expires) if release.expires else None,
        warnings=[*warnings, *untold],
    )


def _opened(ctx: Context, standing: Standing, release: Release) -> list[str]:
    """Say so where a release takes all identities away: from then on callers are refused, and this machine is not."""
    if standing.live is None or release.bindings.identities or not standing.live.release.bindings.identities:
        return []
    warning = (
        f"{release.app}:{release.environment} has no identities any more: its servers now believe any claim from their "
        "own machine, and answer nobody else"
    )
    ctx.reporter.warn(warning)
    return [warning]


def _bear_witness(ctx: Context, release: Release, digest: str) -> list[str]:
    """Tell Parameter Store what is live now. That it could not be told changes nothing: the release is live."""
    try:
        witness = Witness(epoch=release.epoch, serial=release.serial, digest=digest)
        ctx.locate().bear_witness(release.app, release.environment, witness)
    except BackendUnavailable as error:
        warning = (
            f"release {release.serial} of {release.app}:{release.environment} is live; its witness was not written: "
            f"{error.what} {error.why} The next release writes it."
        )
        ctx.reporter.warn(warning)
        return [warning]
    return []


def head_bytes(
    ctx: Context,
    role: Role,
    release: Release,
    *,
    origins: Sequence[Envelope],
    evidence: Sequence[Envelope],
    policies: Sequence[Envelope],
) -> bytes:
    """Give the bytes of the head that makes a release live."""
    predicate: dict[str, Any] = release.form()
    statement = make_statement(release.app, release.bundle, RELEASE, predicate)
    envelope = seal(statement, STATEMENT_PAYLOAD_TYPE, [ctx.signer(role)])
    head = Head(release=envelope, origins=list(origins), evidence=list(evidence), policies=distinct(policies))
    return canonical(head.form())


def distinct(envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Give the envelopes without those that carry a payload that came before."""
    seen: dict[str, Envelope] = {}
    for envelope in envelopes:
        seen.setdefault(envelope.payload, envelope)
    return list(seen.values())


def lineage(live: VerifiedRelease) -> list[Envelope]:
    """Give the promotion that a rebind of a live release descends from, as head carries it."""
    return [live.head.origins[-1]] if live.head.origins else [live.head.release]
