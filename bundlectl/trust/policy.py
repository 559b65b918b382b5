"""The policy as it was verified: the app owners' gates (DESIGN section 5), and those that a new app starts with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bundlectl.model.attestation import (
    APPROVAL,
    EVALUATION,
    OVERRIDE,
    POLICY_PAYLOAD_TYPE,
    PROVENANCE,
    RELEASE,
    Envelope,
)
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import NotFound, VerificationFailed
from bundlectl.model.keyring import EvaluationRequirement, Gate, KeyState, Policy, Soak
from bundlectl.trust.envelope import open_document, payload_of, seal, signed_by
from bundlectl.trust.keyring import ACTIVE, VerifiedKeyring
from bundlectl.trust.signers import Signer

_OWN_FIELD = {
    PROVENANCE: "Write provenance: N",
    EVALUATION: "Write evaluations: [{suite: NAME}]",
    APPROVAL: "Write approvals: N",
    OVERRIDE: "An override is never required.",
    RELEASE: "Write soak: {environment: ENV}",
}
"""Predicate types that a gate does not ask for under ``attestations``, and what to write instead."""


@dataclass(frozen=True)
class VerifiedPolicy:
    """A policy that enough of the app's owners signed. ``digest`` is of the payload."""

    document: Policy
    digest: str
    envelope: Envelope

    @property
    def version(self) -> int:
        """The policy's version, from 1."""
        return self.document.version

    def gate(self, environment: str) -> Gate:
        """Give an environment's gate.

        Raises:
            NotFound: the policy does not name the environment: it does not exist.
        """
        found = self.document.environments.get(environment)
        if found is None:
            names = ", ".join(sorted(self.document.environments))
            raise NotFound(
                f"{self.document.app} has no environment {environment!r}.",
                why=f"Its policy (version {self.version}) names {names}.",
                fix="Use one of these, or have the app's owners add it to the policy.",
            )
        return found


def open_policy(
    envelope: Envelope, keyring: VerifiedKeyring, app: str, *, states: Sequence[KeyState] = ACTIVE
) -> VerifiedPolicy:
    """Open an app's policy on the keyring's word.

    Args:
        envelope: the policy's envelope.
        keyring: who owns the app, and the least version that counts.
        app: the app that it must be for.
        states: key states that count. The policy of a release needs active owners; one that an origin names
            may be old: pass ``ACTIVE_OR_RETIRED``.

    Raises:
        VerificationFailed: another payload type or form, another app, too few owners, below root's floor, or
            the document breaks a rule of its own.
    """
    document = open_document(envelope, POLICY_PAYLOAD_TYPE, Policy, "The policy")
    what = f"Policy {document.version} of {document.app}"
    if document.app != app:
        raise VerificationFailed(f"{what} is not a policy of {app}.")
    named = keyring.app(app)
    signed = signed_by(envelope, keyring.owners(app, states=states))
    if len(signed) < named.owners.threshold:
        raise VerificationFailed(
            f"{what} is not signed by enough of the app's owners.",
            why=f"{len(signed)} of {named.owners.threshold} needed signed: {', '.join(sorted(signed)) or 'nobody'}.",
            fix=f"Collect signatures of {', '.join(sorted(set(keyring.owners(app)) - signed)) or 'active owners'}.",
        )
    if document.version < named.policy:
        raise VerificationFailed(
            f"{what} no longer counts.", why=f"Keyring {keyring.version} asks for version {named.policy} or later."
        )
    check_policy(document)
    return VerifiedPolicy(document, digest(payload_of(envelope)), envelope)


def next_policy(current: VerifiedPolicy, envelope: Envelope, keyring: VerifiedKeyring) -> VerifiedPolicy:
    """Open the policy that is to follow: version N+1, naming N's digest, signed by active owners.

    Raises:
        VerificationFailed: it does not follow, or does not open.
    """
    found = open_policy(envelope, keyring, current.document.app)
    if found.version != current.version + 1 or found.document.previous != current.digest:
        raise VerificationFailed(
            f"Policy {found.version} does not follow policy {current.version}.",
            why=f"It names {found.document.previous}; policy {current.version} is {current.digest}.",
            fix=f"Set version: {current.version + 1} and previous: {current.digest}, and sign again.",
        )
    return found


