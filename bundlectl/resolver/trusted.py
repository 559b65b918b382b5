"""Whether a head may be believed: rules without I/O. Given bytes, keys, clock and last state, they answer.

DESIGN 5, "Resolvers verify head, not the chain". The promoter runs the same rules on the bytes that it is
about to commit. Nothing here reads a file, asks a clock or remembers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.contract import ReleaseRef
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import Gate
from bundlectl.model.release import Head, Release
from bundlectl.registry.head import parse_head
from bundlectl.registry.registry import check_app
from bundlectl.resolver.lineage import Lineage, lineage_of
from bundlectl.resolver.rules import (
    Blocked,
    Expired,
    KeyringTooOld,
    alarms_of,
    check_blocked,
    check_epoch,
    check_evidence,
    check_keyring,
    check_known,
    check_order,
    check_policy_version,
    check_renewed,
    check_signed,
    check_times,
    check_where,
    evidence_of,
    gate_of,
    policies_of,
)
from bundlectl.resolver.state import TrustedState
from bundlectl.trust.evidence import Attested
from bundlectl.trust.keyring import ACTIVE, VerifiedKeyring
from bundlectl.trust.policy import VerifiedPolicy

__all__ = [
    "Blocked",
    "Expired",
    "KeyringTooOld",
    "TrustedState",
    "VerifiedBundle",
    "VerifiedRelease",
    "check_unblocked",
    "verify_bundle",
    "verify_head",
]


@dataclass(frozen=True)
class VerifiedRelease:
    """A head that kept every rule."""

    data: bytes
    """The head's bytes, as they were given."""
    digest: str
    """Of ``data``."""
    head: Head
    release: Release
    base: Release
    """The promoter's release: what a renewal prolongs, else the release itself."""
    promotion: Release
    """The promotion that the evidence was judged under; the release itself when it is one."""
    policy: VerifiedPolicy
    """The policy that the release names."""
    promotion_policy: VerifiedPolicy
    """The policy that the promotion names; a release that rests on the same promotion carries it again."""
    gate: Gate
    """The environment's gate in that policy."""
    evidence: tuple[Attested, ...]
    """What counted."""
    alarms: tuple[str, ...]
    """What is wrong and does not forbid serving, as of ``now``."""

    @classmethod
    def of(
        cls,
        data: bytes,
        head: Head,
        release: Release,
        lineage: Lineage,
        policies: tuple[VerifiedPolicy, VerifiedPolicy],
        gate: Gate,
        evidence: Iterable[Attested],
        alarms: Iterable[str],
    ) -> VerifiedRelease:
        """Put together what the rules found; ``policies`` are the release's own and its promotion's."""
        policy, promotion_policy = policies
        return cls(
            data=data,
            digest=digest(data),
            head=head,
            release=release,
            base=lineage.base,
            promotion=lineage.promotion,
            policy=policy,
            promotion_policy=promotion_policy,
            gate=gate,
            evidence=tuple(evidence),
            alarms=tuple(alarms),
        )

    def trusted_state(self, keyring: VerifiedKeyring, before: TrustedState | None = None) -> TrustedState:
        """Give the state to remember once this release is believed; ``before`` as it was given to the rules."""
        time = max(self.release.time, before.time) if before else self.release.time
        return TrustedState(
            registry=self.release.registry,
            keyring=keyring.version,
            keyring_digest=keyring.digest,
            policy=max(self.policy.version, before.policy) if before else self.policy.version,
            epoch=self.release.epoch,
            serial=self.release.serial,
            base=self.base.serial,
            head=self.digest,
            time=time,
        )


@dataclass(frozen=True)
class VerifiedBundle:
    """What may serve: a bundle whose every byte was checked, and what it serves with.

    ``release`` is None for a bundle that runs without a release (evaluation, dev).
    """

    bundle: Bundle
    bindings: Bindings
    ref: ReleaseRef
    release: VerifiedRelease | None


