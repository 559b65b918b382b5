"""Which attestations about a bundle count: who signed them, in which role, for what. DESIGN 5 and 6.

The gate and every resolver open an envelope by the same function, :func:`open_evidence`. Whether what counts is what
a gate asks for is in ``requirements.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bundlectl.model.attestation import (
    APPROVAL,
    EVALUATION,
    KINDS,
    OTHER_KIND,
    OVERRIDE,
    RELEASE,
    Approval,
    Envelope,
    EvaluationResult,
    Override,
    Statement,
)
from bundlectl.model.canonical import digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import Role
from bundlectl.trust.envelope import brief, envelope_bytes, objections, open_statement, payload_of, signed_by
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring

SIGNER_ROLES: Mapping[str, tuple[Role, ...]] = {
    "provenance": ("builder",),
    "evaluation": ("evaluator",),
    "approval": ("approver",),
    "override": ("approver",),
    OTHER_KIND: ("builder", "evaluator", "approver"),
}
"""Kind of evidence -> the roles whose signature it may have. Which of them counts for another type, the gate says."""


@dataclass(frozen=True)
class Attested:
    """A statement about the bundle that at least one principal of the right role validly signed.

    ``kind`` is provenance, evaluation, approval, override, or attestation for every other predicate type.
    ``signers`` are only those of the right role, each with key material of its own. ``digest`` is of the
    envelope (:func:`~bundlectl.trust.envelope.envelope_bytes`) and ``payload_digest`` of the statement in it:
    signatures can be dropped or respelled, a statement cannot.
    """

    kind: str
    predicate_type: str
    statement: Statement = field(repr=False)
    predicate: EvaluationResult | Approval | Override | dict[str, Any] = field(repr=False)
    signers: frozenset[str]
    envelope: Envelope = field(repr=False)
    digest: str

    @property
    def payload_digest(self) -> str:
        """The statement's digest."""
        return digest(payload_of(self.envelope))


@dataclass(frozen=True)
class Refused:
    """An envelope that does not count, and why."""

    digest: str
    why: str
    elsewhere: bool = False
    """It is meant for another environment, as it should be: nothing is wrong with it."""


class Elsewhere(VerificationFailed):
    """An approval or override that is meant for another environment."""


def open_evidence(
    envelope: Envelope, bundle: str, app: str, environment: str | None, keyring: VerifiedKeyring
) -> Attested:
    """Open one attestation about a bundle, as evidence for one environment.

    Args:
        envelope: the attestation.
        bundle: the digest that it must be about.
        app: the app that it must be about.
        environment: the environment whose role grants count; None where no environment is meant yet (an
            approval or an override is then judged by the one it names).
        keyring: whose word on roles counts. Retired keys count, compromised ones do not.

    Raises:
        VerificationFailed: another payload type, form or predicate; another bundle, app or environment; or
            no valid signature by a principal of the right role.
    """
    statement = open_statement(envelope)
    kind = KINDS.get(statement.predicateType, OTHER_KIND)
    if statement.predicateType == RELEASE:
        raise VerificationFailed("A release is no evidence about its bundle.")
    what = f"The attestation {statement.predicateType}" if kind == OTHER_KIND else f"The {kind} attestation"
    if statement.bundle != bundle or statement.subject[0].name != app:
        raise VerificationFailed(
            f"{what} is about something else.",
            why=f"It is about {statement.subject[0].name}@{statement.bundle}, and {app}@{bundle} was asked for.",
        )
    predicate = _predicate(statement, what)
    if isinstance(predicate, Approval | Override):
        if environment is not None and predicate.environment != environment:
            raise Elsewhere(f"{what} is for {predicate.environment}, not for {environment}.")
        environment = predicate.environment
    roles = SIGNER_ROLES[kind]
    able = {
        principal: entry
        for role in roles
        for principal, entry in keyring.principals(role, app, environment, states=ACTIVE_OR_RETIRED).items()
    }
    signers = signed_by(envelope, able, keyring.sigstore)
    if not signers:
        named = article(roles[0]) if len(roles) == 1 else f"a principal of a role that counts ({', '.join(roles)})"
        raise VerificationFailed(
            f"{what} is not signed by {named} of {app}{':' + environment if environment else ''}.",
            why=_who_then(envelope, keyring),
            fix=f"bundlectl keyring show lists who is {' or '.join(roles)}.",
        )
    return Attested(
        kind=kind,
        predicate_type=statement.predicateType,
        statement=statement,
        predicate=predicate,
        signers=signers,
        envelope=envelope,
        digest=digest(envelope_bytes(envelope)),
    )


def gather_evidence(
    envelopes: Iterable[Envelope], bundle: str, app: str, environment: str | None, keyring: VerifiedKeyring
) -> tuple[list[Attested], list[Refused]]:
    """Open what counts among everything attached to a bundle, and say why the rest does not.

    For the promoter, who must not be stopped by junk that anyone could attach. A resolver opens each
    envelope of a head with :func:`open_evidence` and refuses the head when one does not open.
    """
    counted: list[Attested] = []
    refused: list[Refused] = []
    for envelope in envelopes:
        try:
            counted.append(open_evidence(envelope, bundle, app, environment, keyring))
        except VerificationFailed as error:
            why = " ".join(part for part in (error.what, error.why) if part)
            refused.append(Refused(_name(envelope), why, isinstance(error, Elsewhere)))
    return counted, refused


def blocked_reason(item: Attested, keyring: VerifiedKeyring) -> str | None:
    """Give the reason why root blocks an attestation, by its envelope or by its statement; None when it does not."""
    return keyring.blocked(item.digest) or keyring.blocked(item.payload_digest)


def _predicate(statement: Statement, what: str) -> EvaluationResult | Approval | Override | dict[str, Any]:
    try:
        if statement.predicateType == EVALUATION:
            return EvaluationResult.model_validate(statement.predicate)
        if statement.predicateType == APPROVAL:
            return Approval.model_validate(statement.predicate)
        if statement.predicateType == OVERRIDE:
            return Override.model_validate(statement.predicate)
    except ValidationError as error:
        raise VerificationFailed(
            f"{what} does not have the form this version knows.",
            why=brief(error),
            fix="If a newer bundlectl wrote it, use that version or a newer one.",
        ) from error
    return statement.predicate


def _who_then(envelope: Envelope, keyring: VerifiedKeyring) -> str:
    signed = signed_by(envelope, keyring.document.principals, keyring.sigstore)
    if not envelope.signatures:
        return "It has no signature."
    if not signed:
        told = objections(envelope, keyring.document.principals, keyring.sigstore)
        return " ".join(told) or "No key of the keyring made its signatures."
    return "; ".join(
        f"{p} signed it, whose key is {keyring.entry(p).state} "
        f"and whose roles are: {', '.join(sorted(keyring.roles_of(p))) or 'none'}"
        for p in sorted(signed)
    )


def _name(envelope: Envelope) -> str:
    try:
        return digest(envelope_bytes(envelope))
    except VerificationFailed:
        return "(not canonical)"


def article(role: str) -> str:
    """Say a role with its article."""
    return f"an {role}" if role[0] in "aei" else f"a {role}"
