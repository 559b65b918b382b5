"""Whether the bundle that head names as its rollback target may answer the requests that are pinned to it.

It is judged by the rules that a rollback to it would be judged by now, and answers with the bindings that one would
give it: so what it says is what a rollback would bring.
"""

from __future__ import annotations

from dataclasses import replace

from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import NotFound, VerificationFailed
from bundlectl.model.fitting import returning
from bundlectl.model.release import RollbackTarget
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.layout import Place, history_key, pack_key
from bundlectl.registry.registry import Registry
from bundlectl.resolver.lineage import lineage_of
from bundlectl.resolver.rules import (
    check_blocked,
    check_evidence,
    check_keyring,
    check_known,
    check_signed,
    check_times,
    check_where,
    evidence_of,
    gate_of,
    policies_of,
)
from bundlectl.resolver.trusted import VerifiedBundle, VerifiedRelease, verify_bundle
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring


def named_target(live: VerifiedRelease) -> RollbackTarget:
    """Give what a verified head names as its rollback target.

    Raises:
        NotFound: it names none.
    """
    target = live.release.rollback_target
    if target is None:
        where = f"{live.release.app}:{live.release.environment}"
        raise NotFound(
            f"Release {live.release.serial} of {where} has no rollback target.",
            why="The first bundle of an environment has nothing to return to.",
        )
    return target


def verify_target(data: bytes, live: VerifiedRelease, keyring: VerifiedKeyring) -> VerifiedRelease:
    """Judge the release that a verified head names as its rollback target. No I/O.

    1. It is a promotion of head's registry, app and environment, at the place and of the bundle that head names.
    2. It uses nothing that this version cannot serve, and no newer keyring than is known.
    3. Its actor signed it: a promoter whose key is active or retired. One compromised since does not count.
    4. The policy that it names is there, signed by owners whose keys are active or retired, not below root's floor.
    5. Its bundle is not blocked.
    6. What counts of its evidence, by the keyring of now, fulfils its gate: kinds, signers, thresholds.
    7. Its times agree. Its expiry is not looked at: it is head's that counts.

    Args:
        data: the former head's bytes, as the history holds them.
        live: the head that names it.
        keyring: root's newest word.

    Raises:
        NotFound: head names none.
        Blocked, VerificationFailed: the first rule that is broken.
    """
    target, now = named_target(live), live.release
    head, release = parse_head(data, f"the rollback target of {now.app}:{now.environment}")
    what = f"Release {target.serial} of {now.app}:{now.environment}, the rollback target,"
    check_where(release, now.app, now.environment, now.registry, what)  # 1
    found = release.action, place(release), release.bundle
    if found != ("promotion", Place(target.epoch, target.serial), target.bundle):
        raise VerificationFailed(
            f"{what} is not the release that head names.",
            why=f"Head names the promotion of {target.bundle}; found was a {release.action} of {release.bundle} at "
            f"{place(release)}.",
            fix="It was replaced in the history. Restore it from a backup.",
        )
    check_known(release, what)  # 2
    check_keyring(release, keyring, None, what)
    check_signed(head.release, release, keyring, ACTIVE_OR_RETIRED, what)  # 3
    lineage = lineage_of(head, release, keyring, what)
    policies = policies_of(head, release, lineage, keyring, what, states=ACTIVE_OR_RETIRED)  # 4
    gate = gate_of(policies[0], release.environment, what)
    check_blocked(keyring, release.bundle, f"bundle {release.bundle}")  # 5
    evidence, doubts = evidence_of(head, release, keyring)  # 6
    check_evidence(gate, evidence, keyring, what)
    check_times(release, gate, what)  # 7
    return VerifiedRelease.of(data, head, release, lineage, policies, gate, evidence, doubts)


def returned_to(
    bundle: Bundle, release: VerifiedRelease, live: VerifiedBundle, keyring: VerifiedKeyring
) -> VerifiedBundle:
    """Join a verified rollback target and its bundle, with the bindings of head as far as they fit it.

    Raises:
        Blocked: root has blocked the bundle, one of its parts or a snapshot that it pins.
        VerificationFailed: it is another bundle.
    """
    found = verify_bundle(bundle, release, keyring)
    bindings, _ = returning(live.bindings, found.bindings, bundle.components)
    ref = found.ref.model_copy(update={"bindings": digest(canonical(bindings.form()))})
    return replace(found, bindings=bindings, ref=ref)


def read_target(registry: Registry, live: VerifiedBundle, keyring: VerifiedKeyring) -> VerifiedBundle:
    """Read the rollback target of a verified head from the registry, and judge it.

    Raises:
        NotFound: head names none, or the history does not hold it.
        VerificationFailed: it, or its bundle, does not verify.
        BackendUnavailable: the registry is away.
    """
    if live.release is None:
        raise NotFound("A bundle without a release has no rollback target.")
    target, app, environment = named_target(live.release), live.ref.app, live.ref.environment
    registry.store.expect(history_key(app, environment, target.epoch, target.serial), pack_key(app, target.bundle))
    former = registry.releases.former(app, environment, Place(target.epoch, target.serial))
    if former is None:
        raise NotFound(
            f"The rollback target of {app}:{environment}, release {target.serial}, is not in the history.",
            fix=f"Restore it from a backup: bundlectl history {app}:{environment} --verify",
        )
    release = verify_target(former.data, live.release, keyring)
    return returned_to(registry.get_bundle(app, target.bundle), release, live, keyring)
