"""Evidence about a bundle: which attestations count, and whether they are what a gate asks for. DESIGN 5 and 6.

The gate and every resolver use the same two functions: :func:`open_evidence` for one envelope, and
:func:`required_evidence` for all of them. What needs a clock (ages, floors, soak, freezes) is the gate's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from bundlectl.model.keyring import AttestationRequirement, EvaluationRequirement, Gate, Role
from bundlectl.model.verdict import Verdict, worst
from bundlectl.trust.check import Check
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
        named = _a(roles[0]) if len(roles) == 1 else f"a principal of a role that counts ({', '.join(roles)})"
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


def required_evidence(gate: Gate, attested: Sequence[Attested], keyring: VerifiedKeyring) -> list[Check]:
    """Judge what a gate asks to be signed: kinds, thresholds, the exam and its verdict, no self-approval.

    The attestations must come from :func:`open_evidence` for the gate's app and environment. Those that the
    keyring blocks count nowhere. A gate that asks for nothing gives one check that passes.

    Checks, in order: ``provenance``, ``evaluation:<suite>`` and ``attestation:<type>`` as the policy lists them,
    ``approvals``.
    """
    usable = [item for item in attested if blocked_reason(item, keyring) is None]
    checks: list[Check] = []
    if gate.provenance:
        checks.append(_provenance(gate.provenance, usable, keyring))
    checks += [_evaluation(requirement, usable, keyring) for requirement in gate.evaluations]
    checks += [_attestation(requirement, usable, keyring) for requirement in gate.attestations or ()]
    if gate.approvals:
        checks.append(_approvals(gate.approvals, usable, keyring))
    return checks or [Check("evidence", "pass", "The gate asks for no evidence.")]


def blocked_reason(item: Attested, keyring: VerifiedKeyring) -> str | None:
    """Give the reason why root blocks an attestation, by its envelope or by its statement; None when it does not."""
    return keyring.blocked(item.digest) or keyring.blocked(item.payload_digest)


def newest_evaluations(
    requirement: EvaluationRequirement, attested: Iterable[Attested], keyring: VerifiedKeyring
) -> dict[str, list[EvaluationResult]]:
    """Give each evaluator's newest results for a requirement, by evaluator; all of them where times are equal.

    Results of another suite or of other digests than the policy pins are another exam and do not count. A
    retired evaluator cannot measure again, so its result stands only until an active one's is as new.
    """
    newest: dict[str, list[EvaluationResult]] = {}
    for item in attested:
        result = item.predicate
        if not isinstance(result, EvaluationResult) or not _same_exam(requirement, result):
            continue
        for evaluator in item.signers:
            held = newest.get(evaluator)
            if held is None or result.finished > held[0].finished:
                newest[evaluator] = [result]
            elif result.finished == held[0].finished:
                held.append(result)
    by_active = [r[0].finished for e, r in newest.items() if keyring.entry(e).state == "active"]
    latest = max(by_active, default=None)
    return {
        evaluator: results
        for evaluator, results in sorted(newest.items())
        if keyring.entry(evaluator).state == "active" or latest is None or results[0].finished > latest
    }


def current_evidence(gate: Gate, attested: Sequence[Attested], keyring: VerifiedKeyring) -> list[Attested]:
    """Leave out what no longer speaks: blocked evidence, and results that a newer one of the same evaluator replaced.

    A head holds a bounded number of envelopes; :func:`required_evidence` says the same of what is left.
    Of one result, and of all other statements of one type, so many are left that everyone who signed is heard: a
    bundle may be built every night, and anyone may attach what is signed once more with other signatures beside it.
    Results of suites and attestations of types that the gate does not ask for are left out too, and overrides,
    of which the promoter adds those that were used.
    """
    usable = [item for item in attested if blocked_reason(item, keyring) is None]
    speaking = {
        id(result)
        for requirement in gate.evaluations
        for results in newest_evaluations(requirement, usable, keyring).values()
        for result in results
    }
    types = {requirement.type for requirement in gate.attestations or ()}
    wanted = {"provenance": True, "approval": True, "override": False}
    asked = [
        item for item in usable if wanted.get(item.kind, item.predicate_type in types or id(item.predicate) in speaking)
    ]
    kept = {id(item) for item in _heard_once(asked)}
    return [item for item in asked if id(item) in kept]


def _heard_once(items: Iterable[Attested]) -> Iterator[Attested]:
    """Leave out what only those signed who were heard on it already; the shortest first, because anyone may pad one."""
    heard: dict[str, set[str]] = {}
    for item in sorted(items, key=lambda item: (len(envelope_bytes(item.envelope)), item.digest)):
        said = item.payload_digest if isinstance(item.predicate, EvaluationResult) else item.predicate_type
        known = heard.setdefault(said, set())
        if not item.signers <= known:
            known |= item.signers
            yield item


def judge_result(result: EvaluationResult) -> tuple[Verdict, str]:
    """Judge what an evaluation says of itself: its verdict, and that nothing in it contradicts a pass."""
    findings: list[tuple[Verdict, str]] = [(result.verdict, result.why or f"its verdict is {result.verdict}")]
    if result.must_pass_failed:
        findings.append(("fail", f"must-pass cases failed: {', '.join(result.must_pass_failed[:5])}"))
    if not result.complete:
        findings.append(("inconclusive", "it did not run to its end"))
    if not result.cases or not result.scores:
        findings.append(("inconclusive", "it measured nothing"))
    findings += [
        (score.verdict, f"{score.scorer}{f'[{score.tag}]' if score.tag else ''}: {score.why or score.verdict}")
        for score in result.scores
        if score.floor is not None
    ]
    findings += [
        (found.verdict, f"{found.measure} {found.statistic}: {found.why or found.verdict}")
        for found in result.measures or ()
        if found.bound is not None
    ]
    if result.comparison is not None and result.comparison.verdict is not None:
        findings.append(
            (result.comparison.verdict, f"beside its baseline: {result.comparison.why or 'see its report'}")
        )
    verdict = worst(v for v, _ in findings)
    return verdict, "" if verdict == "pass" else "; ".join(why for v, why in findings if v == verdict)


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


def _provenance(needed: int, usable: Sequence[Attested], keyring: VerifiedKeyring) -> Check:
    builders = builders_of(usable)
    found = keyring.distinct(builders)
    if found >= needed:
        return Check("provenance", "pass", f"Built by {_names(builders)}.")
    return Check(
        "provenance",
        "fail",
        f"{found} of {needed} needed builders signed where it comes from{_except(builders)}.",
        "bundlectl build PATH --signer URI, with a builder's key",
    )


def _evaluation(requirement: EvaluationRequirement, usable: Sequence[Attested], keyring: VerifiedKeyring) -> Check:
    name = f"evaluation:{requirement.suite}"
    fix = f"bundlectl eval REF --suite evals/{requirement.suite}.yaml --signer URI, with an evaluator's key"
    newest = newest_evaluations(requirement, usable, keyring)
    if not newest:
        others = [
            item.predicate
            for item in usable
            if isinstance(item.predicate, EvaluationResult) and item.predicate.suite == requirement.suite
        ]
        if others:
            why = (
                f"It was evaluated with another {_difference(requirement, others)} than the policy pins, "
                "so that says nothing here."
            )
            return Check(name, "inconclusive", why, fix)
        return Check(name, "inconclusive", f"No evaluator has signed a result of the suite {requirement.suite!r}.", fix)
    passed: list[str] = []
    bad: list[tuple[Verdict, str]] = []
    for evaluator, results in newest.items():
        judged = [judge_result(result) for result in results]
        verdict = worst(v for v, _ in judged)
        if verdict == "pass":
            passed.append(evaluator)
        else:
            bad.append((verdict, f"{evaluator}'s newest result: {next(why for v, why in judged if v == verdict)}"))
    if bad:
        verdict = worst(v for v, _ in bad)
        return Check(name, verdict, "; ".join(why for _, why in bad) + ".", fix)
    if (found := keyring.distinct(passed)) < requirement.threshold:
        why = f"{found} of {requirement.threshold} needed evaluators signed a passing result{_except(passed)}."
        return Check(name, "inconclusive", why, fix)
    return Check(name, "pass", f"Passed, measured by {_names(passed)}.{_other_exams(requirement, usable, newest)}")


def _other_exams(
    requirement: EvaluationRequirement,
    usable: Sequence[Attested],
    newest: Mapping[str, Sequence[EvaluationResult]],
) -> str:
    """Say that a suite of that name, another exam, did not pass: where nothing is pinned, that counts no more."""
    counted = {(result.suite_digest, result.dataset_digest) for results in newest.values() for result in results}
    others = [
        item.predicate
        for item in usable
        if isinstance(item.predicate, EvaluationResult)
        and _same_exam(requirement, item.predicate)
        and (item.predicate.suite_digest, item.predicate.dataset_digest) not in counted
        and judge_result(item.predicate)[0] != "pass"
    ]
    if not others:
        return ""
    return f" {len(others)} results of another exam of that name did not pass; the policy pins no suite and dataset."


def _attestation(requirement: AttestationRequirement, usable: Sequence[Attested], keyring: VerifiedKeyring) -> Check:
    name = f"attestation:{requirement.type}"
    how = f"--type {requirement.type} --predicate FILE --signer URI, with {_a(requirement.role)}'s key"
    fix = f"bundlectl attest REF {how}"
    signers = {
        signer
        for item in usable
        if item.kind == OTHER_KIND and item.predicate_type == requirement.type
        for signer in item.signers
        if requirement.role in keyring.roles_of(signer)
    }
    own: set[str] = set()
    if requirement.role == "approver":
        builders = builders_of(usable)
        if not builders:
            return _nobody_built(name)
        own = same_person(signers, builders, keyring)
    counted = signers - own
    note = f" {_names(own)} built it too; nobody reviews their own work." if own else ""
    if (found := keyring.distinct(counted)) >= requirement.threshold:
        return Check(name, "pass", f"Signed by {_names(counted)}.{note}")
    why = (
        f"{found} of {requirement.threshold} needed signatures of the role {requirement.role}{_except(counted)}.{note}"
    )
    return Check(name, "fail", why, fix)


def builders_of(attested: Iterable[Attested]) -> set[str]:
    """Give who signed as builder."""
    return {signer for item in attested if item.kind == "provenance" for signer in item.signers}


def same_person(principals: Iterable[str], builders: Iterable[str], keyring: VerifiedKeyring) -> set[str]:
    """Give those of the principals whose owner is also behind one of the builders' keys."""
    owners = {_person(keyring.owner(builder)) for builder in builders}
    return {principal for principal in principals if _person(keyring.owner(principal)) in owners}


