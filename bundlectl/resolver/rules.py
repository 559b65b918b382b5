"""The single rules of ``trusted.py``, one function each, in the order of its checklist. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from bundlectl.model.attestation import Envelope
from bundlectl.model.errors import NotFound, VerificationFailed
from bundlectl.model.keyring import Gate, KeyringEntry, KeyState
from bundlectl.model.release import Head, Release
from bundlectl.model.types import format_time, seconds
from bundlectl.registry.head import place
from bundlectl.registry.layout import Place
from bundlectl.resolver.lineage import Lineage
from bundlectl.resolver.state import TrustedState
from bundlectl.trust.envelope import envelope_bytes, objections, parse_envelope, signed_by
from bundlectl.trust.evidence import Attested, blocked_reason, open_evidence
from bundlectl.trust.keyring import ACTIVE, ACTIVE_OR_RETIRED, VerifiedKeyring
from bundlectl.trust.policy import VerifiedPolicy, open_policy
from bundlectl.trust.requirements import required_evidence

CLOCK_SKEW = timedelta(seconds=60)
"""How far two machines' clocks may differ before it is worth an alarm."""


class KeyringTooOld(VerificationFailed):
    """The release demands a newer keyring than the one it was judged by; fetch it and judge again."""

    code = "keyring_too_old"


class Blocked(VerificationFailed):
    """Root has blocked a digest: it stops serving at once, wherever it runs."""

    code = "blocked"


class Expired(VerificationFailed):
    """The release is past its expiry, and the policy refuses to serve it then."""

    code = "expired"


def check_where(release: Release, app: str, environment: str, registry_id: str, what: str) -> None:
    """Rule 2."""
    if release.registry != registry_id:
        raise VerificationFailed(
            f"{what} is a release of another registry.",
            why=f"It names {release.registry}; this registry is {registry_id}.",
        )
    if (release.app, release.environment) != (app, environment):
        raise VerificationFailed(
            f"The release is not one of {app}:{environment}.",
            why=f"It was made for {release.app}:{release.environment} and copied here.",
        )


def check_epoch(release: Release, epoch: int, what: str) -> None:
    """Rule 3."""
    if release.epoch != epoch:
        raise VerificationFailed(
            f"{what} is of epoch {release.epoch}; the keyring says epoch {epoch}.",
            why="Root raises the epoch after a promoter's compromise: releases before it no longer count."
            if release.epoch < epoch
            else "No keyring known here has begun that epoch.",
            fix="Promote again in the keyring's epoch." if release.epoch < epoch else "",
        )


def check_keyring(release: Release, keyring: VerifiedKeyring, state: TrustedState | None, what: str) -> None:
    """Rule 4."""
    if state is not None and state.registry != release.registry:
        raise VerificationFailed(f"{what} is of another registry than the one that was trusted before.")
    if state is not None and keyring.version < state.keyring:
        raise VerificationFailed(
            f"Keyring {keyring.version} is older than the trusted one.",
            why=f"Version {state.keyring} was seen before.",
        )
    if state is not None and keyring.version == state.keyring and keyring.digest != state.keyring_digest:
        raise VerificationFailed(
            f"There are two keyrings of version {keyring.version}.",
            why=f"{state.keyring_digest} was trusted before; this one is {keyring.digest}.",
        )
    if keyring.version < release.keyring:
        raise KeyringTooOld(
            f"{what} demands keyring {release.keyring}; only {keyring.version} is known here.",
            fix="The registry must hold the newer keyring. If it does not, it was held back.",
            details={"minimum": release.keyring},
        )


def check_known(release: Release, what: str) -> None:
    """Rule 5."""
    for name, value in (("a candidate", release.candidate), ("tenant pins", release.tenant_pins)):
        if value is not None:
            raise VerificationFailed(
                f"{what} has {name}, which this version of bundlectl does not serve.",
                fix="Use a newer version, or promote without.",
            )