def verify_head(
    data: bytes,
    *,
    app: str,
    environment: str,
    registry_id: str,
    keyring: VerifiedKeyring,
    state: TrustedState | None,
    now: datetime,
    serving: bool = True,
) -> VerifiedRelease:
    """Judge a head.

    1. Its bytes are a head of at most 256 KiB, its release a statement about its own bundle.
    2. It is of this registry, app and environment.
    3. It is of the keyring's epoch.
    4. The keyring is at least the version that it demands, and at least the trusted one.
    5. It uses nothing that this version cannot serve: no candidate, no tenant pins.
    6. Its actor signed it: an active promoter of this app and environment; of a renewal, an active renewer.
    7. It is not older than the trusted release; the same place means the same bytes; the next serial names
       the trusted head; only the very first has no predecessor.
    8. Its origins are whole: see ``lineage.py``. A renewal prolongs nothing older than what was trusted.
    9. The policies that it and its promotion name are there, signed by the app's owners, not below root's
       floor; its own is not below the trusted one and names the environment.
    10. Its bundle is not blocked.
    11. Every piece of evidence is valid for this bundle, app and environment. What a compromised key alone
        signed, or root has blocked, does not count.
    12. What counts fulfils the gate that its promotion names: kinds, signers, thresholds.
    13. Its times agree, and its expiry is within what the policy allows.
    14. It is not past its expiry, where the policy refuses to serve then; alarms are gathered.

    Ages, scores, soak and freeze windows are judged at promotion, not here.

    Args:
        data: the head's bytes as stored.
        app: the app that it must be of.
        environment: the environment that it must be of.
        registry_id: the registry that it must be of: the digest of keyring 1.
        keyring: root's word, verified.
        state: what was believed last; None at a first start.
        now: the clock.
        serving: False to judge what is to be succeeded or shown: being past expiry is then an alarm only.

    Raises:
        KeyringTooOld, Blocked, Expired, VerificationFailed: the first rule that is broken.
    """
    head, release = parse_head(data, f"the head of {app}:{environment}")  # 1
    what = f"Release {release.serial} of {app}:{environment}"
    check_where(release, app, environment, registry_id, what)  # 2
    check_epoch(release, keyring.epoch(app, environment), what)  # 3
    check_keyring(release, keyring, state, what)  # 4
    check_known(release, what)  # 5
    check_signed(head.release, release, keyring, ACTIVE, what)  # 6
    check_order(release, digest(data), state, what)  # 7
    lineage = lineage_of(head, release, keyring, what)  # 8
    check_renewed(release, lineage.base, state, what)
    policy, promotion_policy = policies_of(head, release, lineage, keyring, what)  # 9
    check_policy_version(policy, state, what)
    gate = gate_of(policy, environment, what)
    check_blocked(keyring, release.bundle, f"bundle {release.bundle}")  # 10
    evidence, doubts = evidence_of(head, release, keyring)  # 11
    check_evidence(gate_of(promotion_policy, environment, what), evidence, keyring, what)  # 12
    check_times(release, gate, what)  # 13
    alarms = [*doubts, *alarms_of(release, gate, keyring, state, now, what, serving=serving)]  # 14
    return VerifiedRelease.of(data, head, release, lineage, (policy, promotion_policy), gate, evidence, alarms)


def verify_bundle(bundle: Bundle, release: VerifiedRelease, keyring: VerifiedKeyring) -> VerifiedBundle:
    """Join a verified release and its bundle.

    Raises:
        Blocked: root has blocked the bundle, one of its parts or a snapshot that it pins.
        VerificationFailed: it is another bundle than the release's, or another app's.
    """
    named = release.release
    if bundle.digest != named.bundle:
        raise VerificationFailed(f"Bundle {bundle.digest} is not the released one.", why=f"That is {named.bundle}.")
    check_app(bundle, named.app)
    check_unblocked(bundle, keyring)
    return VerifiedBundle(
        bundle,
        named.bindings,
        ReleaseRef(
            app=named.app,
            environment=named.environment,
            epoch=named.epoch,
            serial=named.serial,
            bundle=named.bundle,
            bindings=digest(canonical(named.bindings.form())),
        ),
        release,
    )


def check_unblocked(bundle: Bundle, keyring: VerifiedKeyring) -> None:
    """Refuse a bundle of which root has blocked the digest, a part or a pinned snapshot.

    Raises:
        Blocked: root has.
    """
    check_blocked(keyring, bundle.digest, f"bundle {bundle.digest}")
    for layer in bundle.manifest.layers:
        check_blocked(keyring, layer.digest, f"a part of bundle {bundle.digest}")
    for name, retrieval in bundle.components.retrieval.items():
        check_blocked(keyring, retrieval.snapshot, f"the snapshot of {name} in bundle {bundle.digest}")
