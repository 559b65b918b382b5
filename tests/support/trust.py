"""A small world of trust for tests: fixed keys, a keyring, a policy, and evidence on demand. No files, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from bundlectl.model.attestation import (
    APPROVAL,
    EVALUATION,
    PAYLOAD_TYPE,
    PROVENANCE,
    Approval,
    Envelope,
    EvaluationResult,
    ScoreSummary,
)
from bundlectl.model.canonical import canonical
from bundlectl.model.keyring import EvaluationRequirement, Gate, Keyring, Policy
from bundlectl.trust.envelope import envelope_bytes, make_statement, seal
from bundlectl.trust.evidence import Attested, open_evidence
from bundlectl.trust.founding import member, new_keyring
from bundlectl.trust.keyring import VerifiedKeyring, keyring_digest, open_keyring, seal_keyring
from bundlectl.trust.policy import VerifiedPolicy, new_policy, open_policy, seal_policy
from bundlectl.trust.signers import KeySigner

APP = "support"
NOW = datetime(2026, 11, 23, 18, 0, 0, tzinfo=UTC)
BUNDLE = "sha256:" + "b" * 64
OTHER = "sha256:" + "0" * 64
SUITE = "sha256:" + "1" * 64
DATASET = "sha256:" + "2" * 64

MEMBERS = {
    "root-1": ("root", "rita"),
    "root-2": ("root", "ron"),
    "root-3": ("root", "rosa"),
    "owner-1": ("owner", "olga"),
    "owner-2": ("owner", "otto"),
    "builder-1": ("builder", "ben"),
    "builder-2": ("builder", "bea"),
    "evaluator-1": ("evaluator", "eve"),
    "evaluator-2": ("evaluator", "emil"),
    "approver-1": ("approver", "ann"),
    "approver-2": ("approver", "abe"),
    "approver-ben": ("approver", "Ben "),
    "promoter-1": ("promoter", "pat"),
    "renewer-1": ("renewer", "cron"),
    "indexer-1": ("indexer", "ingest"),
}
"""Principal -> role and owner. ``approver-ben`` is also behind ``builder-1``."""


@lru_cache(maxsize=256)
def signer(name: str, scheme: str = "ed25519") -> KeySigner:
    """Give the signer of a name: the same key every time."""
    seed = hashlib.sha256(name.encode()).digest()
    if scheme == "ed25519":
        return KeySigner(ed25519.Ed25519PrivateKey.from_private_bytes(seed), f"test:{name}")
    return KeySigner(ec.derive_private_key(int.from_bytes(seed, "big") >> 8, ec.SECP256R1()), f"test:{name}")


def signers(*names: str) -> list[KeySigner]:
    return [signer(name) for name in names]


def founding_keyring(**changes: Any) -> Keyring:
    """Version 1: every member in its role, two of three roots, one of two owners."""
    made = new_keyring(
        APP,
        [member(name, owner, role, signer(name)) for name, (role, owner) in MEMBERS.items()],  # type: ignore[arg-type]
        root_threshold=2,
    )
    return Keyring.model_validate(made.model_copy(update=changes).form()) if changes else made


def sealed(document: Keyring, *names: str) -> bytes:
    """Sign without checking the document: what an attacker, or a careless root, would store."""
    return envelope_bytes(seal(canonical(document.form()), KEYRING_TYPE, signers(*names)))


KEYRING_TYPE = "application/vnd.bundlectl.keyring.v1+json"


def opened_keyring(document: Keyring | None = None) -> VerifiedKeyring:
    document = document or founding_keyring()
    data = envelope_bytes(seal_keyring(document, signers("root-1", "root-2")))
    return open_keyring(data, keyring_digest(document))


def with_states(document: Keyring, **states: str) -> Keyring:
    """The same keyring with other key states; ``_`` in a name stands for ``-``."""
    form = document.form()
    for name, state in states.items():
        form["principals"][name.replace("_", "-")]["state"] = state
    return Keyring.model_validate(form)


def opened_policy(keyring: VerifiedKeyring, document: Policy | None = None) -> VerifiedPolicy:
    document = document or new_policy(APP, [EvaluationRequirement(suite="support")])
    return open_policy(seal_policy(document, signers("owner-1")), keyring, APP)


def provenance(*names: str, bundle: str = BUNDLE, app: str = APP) -> Envelope:
    predicate = {"buildDefinition": {"buildType": "urn:bundlectl:build:v1"}, "runDetails": {"builder": {"id": "ci"}}}
    return seal(make_statement(app, bundle, PROVENANCE, predicate), PAYLOAD_TYPE, signers(*names))


def approval(*names: str, bundle: str = BUNDLE, app: str = APP, environment: str = "prod") -> Envelope:
    predicate = Approval(environment=environment, reason="looks right", actor=names[0] if names else "x", time=NOW)
    return seal(make_statement(app, bundle, APPROVAL, predicate.form()), PAYLOAD_TYPE, signers(*names))


def score(name: str = "hit", mean: float | None = 0.9, measured: int = 100, **more: Any) -> ScoreSummary:
    fields: dict[str, Any] = {"unmeasured": 0, "errors": 0, "verdict": "pass", **more}
    return ScoreSummary(scorer=name, mean=mean, measured=measured, **fields)


def result(age: timedelta = timedelta(hours=1), **more: Any) -> EvaluationResult:
    fields: dict[str, Any] = {
        "suite": "support",
        "suite_digest": SUITE,
        "dataset_digest": DATASET,
        "task": "answer",
        "cases": 100,
        "verdict": "pass",
        "scores": [score()],
        "complete": True,
        "bindings": OTHER,
        "tool_version": "0.1.0",
        "started": NOW - age - timedelta(minutes=2),
        "finished": NOW - age,
        "actor": "ci",
        **more,
    }
    return EvaluationResult(**fields)


def evaluation(*names: str, bundle: str = BUNDLE, app: str = APP, **more: Any) -> Envelope:
    predicate = result(**more)
    return seal(make_statement(app, bundle, EVALUATION, predicate.form()), PAYLOAD_TYPE, signers(*names))


def opened(
    keyring: VerifiedKeyring, envelopes: Sequence[Envelope], environment: str = "prod", bundle: str = BUNDLE
) -> list[Attested]:
    return [open_evidence(envelope, bundle, APP, environment, keyring) for envelope in envelopes]


def asks(**requirement: Any) -> Gate:
    """A gate that asks for one evaluation of the suite ``support``."""
    return Gate(evaluations=[EvaluationRequirement(suite="support", **requirement)])
