"""How a new registry's keyring is made: members with one role each, for one app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bundlectl.model.errors import UsageError
from bundlectl.model.keyring import Keyring, KeyringEntry, PublicKey, Role
from bundlectl.trust.keyring import check_keyring
from bundlectl.trust.signers import Signer


@dataclass(frozen=True)
class Member:
    """A principal of a new keyring: its id, who is behind it, its one role, its public key."""

    principal: str
    owner: str
    role: Role | Literal["root", "owner"]
    key: PublicKey


def member(principal: str, owner: str, role: Role | Literal["root", "owner"], signer: Signer) -> Member:
    """Make a member from the signer that holds its key."""
    key = PublicKey.model_validate({"scheme": signer.scheme, "public": signer.public_pem})
    return Member(principal, owner, role, key)


def new_keyring(
    app: str,
    members: Sequence[Member],
    *,
    environments: Sequence[str] = ("*",),
    root_threshold: int = 1,
    owner_threshold: int = 1,
    expires: datetime | None = None,
) -> Keyring:
    """Make version 1 for one app: every member in its role, for this app, in the environments.

    Raises:
        UsageError: there is no root or no owner among the members, too few for a threshold, or an id twice.
        VerificationFailed: a member's key is unusable, or two members share one.
    """
    by_role: dict[str, list[str]] = {}
    for one in members:
        by_role.setdefault(one.role, []).append(one.principal)
    for role, threshold in (("root", root_threshold), ("owner", owner_threshold)):
        if threshold < 1 or len(set(by_role.get(role, []))) < threshold:
            raise UsageError(f"A keyring needs at least {max(threshold, 1)} of the role {role}.")
    if len({one.principal for one in members}) != len(members):
        raise UsageError("Two members of the new keyring have the same id.", fix="One id for each key.")
    document = Keyring.model_validate(
        {
            "version": 1,
            "expires": expires,
            "root": {"principals": by_role.pop("root"), "threshold": root_threshold},
            "apps": {app: {"owners": {"principals": by_role.pop("owner"), "threshold": owner_threshold}}},
            "principals": {one.principal: KeyringEntry(owner=one.owner, key=one.key) for one in members},
            "grants": [
                {"role": role, "principals": named, "apps": [app], "environments": list(environments)}
                for role, named in sorted(by_role.items())
            ],
        }
    )
    check_keyring(document)
    return document
