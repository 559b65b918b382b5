"""Whether evidence about a bundle is what a gate asks for: kinds, thresholds, the exam and its verdict, by whom.

The gate and every resolver ask :func:`required_evidence`. What needs a clock (ages, floors, soak, freezes) is the
gate's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bundlectl.model.attestation import OTHER_KIND, EvaluationResult
from bundlectl.model.keyring import AttestationRequirement, EvaluationRequirement, Gate
from bundlectl.model.verdict import Verdict, worst
from bundlectl.trust.check import Check
from bundlectl.trust.envelope import envelope_bytes
from bundlectl.trust.evidence import Attested, article, blocked_reason
from bundlectl.trust.keyring import VerifiedKeyring


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
    how = f"--type {requirement.type} --predicate FILE --signer URI, with {article(requirement.role)}'s key"
    fix = f"bundlectl attest REF {how}"
    signers = {
        signer
        for item in usable
        if item.kind == OTHER_KIND and item.predicate_type == requirement.type
        for signer in item.signers
        if requirement.role in keyring.roles_of(signer)
    }
    counted, note = signers, ""
    if requirement.role == "approver":
        builders = builders_of(usable)
        if not builders:
            return _nobody_built(name)
        counted, note = _not_of_builders(signers, builders, keyring, "reviews")
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


def _not_of_builders(
    signers: set[str], builders: set[str], keyring: VerifiedKeyring, does: str
) -> tuple[set[str], str]:
    """Give whose word on the work of others counts, and what is said of those whose does not."""
    own = same_person(signers, builders, keyring)
    return signers - own, f" {_names(own)} built it too; nobody {does} their own work." if own else ""


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
    counted, note = _not_of_builders(approvers, builders, keyring, "approves")
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


def _person(owner: str) -> str:
    # "Alice " and "alice" are one person; a slip in the keyring must not let them approve themselves.
    return " ".join(owner.split()).casefold()


def _names(principals: Iterable[str]) -> str:
    return ", ".join(sorted(principals))


def _except(principals: Iterable[str]) -> str:
    names = _names(principals)
    return f" (so far: {names})" if names else ""