def check_signed(
    envelope: Envelope, release: Release, keyring: VerifiedKeyring, states: Sequence[KeyState], what: str
) -> None:
    """Rule 6."""
    role = "renewer" if release.action == "renewal" else "promoter"
    held = keyring.principals(role, release.app, release.environment, states=states)  # type: ignore[arg-type]
    signed = signed_by(envelope, held, keyring.sigstore)
    if release.actor in signed:
        return
    if signed:
        raise VerificationFailed(
            f"{what} names {release.actor} as its actor, who did not sign it.",
            why=f"It is signed by {', '.join(sorted(signed))}.",
        )
    others = sorted(signed_by(envelope, keyring.document.principals, keyring.sigstore))
    known = ", ".join(f"{name} ({keyring.entry(name).state})" for name in others)
    unknown = " ".join(objections(envelope, keyring.document.principals, keyring.sigstore))
    raise VerificationFailed(
        f"{what} is not signed by a {role} whose signature counts.",
        why=f"It is signed by {known}." if others else unknown or "No key of the keyring signed it.",
        fix=f"Those who may: {', '.join(sorted(held)) or 'nobody; root has to name one'}.",
    )


def check_order(release: Release, found: str, state: TrustedState | None, what: str) -> None:
    """Rule 7."""
    first = release.epoch == 1 and release.serial == 1
    if first != (release.previous is None):
        raise VerificationFailed(
            f"{what} names {'a' if first else 'no'} release before it.",
            why="The first release of an environment has none, and every other has one.",
        )
    if state is None:
        return
    trusted, here = Place(state.epoch, state.serial), place(release)
    if here < trusted:
        raise VerificationFailed(
            f"{what} is older than the release that was trusted before: an older head was put back.",
            why=f"It is {here}; trusted was {trusted}.",
            fix="Find out who can write to the registry, and restore the newest head.",
        )
    if here == trusted and found != state.head:
        raise VerificationFailed(
            f"{what} is not the release that was trusted before under the same serial.",
            why=f"It is {found}; trusted was {state.head}.",
        )
    if here == Place(trusted.epoch, trusted.serial + 1) and release.previous != state.head:
        raise VerificationFailed(
            f"{what} does not follow the trusted release {trusted.serial}.",
            why=f"It names {release.previous}; trusted is {state.head}.",
        )


def check_renewed(release: Release, base: Release, state: TrustedState | None, what: str) -> None:
    """Rule 8, against the trusted state: a renewer alone must not bring an older release back."""
    if state is not None and base.epoch == state.epoch and base.serial < state.base and release.action == "renewal":
        raise VerificationFailed(
            f"{what} is a renewal that brings release {base.serial} back.",
            why=f"Release {state.base} was trusted after it, and a renewer may only prolong what is live.",
            fix="Find out who used the renewer's key. A rollback takes a promoter.",
        )


def policies_of(
    head: Head,
    release: Release,
    lineage: Lineage,
    keyring: VerifiedKeyring,
    what: str,
    *,
    states: Sequence[KeyState] = ACTIVE,
) -> tuple[VerifiedPolicy, VerifiedPolicy]:
    """Rule 9: give the release's policy and its promotion's."""
    found: dict[int, VerifiedPolicy] = {}
    for envelope in head.policies:
        # Opened as an old one first: only its own version tells whether the release itself names it.
        policy = open_policy(envelope, keyring, release.app, states=ACTIVE_OR_RETIRED)
        if policy.version == release.policy:
            policy = open_policy(envelope, keyring, release.app, states=states)
        if found.setdefault(policy.version, policy).digest != policy.digest:
            raise VerificationFailed(f"{what} carries two policies of version {policy.version}.")
    named = (release.policy, lineage.promotion.policy)
    for version in named:
        if version not in found:
            raise VerificationFailed(f"{what} names policy {version} and does not carry it.")
    if unnamed := sorted(found.keys() - set(named)):
        raise VerificationFailed(f"{what} carries policies that nothing in it names: {unnamed}.")
    return found[release.policy], found[lineage.promotion.policy]


def check_policy_version(policy: VerifiedPolicy, state: TrustedState | None, what: str) -> None:
    """Rule 9, against the trusted state."""
    if state is not None and policy.version < state.policy:
        raise VerificationFailed(
            f"{what} names policy {policy.version}; policy {state.policy} was in force before it.",
            fix="Release again under the app's newest policy.",
        )


def gate_of(policy: VerifiedPolicy, environment: str, what: str) -> Gate:
    """Rule 9: give an environment's gate."""
    try:
        return policy.gate(environment)
    except NotFound as error:
        raise VerificationFailed(
            f"{what} is in an environment that policy {policy.version} does not name.", why=error.why
        ) from error