def _nobody_built(name: str) -> Check:
    return Check(
        name,
        "inconclusive",
        "Nobody signed as builder, so it cannot be known that nobody approves their own work.",
        "bundlectl build PATH --signer URI, with a builder's key",
    )


def _approvals(needed: int, usable: Sequence[Attested], keyring: VerifiedKeyring) -> Check:
    name = "approvals"
    fix = "bundlectl approve REF --for ENV --reason TEXT --signer URI, with an approver's key"
    approvers = {signer for item in usable if item.kind == "approval" for signer in item.signers}
    builders = builders_of(usable)
    if not builders:
        return _nobody_built(name)
    own = same_person(approvers, builders, keyring)
    counted = approvers - own
    note = f" {_names(own)} built it too; nobody approves their own work." if own else ""
    if (found := keyring.distinct(counted)) >= needed:
        return Check(name, "pass", f"Approved by {_names(counted)}.{note}")
    return Check(name, "fail", f"{found} of {needed} needed approvals{_except(counted)}.{note}", fix)


def _same_exam(requirement: EvaluationRequirement, result: EvaluationResult) -> bool:
    return (
        result.suite == requirement.suite
        and requirement.suite_digest in (None, result.suite_digest)
        and requirement.dataset_digest in (None, result.dataset_digest)
    )


def _difference(requirement: EvaluationRequirement, others: Iterable[EvaluationResult]) -> str:
    if all(requirement.suite_digest in (None, other.suite_digest) for other in others):
        return f"dataset (pinned: {requirement.dataset_digest})"
    return f"suite file (pinned: {requirement.suite_digest})"


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


def _person(owner: str) -> str:
    # "Alice " and "alice" are one person; a slip in the keyring must not let them approve themselves.
    return " ".join(owner.split()).casefold()


def _a(role: str) -> str:
    return f"an {role}" if role[0] in "aei" else f"a {role}"


def _names(principals: Iterable[str]) -> str:
    return ", ".join(sorted(principals))


def _except(principals: Iterable[str]) -> str:
    names = _names(principals)
    return f" (so far: {names})" if names else ""
