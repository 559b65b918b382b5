"""Overrides: which checks of a gate an approver may set aside for one promotion, and whether one did. DESIGN 6.

Only what is judged at promotion alone can be set aside: ages, floors, margins, soak, freezes and lint rules. What
resolvers judge again (signatures, required evidence, blocks, bytes), root's expiry, the rollback target and the
question whether this environment is meant cannot: an override that names them has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from bundlectl.model.attestation import Override
from bundlectl.model.keyring import Gate
from bundlectl.model.types import format_time
from bundlectl.trust.check import Check
from bundlectl.trust.evidence import Attested, blocked_reason
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.requirements import builders_of, same_person

CLOCK_SKEW = timedelta(minutes=5)
"""How far an approver's clock may be ahead of ours."""


def waivable(gate: Gate) -> list[str]:
    """Give the names of a gate's checks that an override may set aside, in the order of the gate."""
    names = []
    for requirement in gate.evaluations:
        names.append(f"age:{requirement.suite}")
        names += [f"floor:{requirement.suite}/{scorer}" for scorer in sorted(requirement.floors)]
        names += [f"no-worse:{requirement.suite}/{scorer}" for scorer in sorted(requirement.no_worse or {})]
        if requirement.anchor is not None:
            names += [f"anchor:{requirement.suite}/{scorer}" for scorer in sorted(requirement.no_worse or {})]
    names += ["soak"] if gate.soak else []
    names += ["freeze"] if gate.freezes else []
    return names + [f"lint:{rule}" for rule in gate.forbid_lint]


def set_aside(
    checks: Sequence[Check],
    gate: Gate,
    attested: Sequence[Attested],
    keyring: VerifiedKeyring,
    *,
    head: str | None,
    now: datetime,
) -> list[Check]:
    """Give the checks back, and those that do not pass and that an override names as warnings that say so.

    An override counts when an active approver signed it who did not build the bundle, it names the head that is
    live now, root does not block it, and its time has come and is not over. Its verdict stays what it is, in
    sight; it decides nothing.

    Args:
        checks: as judged.
        gate: whose checks they are.
        attested: evidence for the gate's app and environment, overrides among it.
        keyring: root's word.
        head: the digest of the head that is to be replaced; None: nothing is live.
        now: the clock.
    """
    allowed = set(waivable(gate))
    counted = [item for item in attested if _counts(item, attested, keyring, head, now)]
    return [
        _set_aside(check, counted) if check.verdict != "pass" and check.name in allowed else check for check in checks
    ]


def _set_aside(check: Check, counted: Sequence[Attested]) -> Check:
    for item in counted:
        override = item.predicate
        if isinstance(override, Override) and check.name in override.checks:
            who = ", ".join(sorted(item.signers))
            why = f"overridden by {who} until {format_time(override.expires)}: {override.reason} ({check.why})"
            return replace(check, why=why, warning=True, override=item.digest)
    return check


def _counts(
    item: Attested, attested: Sequence[Attested], keyring: VerifiedKeyring, head: str | None, now: datetime
) -> bool:
    override = item.predicate
    if not isinstance(override, Override) or blocked_reason(item, keyring) is not None:
        return False
    builders = builders_of(attested)
    able = {signer for signer in item.signers if keyring.entry(signer).state == "active"}
    return (
        override.actor in able - same_person(able, builders, keyring)
        and bool(builders)
        and override.previous == head
        and override.time - CLOCK_SKEW <= now < override.expires
    )
