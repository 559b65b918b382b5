"""The chain of an environment's releases, as ``history --verify`` walks it: from the live head back to the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from bundlectl.model.errors import VerificationFailed
from bundlectl.model.types import format_time
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.layout import Place
from bundlectl.resolver.lineage import lineage_of
from bundlectl.resolver.rules import (
    check_evidence,
    check_known,
    check_signed,
    check_times,
    check_where,
    evidence_of,
    gate_of,
    in_state,
    policies_of,
)
from bundlectl.resolver.trusted import VerifiedRelease
from bundlectl.trust.envelope import signed_by
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring


def verify_former(
    data: bytes, *, app: str, environment: str, registry_id: str, keyring: VerifiedKeyring
) -> VerifiedRelease:
    """Judge a former head for ``history --verify``, as of when it was live: rules 1, 2, 5, 6, 8, 9, 11, 12 and 13.

    Retired keys count in every rule. Its epoch may be over, its digests blocked since, its keys compromised
    since: those are alarms, because the chain from the live head vouches for its bytes (:func:`verify_link`).
    """
    head, release = parse_head(data, f"a former release of {app}:{environment}")
    what = f"Release {release.serial} of {app}:{environment}"
    check_where(release, app, environment, registry_id, what)
    check_known(release, what)
    alarms: list[str] = []
    then = _as_it_was(keyring)
    check_signed(head.release, release, then, ACTIVE_OR_RETIRED, what)
    lineage = lineage_of(head, release, then, what)
    policy, promotion_policy = policies_of(head, release, lineage, then, what, states=ACTIVE_OR_RETIRED)
    gate = gate_of(policy, environment, what)
    evidence, doubts = evidence_of(head, release, then)
    check_evidence(gate_of(promotion_policy, environment, what), evidence, then, what)
    check_times(release, gate, what)
    for name, envelope in (("release", head.release), *((f"origin {n}", o) for n, o in enumerate(head.origins, 1))):
        signers = sorted(signed_by(envelope, in_state(keyring, "compromised"), keyring.sigstore))
        if signers:
            alarms.append(f"{what}: its {name} is signed with a key that is compromised by now: {', '.join(signers)}.")
    reason = keyring.blocked(release.bundle)
    if reason is not None:
        alarms.append(f"{what}: its bundle is blocked by now: {reason}")
    policies = policy, promotion_policy
    return VerifiedRelease.of(data, head, release, lineage, policies, gate, evidence, (*alarms, *doubts))


def verify_link(older: VerifiedRelease, newer: VerifiedRelease) -> None:
    """Check that one release follows another without a gap, as in ``history --verify``.

    Raises:
        VerificationFailed: it does not.
    """
    old, new = older.release, newer.release
    what = f"Release {new.serial} of {new.app}:{new.environment}"
    if new.previous != older.digest:
        raise VerificationFailed(
            f"{what} does not follow release {old.serial}.",
            why=f"It names {new.previous}; release {old.serial} is {older.digest}.",
            fix="One of the two was replaced. Restore it from a backup.",
        )
    follows = new.serial == old.serial + 1 if new.epoch == old.epoch else new.serial == 1
    if place(new) <= place(old) or not follows:
        raise VerificationFailed(f"{what} ({place(new)}) is not the next after {place(old)}.")
    if new.action in ("renewal", "rebind") and (new.bundle, new.since) != (old.bundle, old.since):
        raise VerificationFailed(
            f"{what} is a {new.action} and changes the bundle or since when it is live.",
            why=f"{old.bundle} since {format_time(old.since)} became {new.bundle} since {format_time(new.since)}.",
        )
    kept = new.bundle == old.bundle and new.since == old.since
    if new.action in ("promotion", "rollback") and new.since != new.time and not kept:
        raise VerificationFailed(
            f"{what} says that it is live since {format_time(new.since)}, and was made at {format_time(new.time)}.",
            why="Only the same bundle goes on being live; a soak is counted from since.",
            fix="A promoter's key signed it: find out who used it.",
        )
    if new.action == "renewal":
        base = older.head.origins[0] if old.action == "renewal" else older.head.release
        if newer.head.origins[0].payload != base.payload:
            raise VerificationFailed(f"{what} renews another release than the one before it.")


def verify_chain(newest_first: Iterable[VerifiedRelease]) -> Iterator[VerifiedRelease]:
    """Walk the whole chain and give each release back once it and its link to the newer one hold.

    Besides every link (:func:`verify_link`): the promotion that a rollback or a rebind rests on is the very
    release that the history holds at its place, so none was made up; and the chain ends at the first release.
    The live head itself is to be judged by ``verify_head``: all that this function knows rests on it.

    Raises:
        VerificationFailed: one of these does not hold; those at the end are found only after the last release.
    """
    newer: VerifiedRelease | None = None
    awaited: dict[Place, tuple[str, str]] = {}
    for one in newest_first:
        what = f"Release {one.release.serial} of {one.release.app}:{one.release.environment}"
        if newer is not None:
            verify_link(one, newer)
        claim = awaited.pop(place(one.release), None)
        if claim is not None and claim[1] != one.head.release.payload:
            raise VerificationFailed(
                f"{claim[0]} rests on a promotion that never was.",
                why=f"The history holds another release at {place(one.release)}.",
                fix="A promoter's key signed it: find out who used it.",
            )
        if one.promotion is not one.release and one.head.origins:
            awaited.setdefault(place(one.promotion), (what, one.head.origins[-1].payload))
            if awaited[place(one.promotion)][1] != one.head.origins[-1].payload:
                raise VerificationFailed(f"{what} rests on another promotion than a later release does.")
        newer = one
        yield one
    if newer is not None and newer.release.previous is not None:
        raise VerificationFailed(
            f"The history of {newer.release.app}:{newer.release.environment} is cut off.",
            why=f"Its oldest release is {place(newer.release)}, and that names one before it.",
            fix="Restore the history from a backup.",
        )
    if awaited:
        what, _ = next(iter(awaited.values()))
        raise VerificationFailed(f"{what} rests on a promotion that the history does not hold.")


def _as_it_was(keyring: VerifiedKeyring) -> VerifiedKeyring:
    """Give the keyring with what happened since undone: compromised keys as retired, nothing blocked, no floor."""
    document = keyring.document
    principals = {
        name: entry.model_copy(update={"state": "retired"}) if entry.state == "compromised" else entry
        for name, entry in document.principals.items()
    }
    apps = {name: app.model_copy(update={"policy": 1}) for name, app in document.apps.items()}
    return replace(
        keyring, document=document.model_copy(update={"principals": principals, "blocked": [], "apps": apps})
    )
