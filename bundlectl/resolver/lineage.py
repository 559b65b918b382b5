"""What a release descends from: the promotion that its evidence was judged under, whole inside the head.

A rollback and a rebind carry the promotion of their bundle. A renewal carries the promoter's release that it
extends, then that one's promotion; a renewal of a renewal carries the same, so that heads do not grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bundlectl.model.attestation import Envelope
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.release import Action, Head, Release
from bundlectl.registry.head import place, release_of
from bundlectl.trust.envelope import signed_by
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring

RENEWAL_CHANGES = frozenset({"serial", "previous", "time", "expires", "action", "actor", "reason"})
"""The fields in which a renewal may differ from what it renews."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a release comes from. A promotion is its own base and promotion."""

    base: Release
    """The promoter's release: this one, or what a renewal extends."""
    base_envelope: Envelope
    promotion: Release
    promotion_envelope: Envelope


def lineage_of(head: Head, release: Release, keyring: VerifiedKeyring, what: str) -> Lineage:
    """Check the origins that a head carries and give what they say.

    Each is of the same registry, app and environment, older than what descends from it, and signed by a
    promoter whose key is active or retired.

    Raises:
        VerificationFailed: one of these does not hold, or origins are missing or left over.
    """
    rest = [(origin, release_of(origin, f"origin {n} of {what}")) for n, origin in enumerate(head.origins, 1)]
    for envelope, origin in rest:
        _check_origin(envelope, origin, release, keyring, what)
    base, base_envelope = release, head.release
    if release.action == "renewal":
        if not rest:
            raise _missing(what, "the release that it renews")
        base_envelope, base = rest.pop(0)
        _check_renewal(release, base, what)
    promotion, promotion_envelope = base, base_envelope
    if base.action in ("rollback", "rebind"):
        if not rest:
            raise _missing(what, "the promotion of its bundle")
        promotion_envelope, promotion = rest.pop(0)
        _check_promotion(base, promotion, what)
    if rest:
        raise VerificationFailed(f"{what} carries origins that do not belong to it.", why=f"{len(rest)} are left over.")
    return Lineage(base, base_envelope, promotion, promotion_envelope)


def next_origins(head: Head, release: Release, action: Action) -> list[Envelope]:
    """Give the origins of a release that renews, rebinds or rolls back to the release in ``head``.

    Args:
        head: what is renewed or rebound: the present head; for a rollback the former head that it returns to.
        release: the release in it.
        action: what is made.
    """
    if action == "promotion":
        return []
    if action == "renewal":
        return list(head.origins) if release.action == "renewal" else [head.release, *head.origins]
    return [head.origins[-1] if head.origins else head.release]


def _check_origin(envelope: Envelope, origin: Release, release: Release, keyring: VerifiedKeyring, what: str) -> None:
    if (origin.registry, origin.app, origin.environment) != (release.registry, release.app, release.environment):
        raise VerificationFailed(
            f"{what} carries an origin of another place.",
            why=f"It is a release of {origin.app}:{origin.environment} in registry {origin.registry}.",
        )
    if place(origin) >= place(release):
        raise VerificationFailed(
            f"{what} carries an origin that is not older.", why=f"It is {place(origin)}, after {place(release)}."
        )
    if origin.candidate is not None or origin.tenant_pins is not None:
        raise VerificationFailed(f"{what} carries an origin with a candidate or tenant pins: not in this version.")
    promoters = keyring.principals("promoter", origin.app, origin.environment, states=ACTIVE_OR_RETIRED)
    if origin.actor not in signed_by(envelope, promoters, keyring.sigstore):
        raise VerificationFailed(
            f"{what} carries an origin that no promoter signed as its actor.",
            why=f"Promoters of {origin.app}:{origin.environment} whose signature counts: {_names(promoters)}.",
        )


def _check_renewal(release: Release, base: Release, what: str) -> None:
    if base.action == "renewal":
        raise VerificationFailed(f"{what} renews a renewal, not a promoter's release.")
    new, old = release.form(), base.form()
    changed = sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))
    forbidden = [key for key in changed if key not in RENEWAL_CHANGES]
    if forbidden:
        raise VerificationFailed(
            f"{what} is a renewal that changes {', '.join(forbidden)}.",
            why="A renewal may only prolong: serial and times change, with who and why.",
            fix="Changing more takes a promoter: promote, rollback or bind.",
            details={"changed": forbidden},
        )


def _check_promotion(base: Release, promotion: Release, what: str) -> None:
    if promotion.action != "promotion":
        raise VerificationFailed(f"{what} carries a {promotion.action} where a promotion is due.")
    if promotion.bundle != base.bundle:
        raise VerificationFailed(
            f"{what} carries the promotion of another bundle.",
            why=f"It promoted {promotion.bundle}; the release is of {base.bundle}.",
        )
    if place(promotion) >= place(base):
        raise VerificationFailed(f"{what} carries a promotion that is newer than what rests on it.")


def _missing(what: str, origin: str) -> VerificationFailed:
    return VerificationFailed(f"{what} does not carry {origin}.")


def _names(principals: Iterable[str]) -> str:
    return ", ".join(sorted(principals)) or "none"