def check_policy(document: Policy) -> None:
    """Check the rules that a policy keeps by itself, before or after it is signed.

    A soak is in another environment that the policy names, or in another registry; a freeze ends after it starts;
    a gate names a suite and a type of attestation once; only version 1 has no predecessor.

    Raises:
        VerificationFailed: one of them does not hold.
    """
    what = f"Policy {document.version} of {document.app}"
    if (document.version == 1) != (document.previous is None):
        raise VerificationFailed(f"{what} must name its predecessor's digest, and only version 1 has none.")
    for name, gate in document.environments.items():
        soak = gate.soak if gate.soak and gate.soak.registry is None else None
        if soak and (soak.environment == name or soak.environment not in document.environments):
            raise VerificationFailed(
                f"{what}: {name} asks for a soak in {soak.environment!r}.",
                fix="Name another environment of the same policy.",
            )
        for freeze in gate.freezes:
            if freeze.end <= freeze.start:
                raise VerificationFailed(f"{what}: a freeze of {name} ends before it starts ({freeze.reason}).")
        types = [requirement.type for requirement in gate.attestations or ()]
        for type_ in types:
            if type_ in _OWN_FIELD or types.count(type_) > 1:
                raise VerificationFailed(
                    f"{what}: the gate of {name} asks for an attestation of the type {type_!r}"
                    + (", which is asked for otherwise." if type_ in _OWN_FIELD else " twice."),
                    fix=_OWN_FIELD.get(type_, "Ask once, with the threshold that is meant."),
                )
        suites = [requirement.suite for requirement in gate.evaluations]
        if len(set(suites)) != len(suites):
            raise VerificationFailed(f"{what}: the gate of {name} names a suite twice.")


def seal_policy(document: Policy, signers: Sequence[Signer]) -> Envelope:
    """Check and sign a policy.

    Raises:
        VerificationFailed: the document breaks a rule of its own.
        UsageError: no signer was given.
    """
    check_policy(document)
    return seal(canonical(document.form()), POLICY_PAYLOAD_TYPE, signers)


def default_gates(evaluations: Sequence[EvaluationRequirement]) -> dict[str, Gate]:
    """Give the gates a new app starts with.

    dev asks for nothing; staging for the evaluations; prod for the evaluations, the bundle live in staging
    now, and ``--confirm prod``, and its releases expire after 14 days unless renewed.
    """
    asked = list(evaluations)
    return {
        "dev": Gate(),
        "staging": Gate(evaluations=asked),
        "prod": Gate(evaluations=asked, soak=Soak(environment="staging"), confirm=True, expires_after="14d"),
    }


def new_policy(app: str, evaluations: Sequence[EvaluationRequirement]) -> Policy:
    """Make version 1 for an app, with :func:`default_gates`."""
    document = Policy(app=app, version=1, environments=default_gates(evaluations))
    check_policy(document)
    return document


def policy_differences(before: Policy | None, after: Policy) -> list[str]:
    """Say, line by line, what a policy changes: what owners read before they sign."""
    old = _leaves({name: gate.form() for name, gate in before.environments.items()} if before else {})
    new = _leaves({name: gate.form() for name, gate in after.environments.items()})
    gone = sorted(set(before.environments) - set(after.environments)) if before else []
    come = sorted(set(after.environments) - set(before.environments if before else {}))
    lines = [f"environment {name} is gone" for name in gone] + [f"new environment {name}" for name in come]
    for path in sorted(old.keys() | new.keys()):
        if path.split(".")[0] in gone or old.get(path) == new.get(path):
            continue
        was, becomes = (json.dumps(leaves[path]) if path in leaves else "absent" for leaves in (old, new))
        lines.append(f"{path}: {becomes}" if path.split(".")[0] in come else f"{path}: {was} -> {becomes}")
    return lines


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Flatten a JSON value to its leaves by path; an empty list or object is a leaf."""
    if isinstance(value, dict) and (value or not path):
        pairs = [(f"{path}.{key}" if path else str(key), child) for key, child in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(f"{path}[{n}]", child) for n, child in enumerate(value)]
    else:
        return {path: value}
    return {leaf: found for name, child in pairs for leaf, found in _leaves(child, name).items()}
