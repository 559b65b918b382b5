"""The gate: what a bundle must show before it goes live in an environment. DESIGN section 6.

Rules without I/O: the caller gathers a :class:`Situation`, :func:`judge` gives one check for each requirement.
A fact that the caller does not know is None and makes its check inconclusive; only pass passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bundlectl.model.keyring import Gate
from bundlectl.model.types import format_time, seconds
from bundlectl.trust.abroad import Abroad, judge_soak_abroad
from bundlectl.trust.check import Check, verdict_of
from bundlectl.trust.evidence import Attested, blocked_reason
from bundlectl.trust.exam import CLOCK_SKEW, judge_exam, span
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.overrides import set_aside
from bundlectl.trust.requirements import required_evidence

__all__ = ["Check", "Origin", "Replaced", "RollbackTarget", "Situation", "judge", "judge_rollback", "verdict_of"]


@dataclass(frozen=True)
class RollbackTarget:
    """What the new release may be rolled back to.

    ``bundle``: its digest; None: there is nothing yet to go back to (the environment's first release).
    ``present``: whether it was live here and its bytes are whole; None: not known.
    """

    bundle: str | None
    present: bool | None = None


@dataclass(frozen=True)
class Replaced:
    """What is live in the environment now. ``bundle``: its digest; None: nothing is."""

    bundle: str | None


@dataclass(frozen=True)
class Origin:
    """The promotion that a rollback returns to: the gate it passed, and the evidence that it carried."""

    gate: Gate
    attested: Sequence[Attested]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything a gate looks at. None stands for "not known" and never passes."""

    bundle: str
    """Digest of the bundle that is to go live."""
    app: str
    environment: str
    gate: Gate
    """The environment's gate in the policy that counts now."""
    attested: Sequence[Attested]
    """Everything attached to the bundle that counts: :func:`~bundlectl.trust.evidence.gather_evidence`."""
    keyring: VerifiedKeyring
    now: datetime
    bytes_present: bool | None = None
    """Whether the registry holds every byte of the bundle, by digest."""
    snapshots: Mapping[str, str] | None = None
    """Digests of the index snapshots that the bundle pins, by index; empty where it pins none."""
    lint: Sequence[tuple[str, str]] | None = None
    """Lint findings of the bundle: (rule, message)."""
    live: Mapping[str, tuple[str, datetime]] | None = None
    """Verified heads of the app's other environments: environment -> (bundle, live there since)."""
    abroad: Abroad | None = None
    """Where the gate's soak is in another registry: what a copy brought of it."""
    rollback_target: RollbackTarget | None = None
    head: str | None = None
    """Digest of the head that is live in the environment and would be replaced; None: nothing is live."""
    replaces: Replaced | None = None
    """What is live in the environment now; None: not known."""
    switched_off: Collection[str] | None = None
    """Models that the bindings it goes live with switch off."""
    confirmed: str | None = None
    """The environment that the caller confirmed by name (``--confirm``)."""
    in_history: bool | None = None
    """Rollback only: whether the bundle was live in this environment before."""
    origin: Origin | None = None
    """Rollback only: the promotion that it returns to."""

    @property
    def reference(self) -> str:
        """The bundle as one would type it."""
        return f"{self.app}@{self.bundle[:19]}"


def judge(situation: Situation) -> list[Check]:
    """Judge a promotion: one check for each requirement, always in this order.

    ``bytes``, ``blocked``, ``keyring``; what must be signed (``provenance``, ``evaluation:<suite>``,
    ``attestation:<type>``, ``approvals``); ``age:<suite>``, ``floor:<suite>/<scorer>`` and
    ``no-worse:<suite>/<scorer>`` for each evaluation; ``soak``; ``freeze``; ``lint:<rule>``; ``rollback-target``;
    ``confirm``. Requirements that the gate does not have are left out; after an age comes ``models:<suite>``, where an
    evaluation left models out. What an approver has overridden
    (``overrides.py``) is a warning that says so.
    """
    return [
        _bytes(situation),
        _blocked(situation),
        _keyring(situation),
        *_filled(situation, required_evidence(situation.gate, situation.attested, situation.keyring)),
        *set_aside(
            _judged_now(situation),
            situation.gate,
            situation.attested,
            situation.keyring,
            head=situation.head,
            now=situation.now,
        ),
        _rollback_target(situation),
        *_confirm(situation),
    ]


def judge_rollback(situation: Situation) -> list[Check]:
    """Judge a return to a bundle that was live here. It is no promotion: DESIGN section 6.

    Only ``bytes``, ``blocked``, ``history`` and ``signatures`` decide; the last is the evidence of the
    promotion that it returns to, by the gate of that time, as resolvers will judge it again. What today's gate
    would say follows as warnings. Nothing is to be confirmed: it takes one command, at night.
    """
    today = [
        _keyring(situation),
        *_filled(situation, required_evidence(situation.gate, situation.attested, situation.keyring)),
        *_judged_now(situation),
    ]
    return [
        _bytes(situation),
        _blocked(situation),
        _history(situation),
        _signatures(situation),
        # Soak is told where it is known; a rollback does not wait for another environment's head to be read.
        *(replace(check, warning=True) for check in today if check.name != "soak" or situation.live is not None),
    ]


def _judged_now(situation: Situation) -> list[Check]:
    return [
        *(check for requirement in situation.gate.evaluations for check in judge_exam(situation, requirement)),
        *_soak(situation),
        *_freeze(situation),
        *_lint(situation),
    ]


def _filled(situation: Situation, checks: Sequence[Check]) -> list[Check]:
    """Put the bundle and environment at hand into fixes that evidence rules can only give in general."""
    return [
        replace(
            c, fix=c.fix.replace(" REF ", f" {situation.reference} ").replace(" ENV ", f" {situation.environment} ")
        )
        for c in checks
    ]


def _bytes(situation: Situation) -> Check:
    if situation.bytes_present is None:
        return Check("bytes", "inconclusive", "It was not checked that the registry holds the whole bundle.")
    if situation.bytes_present:
        return Check("bytes", "pass", "The registry holds every byte of the bundle, under its digest.")
    return Check(
        "bytes",
        "fail",
        f"The registry does not hold all of {situation.reference}: bytes are missing or damaged.",
        "bundlectl build PATH, from the same source: the same bytes are put again",
    )


def _blocked(situation: Situation) -> Check:
    keyring = situation.keyring
    reasons = [(f"the bundle {situation.bundle}", keyring.blocked(situation.bundle))]
    for index, snapshot in sorted((situation.snapshots or {}).items()):
        reasons.append((f"the snapshot {snapshot} of the index {index}", keyring.blocked(snapshot)))
    found = [f"{what}: {reason}" for what, reason in reasons if reason is not None]
    if found:
        return Check(
            "blocked",
            "fail",
            f"Keyring {keyring.version} blocks " + "; ".join(found),
            "Build and evaluate another bundle; only root can lift a block.",
        )
    if situation.snapshots is None:
        return Check("blocked", "inconclusive", "It is not known which index snapshots the bundle uses.")
    ignored = [f"{item.kind}: {why}" for item in situation.attested if (why := blocked_reason(item, keyring))]
    note = f" Blocked evidence was left out ({'; '.join(ignored)})." if ignored else ""
    return Check("blocked", "pass", f"Neither the bundle nor its snapshots are blocked.{note}")


def _keyring(situation: Situation) -> Check:
    keyring = situation.keyring
    if keyring.expired(situation.now):
        return Check(
            "keyring",
            "fail",
            f"Keyring {keyring.version} expired {_at(keyring.document.expires)}: root's word has run out.",
            "Root signs the next keyring version with a later expiry.",
        )
    until = f", good until {_at(keyring.document.expires)}" if keyring.document.expires else ""
    return Check("keyring", "pass", f"Keyring {keyring.version}{until}.")


def _soak(situation: Situation) -> list[Check]:
    soak = situation.gate.soak
    if soak is None:
        return []
    if soak.registry is not None:
        where = {"app": situation.app, "bundle": situation.bundle}
        return [judge_soak_abroad(soak, soak.registry, situation.abroad, now=situation.now, **where)]
    place = f"{situation.app}:{soak.environment}"
    if situation.live is None:
        return [Check("soak", "inconclusive", f"It is not known what is live in {place}.")]
    head = situation.live.get(soak.environment)
    if head is None or head[0] != situation.bundle:
        holds = "nothing" if head is None else f"{situation.app}@{head[0][:19]}"
        why = f"It is not live in {place} now: {holds} is."
        fix = f"bundlectl promote {situation.reference} --to {soak.environment} --reason TEXT"
        return [Check("soak", "fail", why, fix)]
    due = timedelta(seconds=seconds(soak.at_least))
    been = situation.now - head[1]
    if been < -CLOCK_SKEW:
        why = f"{place} says that it goes live {_at(head[1])}, which is yet to come: a clock is wrong."
        return [Check("soak", "inconclusive", why, "Set the clock right.")]
    if been < due:
        why = f"Live in {place} for {span(max(been, timedelta(0)))}; the policy asks for {soak.at_least}."
        return [Check("soak", "fail", why, f"Wait until {_at(head[1] + due)}.")]
    return [Check("soak", "pass", f"Live in {place} since {_at(head[1])}.")]


def _freeze(situation: Situation) -> list[Check]:
    if not situation.gate.freezes:
        return []
    now = [freeze for freeze in situation.gate.freezes if freeze.start <= situation.now < freeze.end]
    if not now:
        return [Check("freeze", "pass", "No freeze window is open.")]
    end = max(freeze.end for freeze in now)
    reasons = "; ".join(freeze.reason for freeze in now)
    return [Check("freeze", "fail", f"Nothing is promoted until {_at(end)}: {reasons}", f"Wait until {_at(end)}.")]


def _lint(situation: Situation) -> list[Check]:
    checks = []
    for rule in situation.gate.forbid_lint:
        name = f"lint:{rule}"
        if situation.lint is None:
            checks.append(Check(name, "inconclusive", "The bundle was not linted."))
            continue
        found = [message for found_rule, message in situation.lint if found_rule == rule]
        if found:
            checks.append(Check(name, "fail", "; ".join(found[:5]), "Mend it in the source, build and evaluate again."))
        else:
            checks.append(Check(name, "pass", "Nothing found."))
    return checks


def _rollback_target(situation: Situation) -> Check:
    name = "rollback-target"
    target = situation.rollback_target
    if target is None:
        return Check(name, "inconclusive", "It is not known what this could be rolled back to.")
    if target.bundle is None:
        return Check(name, "pass", "No other bundle was live here: there is nothing yet to go back to.")
    reference = f"{situation.app}@{target.bundle[:19]}"
    reason = situation.keyring.blocked(target.bundle)
    if reason is not None:
        fix = "Name another rollback target in bundle.yaml, or promote a good bundle twice."
        return Check(name, "fail", f"{reference} is blocked: {reason}", fix)
    if target.present is None:
        return Check(name, "inconclusive", f"It was not checked that {reference} can be gone back to.")
    if not target.present:
        why = f"{reference} was not live here, or its bytes are gone: a rollback would fail when it is needed."
        return Check(name, "fail", why, f"bundlectl history {situation.app}:{situation.environment} lists what was.")
    return Check(name, "pass", f"{reference}, whole and not blocked.")


def _confirm(situation: Situation) -> list[Check]:
    if not situation.gate.confirm:
        return []
    environment = situation.environment
    fix = f"--confirm {environment}"
    if situation.confirmed is None:
        return [Check("confirm", "inconclusive", f"{environment} asks to be named once more.", fix)]
    if situation.confirmed != environment:
        why = f"{situation.confirmed!r} was confirmed, and this goes to {environment}."
        return [Check("confirm", "fail", why, fix)]
    return [Check("confirm", "pass", f"{environment} was confirmed.")]


def _history(situation: Situation) -> Check:
    place = f"{situation.app}:{situation.environment}"
    if situation.in_history is None:
        return Check("history", "inconclusive", f"It is not known whether it was live in {place} before.")
    if situation.in_history:
        return Check("history", "pass", f"It was live in {place} before.")
    why = f"It was never live in {place}, so this would be a promotion."
    return Check("history", "fail", why, f"bundlectl promote {situation.reference} --to {situation.environment}")


def _signatures(situation: Situation) -> Check:
    if situation.origin is None:
        return Check("signatures", "inconclusive", "The promotion that it returns to was not read.")
    checks = required_evidence(situation.origin.gate, situation.origin.attested, situation.keyring)
    bad = [check for check in checks if check.verdict != "pass"]
    if bad:
        why = "Resolvers would refuse it: " + " ".join(f"{check.name}: {check.why}" for check in bad)
        return Check("signatures", "fail", why, "Roll back further, or promote a good bundle.")
    return Check("signatures", "pass", "The evidence of its promotion still holds.")


def _at(when: datetime | None) -> str:
    return format_time(when) if when else "never"