def check_blocked(keyring: VerifiedKeyring, digest_: str, what: str) -> None:
    """Rule 10, for any digest; ``what`` says what it is of."""
    reason = keyring.blocked(digest_)
    if reason is not None:
        raise Blocked(
            f"Root has blocked {what}.",
            why=f"Keyring {keyring.version}: {reason}",
            fix="Roll back to, or promote, a bundle that is not blocked.",
            details={"digest": digest_},
        )


def evidence_of(head: Head, release: Release, keyring: VerifiedKeyring) -> tuple[list[Attested], list[str]]:
    """Rule 11: give what counts, and an alarm for each that does not."""
    found: list[Attested] = []
    alarms: list[str] = []
    for number, envelope in enumerate(head.evidence, 1):
        # As strict as stored evidence is read: one spelling of base64 in every signature.
        strict = parse_envelope(envelope_bytes(envelope), f"evidence {number}")
        try:
            item = open_evidence(strict, release.bundle, release.app, release.environment, keyring)
        except VerificationFailed:
            lost = sorted(signed_by(strict, in_state(keyring, "compromised"), keyring.sigstore))
            if not lost:
                raise
            alarms.append(f"Evidence {number} does not count: it is signed by {', '.join(lost)}, compromised.")
            continue
        reason = blocked_reason(item, keyring)
        if reason is None:
            found.append(item)
        else:
            alarms.append(f"Evidence {number} does not count: root has blocked it: {reason}")
    return found, alarms


def check_evidence(gate: Gate, evidence: Sequence[Attested], keyring: VerifiedKeyring, what: str) -> None:
    """Rule 12."""
    missing = [check for check in required_evidence(gate, evidence, keyring) if check.verdict != "pass"]
    if missing:
        raise VerificationFailed(
            f"{what} does not carry the evidence that its gate demands.",
            why="\n".join(f"{check.name}: {check.why}" for check in missing),
            fix="The promoter signed it all the same: find out why. Then promote with the evidence.",
            details={"checks": [check.name for check in missing]},
        )


def check_times(release: Release, gate: Gate, what: str) -> None:
    """Rule 13."""
    if release.since > release.time:
        raise VerificationFailed(f"{what} says it is live since a time after it was made.")
    if gate.expires_after is None:
        return
    if release.expires is None:
        raise VerificationFailed(f"{what} never expires, and the policy demands that it does.")
    # Times are in whole seconds, so a rounded-up one may be a second off.
    if release.expires > release.time + timedelta(seconds=seconds(gate.expires_after) + 1):
        raise VerificationFailed(f"{what} expires later than {gate.expires_after} after it was made.")


def alarms_of(
    release: Release,
    gate: Gate,
    keyring: VerifiedKeyring,
    state: TrustedState | None,
    now: datetime,
    what: str,
    *,
    serving: bool,
) -> list[str]:
    """Rule 14."""
    alarms: list[str] = []
    latest = max(release.time, state.time) if state else release.time
    if now < latest - CLOCK_SKEW:
        alarms.append(
            f"The clock here says {format_time(now)}, before the trusted release was made ({format_time(latest)})."
        )
    if release.expires is not None:
        if now >= release.expires:
            if gate.past_expiry == "refuse" and serving:
                raise Expired(
                    f"{what} expired at {format_time(release.expires)}, and the policy refuses to serve it now.",
                    fix=f"Renew it: bundlectl renew {release.app}:{release.environment}",
                )
            alarms.append(f"{what} expired at {format_time(release.expires)}; the policy lets it serve.")
        elif release.expires - now <= (release.expires - release.time) / 3:
            alarms.append(f"{what} expires at {format_time(release.expires)}: less than a third of its time is left.")
    if keyring.expired(now):
        alarms.append(f"Keyring {keyring.version} has expired; root has to sign the next version.")
    reason = keyring.blocked(release.rollback_target.bundle) if release.rollback_target else None
    if reason is not None:
        alarms.append(f"{what}: its rollback target is blocked: {reason}")
    return alarms


def in_state(keyring: VerifiedKeyring, state: KeyState) -> Mapping[str, KeyringEntry]:
    """Give the principals whose key is in a state."""
    return {name: entry for name, entry in keyring.document.principals.items() if entry.state == state}
