"""What another registry's signed releases prove about a bundle: for a soak that happened there. DESIGN 6.

Nothing here asks the other registry: ``bundlectl copy`` brought its releases and keyrings. So only what is signed
counts. A release proves since when the bundle was live as of its own time, and no later: a promotion alone proves no
soak, its renewal a day later proves a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from bundlectl.model.attestation import RELEASE, Envelope
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import Role, Soak, SoakRegistry
from bundlectl.model.release import Release
from bundlectl.model.types import format_time, seconds
from bundlectl.trust.check import Check
from bundlectl.trust.envelope import open_statement, signed_by
from bundlectl.trust.exam import CLOCK_SKEW, span
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring


@dataclass(frozen=True)
class Abroad:
    """What a copy brought: the other registry's newest keyring, verified from the policy's pin, and its releases."""

    keyring: VerifiedKeyring
    releases: Sequence[Envelope]


def is_release(envelope: Envelope) -> bool:
    """Say whether an envelope carries a release, rather than evidence; False where it cannot be read."""
    try:
        return open_statement(envelope).predicateType == RELEASE
    except VerificationFailed:
        return False


def judge_soak_abroad(
    soak: Soak, registry: SoakRegistry, abroad: Abroad | None, *, app: str, bundle: str, now: datetime
) -> Check:
    """Judge a soak in another registry: by its newest release about the bundle that a promoter there vouches for."""
    place = f"{app}:{soak.environment} of registry {registry.id[:19]}"
    again = f"In that registry: bundlectl renew {app}:{soak.environment}; then bundlectl copy REF FROM TO again."
    if abroad is None:
        return Check("soak", "inconclusive", f"No keyring of registry {registry.id[:19]} that counts is here.", again)
    reason = abroad.keyring.blocked(bundle)
    if reason is not None:
        return Check("soak", "fail", f"The root of registry {registry.id[:19]} has blocked the bundle: {reason}")
    if abroad.keyring.expired(now):
        # As with our own: otherwise newer ones, with what they revoke, could be held back for ever.
        why = f"The word of root in registry {registry.id[:19]} has run out with keyring {abroad.keyring.version}."
        return Check("soak", "inconclusive", why, "Its root signs the next one; then bundlectl copy REF FROM TO again.")
    told = _believed(abroad, registry.id, app, soak.environment, bundle)
    if not told:
        why = f"No release that counts says that it was live in {place}."
        return Check("soak", "inconclusive", why, f"bundlectl copy {app}:{soak.environment} FROM TO")
    newest = max(told, key=lambda release: (release.time, release.serial))
    if newest.time - now > CLOCK_SKEW:
        why = f"{place} speaks of {format_time(newest.time)}, which is yet to come: a clock is wrong."
        return Check("soak", "inconclusive", why, "Set the clock right.")
    age = max(now - newest.time, timedelta(0))
    if age > timedelta(seconds=seconds(registry.max_age)):
        why = f"The newest word of {place} is {span(age)} old; the policy allows {registry.max_age}."
        return Check("soak", "inconclusive", why, again)
    been = newest.time - newest.since
    if been < timedelta(seconds=seconds(soak.at_least)):
        why = f"Its releases prove {span(max(been, timedelta(0)))} in {place}; the policy asks for {soak.at_least}."
        return Check("soak", "fail", why, again)
    said = f"Live in {place} from {format_time(newest.since)} to {format_time(newest.time)} at least"
    return Check("soak", "pass", f"{said}, by {newest.actor}'s signature.")


def _believed(abroad: Abroad, registry: str, app: str, environment: str, bundle: str) -> list[Release]:
    """Give the releases that count. A renewal only prolongs: it counts beside the promoter's release it prolongs."""
    found = [
        release
        for envelope in abroad.releases
        if (release := _open(envelope, abroad.keyring, registry, app, environment, bundle)) is not None
    ]
    promoted = [(r.epoch, r.since, r.serial) for r in found if r.action != "renewal"]
    return [
        r
        for r in found
        if r.action != "renewal"
        or any((epoch, since) == (r.epoch, r.since) and serial < r.serial for epoch, since, serial in promoted)
    ]


def _open(
    envelope: Envelope, keyring: VerifiedKeyring, registry: str, app: str, environment: str, bundle: str
) -> Release | None:
    """Open one release; None where it is about something else or nobody who may has signed it."""
    try:
        statement = open_statement(envelope)
        if statement.predicateType != RELEASE:
            return None
        release = Release.model_validate(statement.predicate)
        if statement.subject[0].name != app or statement.bundle != bundle:
            return None
        if (release.registry, release.app, release.environment, release.bundle) != (registry, app, environment, bundle):
            return None
        if keyring.registry != registry or release.keyring > keyring.version:
            return None
        if release.epoch != keyring.epoch(app, environment):
            return None
        role: Role = "renewer" if release.action == "renewal" else "promoter"
        able = keyring.principals(role, app, environment, states=ACTIVE_OR_RETIRED)
        return release if release.actor in signed_by(envelope, able, keyring.sigstore) else None
    except (VerificationFailed, ValidationError):
        return None
