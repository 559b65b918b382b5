"""The changes that root makes to a keyring: each gives the document of version N+1, unsigned. DESIGN section 5.

Nothing here signs or stores. The rules that hold between two versions are :func:`keyring.next_keyring`'s; what
these functions add is that a change changes something, and says in words what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from bundlectl.model.errors import UsageError
from bundlectl.model.keyring import (
    App,
    Blocked,
    Grant,
    Keyring,
    KeyringEntry,
    KeyState,
    Oidc,
    PublicKey,
    Role,
    Signers,
)
from bundlectl.model.sigstore import SigstoreInstance
from bundlectl.model.types import format_time
from bundlectl.trust.instances import root_digest, vouches
from bundlectl.trust.keyring import VerifiedKeyring, check_successor
from bundlectl.trust.keys import key_id


@dataclass(frozen=True)
class NewMember:
    """A principal that is to enter the keyring: by its key, or by its identity."""

    principal: str
    owner: str
    key: PublicKey | None = None
    oidc: Oidc | None = None


def add_principal(
    current: VerifiedKeyring,
    new: NewMember,
    role: Role,
    *,
    apps: Sequence[str] = ("*",),
    environments: Sequence[str] = ("*",),
    reason: str | None = None,
) -> Keyring:
    """Give a principal a role. One that is there already with the same key and owner gets the role in more places.

    Raises:
        UsageError: it is there with another key or owner, holds the role there already, an app is unknown, or it is an
            identity that no Sigstore instance of the keyring vouches for.
        VerificationFailed: the key is unusable or another principal's, or it holds another role.
    """
    document = current.document
    unknown = sorted(set(apps) - {"*"} - set(document.apps))
    if unknown:
        raise UsageError(
            f"Keyring {current.version} does not name the app {', '.join(unknown)}.",
            fix=f"bundlectl keyring app {unknown[0]} --add OWNER_PRINCIPAL,WHO,FILE.pub",
        )
    if new.oidc is not None and vouches(current.sigstore, new.oidc.issuer) is None:
        raise UsageError(
            f"Keyring {current.version} trusts no Sigstore instance for identities of {new.oidc.issuer}.",
            why="So no signature of this identity would count.",
            fix=f"bundlectl keyring trust-root public --issuer {new.oidc.issuer} (or name your own instance's FILE)",
        )
    principals = _with(document, [new])
    grant = Grant(role=role, principals=[new.principal], apps=list(apps), environments=list(environments))
    if grant in document.grants:
        raise UsageError(f"{new.principal!r} already is {role} there; nothing was changed.")
    return successor(current, reason=reason, principals=principals, grants=[*document.grants, grant])


def set_state(current: VerifiedKeyring, principal: str, state: KeyState, reason: str) -> Keyring:
    """Retire a key, or declare it compromised.

    Raises:
        UsageError: it is in that state already, or compromised, which is for ever.
        VerificationFailed: the keyring does not name it, or root could no longer reach its threshold.
    """
    entry = current.entry(principal)
    if entry.state == state or entry.state == "compromised":
        raise UsageError(f"The key of {principal!r} already is {entry.state}; nothing was changed.")
    changed = {**current.document.principals, principal: entry.model_copy(update={"state": state})}
    return successor(current, reason=reason, principals=changed)


def block(current: VerifiedKeyring, digest: str, reason: str) -> Keyring:
    """Block the digest of a bundle, a part of one, a snapshot or a piece of evidence.

    Raises:
        UsageError: it is blocked already.
    """
    before = current.blocked(digest)
    if before is not None:
        raise UsageError(f"{digest} is blocked already: {before}")
    return successor(current, reason=reason, blocked=[*current.document.blocked, Blocked(digest=digest, reason=reason)])


def raise_epoch(current: VerifiedKeyring, app: str, environment: str, reason: str) -> Keyring:
    """Begin an environment's next epoch: no release made before counts any more.

    Raises:
        VerificationFailed: the keyring does not name the app.
    """
    named = current.app(app)
    epochs = {**named.epochs, environment: current.epoch(app, environment) + 1}
    changed = {**current.document.apps, app: named.model_copy(update={"epochs": epochs})}
    return successor(current, reason=reason, apps=changed)


def rotate_root(
    current: VerifiedKeyring,
    *,
    add: Sequence[NewMember] = (),
    remove: Sequence[str] = (),
    threshold: int | None = None,
    expires: datetime | None = None,
    reason: str | None = None,
) -> Keyring:
    """Change who root is, how many of it must sign, or until when its word holds. Who leaves is retired.

    Raises:
        UsageError: nothing would change, one that is to leave is not root, or too few would be left.
    """
    document = current.document
    gone = sorted(set(remove) - set(document.root.principals))
    if gone:
        raise UsageError(f"{', '.join(gone)} is not root.", fix=f"Root is {', '.join(document.root.principals)}.")
    if not (add or remove or threshold or expires):
        raise UsageError("Nothing would change.", fix="Use --add, --remove, --threshold or --expires.")
    principals = _with(document, add)
    for name in remove:
        if principals[name].state == "active":
            principals[name] = principals[name].model_copy(update={"state": "retired"})
    names = [name for name in document.root.principals if name not in remove] + [one.principal for one in add]
    root = _signers(names, threshold or document.root.threshold, "root")
    return successor(current, reason=reason, principals=principals, root=root, expires=expires or document.expires)


def set_app(
    current: VerifiedKeyring,
    app: str,
    *,
    owners: Sequence[str] | None = None,
    add: Sequence[NewMember] = (),
    threshold: int | None = None,
    policy_floor: int | None = None,
    reason: str | None = None,
) -> Keyring:
    """Add an app, or change who owns its policy and the least policy version that counts.

    Args:
        current: the keyring to follow.
        app: its name.
        owners: principals of the keyring; None keeps those that are.
        add: new principals that own it too.
        threshold: how many owners sign a policy; None keeps it (1 for a new app).
        policy_floor: the least policy version that counts.
        reason: why.

    Raises:
        UsageError: a new app without owners, an owner the keyring does not name, or nothing would change.
    """
    document = current.document
    before = document.apps.get(app)
    kept = list(owners) if owners is not None else list(before.owners.principals) if before else []
    named = list(dict.fromkeys([*kept, *(one.principal for one in add)]))
    unknown = sorted(set(kept) - set(document.principals))
    if unknown or not named:
        raise UsageError(
            f"Keyring {current.version} does not name {', '.join(unknown)}." if unknown else f"{app} needs an owner.",
            fix="Bring a new owner with --add PRINCIPAL,WHO,FILE.pub",
        )
    signers = _signers(named, threshold or (before.owners.threshold if before else 1), f"the owners of {app}")
    after = (before or App(owners=signers)).model_copy(
        update={"owners": signers} | ({"policy": policy_floor} if policy_floor is not None else {})
    )
    if after == before and not add:
        raise UsageError(f"{app} is like that already; nothing was changed.")
    return successor(current, reason=reason, principals=_with(document, add), apps={**document.apps, app: after})


def set_instance(current: VerifiedKeyring, instance: SigstoreInstance, *, reason: str | None = None) -> Keyring:
    """Trust a Sigstore instance for the identities of some issuers, or replace what was said of it.

    Raises:
        UsageError: that is said already.
        VerificationFailed: another instance vouches for one of the issuers, or the trusted root is of no known kind.
    """
    before = list(current.sigstore)
    if instance in before:
        raise UsageError(f"The Sigstore instance {instance.name!r} is like that already; nothing was changed.")
    after = [one for one in before if one.name != instance.name] + [instance]
    return successor(current, reason=reason, sigstore=sorted(after, key=lambda one: one.name))


def drop_instance(current: VerifiedKeyring, name: str, *, reason: str | None = None) -> Keyring:
    """Trust a Sigstore instance no more: no signature that it vouches for counts, whenever it was made.

    Raises:
        UsageError: the keyring does not name it.
    """
    after = [one for one in current.sigstore if one.name != name]
    if len(after) == len(current.sigstore):
        known = ", ".join(one.name for one in current.sigstore) or "none"
        raise UsageError(f"Keyring {current.version} names no Sigstore instance {name!r}.", fix=f"It names {known}.")
    return successor(current, reason=reason, sigstore=after or None)


def successor(current: VerifiedKeyring, *, reason: str | None, **changes: Any) -> Keyring:
    """Give version N+1 with some fields changed, checked against every rule but the signatures.

    Raises:
        VerificationFailed: it breaks a rule of its own or of succession.
    """
    fields = {"version": current.version + 1, "previous": current.digest, "reason": reason, **changes}
    document = Keyring.model_validate(current.document.model_copy(update=fields).form())
    check_successor(current, document)
    return document


def newly(before: Keyring, after: Keyring, state: KeyState) -> list[str]:
    """Give the principals that come into a state with the later document."""
    return sorted(
        name
        for name, entry in after.principals.items()
        if entry.state == state and name in before.principals and before.principals[name].state != state
    )


def differences(before: Keyring, after: Keyring) -> list[str]:
    """Say, line by line, what a keyring changes: what root reads before it signs."""
    lines = [f"reason: {after.reason}"] if after.reason else []
    lines += _root_lines(before, after)
    for name, entry in sorted(after.principals.items()):
        old = before.principals.get(name)
        if old is None:
            lines.append(f"new principal {name}, owner {entry.owner}, {_identity(entry)}")
        elif old != entry:
            lines.append(f"principal {name} ({entry.owner}): {old.state} -> {entry.state}")
    lines += [f"new grant: {_grant(grant)}" for grant in after.grants if grant not in before.grants]
    lines += [f"grant taken away: {_grant(grant)}" for grant in before.grants if grant not in after.grants]
    lines += _instance_lines(before.sigstore or [], after.sigstore or [])
    for name, app in sorted(after.apps.items()):
        lines += _app_lines(name, before.apps.get(name), app)
    lines += [f"blocked: {b.digest}: {b.reason}" for b in after.blocked if b not in before.blocked]
    lines += [f"no longer blocked: {b.digest} ({b.reason})" for b in before.blocked if b not in after.blocked]
    return lines


def _root_lines(before: Keyring, after: Keyring) -> list[str]:
    lines = []
    if before.root != after.root:
        for label, root in (("root was", before.root), ("root becomes", after.root)):
            lines.append(f"{label} {root.threshold} of {', '.join(root.principals)}")
    if before.expires != after.expires:
        lines.append(f"expires: {_when(before.expires)} -> {_when(after.expires)}")
    return lines


def _instance_lines(before: Sequence[SigstoreInstance], after: Sequence[SigstoreInstance]) -> list[str]:
    old = {one.name: one for one in before}
    lines = [
        f"{'Sigstore instance' if one.name in old else 'new Sigstore instance'} {one.name}: "
        f"trusted root {root_digest(one)}, vouches for {', '.join(one.issuers)}"
        for one in after
        if old.get(one.name) != one
    ]
    kept = {one.name for one in after}
    return lines + [f"Sigstore instance {name} is trusted no more" for name in old if name not in kept]


def _app_lines(name: str, before: App | None, after: App) -> list[str]:
    owned = f"owned by {after.owners.threshold} of {', '.join(after.owners.principals)}"
    if before is None:
        return [f"new app {name}, {owned}"]
    lines = [f"app {name}: now {owned}"] if before.owners != after.owners else []
    if before.policy != after.policy:
        lines.append(f"app {name}: policies before version {after.policy} no longer count")
    for environment, epoch in sorted(after.epochs.items()):
        old = before.epochs.get(environment, 1)
        if old != epoch:
            lines.append(f"{name}:{environment}: epoch {old} -> {epoch}; no release made before counts")
    return lines


def _with(document: Keyring, new: Sequence[NewMember]) -> dict[str, KeyringEntry]:
    principals = dict(document.principals)
    for one in new:
        entry = KeyringEntry(owner=one.owner, key=one.key, oidc=one.oidc)
        there = principals.get(one.principal)
        if there is not None and not _same(there, entry):
            raise UsageError(
                f"{one.principal!r} is in the keyring already, with another key or owner, or not active.",
                why=f"It is {there.state}, of {there.owner}, {_identity(there)}.",
                fix="Choose another name: an entry is never changed, so that what it signed can be judged for ever.",
            )
        principals[one.principal] = there or entry
    return principals


def _same(there: KeyringEntry, new: KeyringEntry) -> bool:
    return (there.state, there.owner) == ("active", new.owner) and _identity(there) == _identity(new)


def _signers(principals: Sequence[str], threshold: int, whose: str) -> Signers:
    names = list(dict.fromkeys(principals))
    if not 1 <= threshold <= len(names):
        raise UsageError(
            f"A threshold of {threshold} cannot be met by {len(names)} principals of {whose}.",
            fix="Give --threshold N, with N between 1 and how many there are.",
        )
    return Signers(principals=names, threshold=threshold)


def _identity(entry: KeyringEntry) -> str:
    if entry.key is not None:
        return f"{entry.key.scheme} {key_id(entry.key.public)}"
    assert entry.oidc is not None  # the model demands one of the two
    return f"{entry.oidc.subject} by {entry.oidc.issuer}"


def _grant(grant: Grant) -> str:
    places: Mapping[str, Sequence[str] | Literal["*"]] = {"apps": grant.apps, "environments": grant.environments}
    where = "; ".join(f"{label} {', '.join(names)}" for label, names in places.items())
    return f"{grant.role} for {', '.join(grant.principals)} ({where})"


def _when(time: datetime | None) -> str:
    return format_time(time) if time else "never"
