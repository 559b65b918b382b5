"""Evidence: who may attest what about which bundle, and when it is enough."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.attestation import (
    APPROVAL,
    EVALUATION,
    PAYLOAD_TYPE,
    RELEASE,
    Envelope,
    EnvelopeSignature,
    EvaluationResult,
)
from bundlectl.model.canonical import digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import Gate, Keyring
from bundlectl.model.verdict import Verdict
from bundlectl.trust.check import verdict_of
from bundlectl.trust.envelope import envelope_bytes, make_statement, payload_of, seal
from bundlectl.trust.evidence import gather_evidence, open_evidence
from bundlectl.trust.requirements import current_evidence, judge_result, required_evidence
from tests.support.trust import (
    APP,
    BUNDLE,
    DATASET,
    OTHER,
    SUITE,
    approval,
    asks,
    evaluation,
    founding_keyring,
    opened,
    opened_keyring,
    provenance,
    result,
    score,
    signers,
    with_states,
)

KEYRING = opened_keyring()
HOUR = timedelta(hours=1)


def test_each_kind_opens_for_its_role() -> None:
    found = opened(KEYRING, [provenance("builder-1"), evaluation("evaluator-1"), approval("approver-1")])
    assert [(item.kind, sorted(item.signers)) for item in found] == [
        ("provenance", ["builder-1"]),
        ("evaluation", ["evaluator-1"]),
        ("approval", ["approver-1"]),
    ]
    assert isinstance(found[1].predicate, EvaluationResult)
    for item in found:
        assert item.digest == digest(envelope_bytes(item.envelope))
        assert item.payload_digest == digest(payload_of(item.envelope))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: provenance("evaluator-1"), "not signed by a builder"),
        (lambda: evaluation("builder-1"), "not signed by an evaluator"),
        (lambda: approval("promoter-1"), "not signed by an approver"),
        (lambda: approval("root-1", "owner-1"), "not signed by an approver"),
        (lambda: evaluation("stranger"), "not signed by an evaluator"),
        (lambda: evaluation("evaluator-1", bundle=OTHER), "about something else"),
        (lambda: evaluation("evaluator-1", app="billing"), "about something else"),
        (lambda: approval("approver-1", environment="staging"), "is for staging, not for prod"),
        (
            lambda: seal(make_statement(APP, BUNDLE, RELEASE, {}), PAYLOAD_TYPE, signers("builder-1")),
            "is no evidence",
        ),
        (
            lambda: seal(make_statement(APP, BUNDLE, "urn:x", {}), PAYLOAD_TYPE, signers("promoter-1")),
            "not signed by a principal of a role that counts",
        ),
        (
            lambda: seal(make_statement(APP, BUNDLE, EVALUATION, {}), PAYLOAD_TYPE, signers("evaluator-1")),
            "form this version knows",
        ),
        (
            lambda: seal(
                make_statement(APP, BUNDLE, EVALUATION, {**result().form(), "more": 1}),
                PAYLOAD_TYPE,
                signers("evaluator-1"),
            ),
            "form this version knows",
        ),
        (
            lambda: seal(make_statement(APP, BUNDLE, APPROVAL, {}), PAYLOAD_TYPE, signers("approver-1")),
            "form this version knows",
        ),
        (lambda: seal(payload_of(evaluation("evaluator-1")), "text/plain", signers("evaluator-1")), "payload type"),
        (lambda: unsigned(evaluation("evaluator-1")), "It has no signature"),
        (lambda: moved(evaluation("evaluator-1"), evaluation("evaluator-1", age=2 * HOUR)), "No key of the keyring"),
    ],
)
def test_what_does_not_count(make: Callable[[], Envelope], says: str) -> None:
    with pytest.raises(VerificationFailed) as caught:
        open_evidence(make(), BUNDLE, APP, "prod", KEYRING)
    assert says in str(caught.value)


def unsigned(envelope: Envelope) -> Envelope:
    return Envelope(payload=envelope.payload, payloadType=envelope.payloadType, signatures=[])


def moved(payload: Envelope, signatures: Envelope) -> Envelope:
    """One envelope's payload under another's signatures."""
    return Envelope(payload=payload.payload, payloadType=payload.payloadType, signatures=signatures.signatures)


@pytest.mark.parametrize(("state", "counts"), [("active", True), ("retired", True), ("compromised", False)])
def test_key_states(state: str, counts: bool) -> None:
    keyring = opened_keyring(with_states(founding_keyring(), evaluator_1=state))
    if counts:
        assert opened(keyring, [evaluation("evaluator-1")])
        return
    with pytest.raises(VerificationFailed, match="not signed by an evaluator") as caught:
        opened(keyring, [evaluation("evaluator-1")])
    assert "compromised" in caught.value.why
    # Another evaluator's signature on the same statement still counts, and only that one.
    (both,) = opened(keyring, [evaluation("evaluator-1", "evaluator-2")])
    assert both.signers == {"evaluator-2"}


def test_roles_are_scoped_to_the_environment() -> None:
    form = founding_keyring().form()
    for grant in form["grants"]:
        grant["environments"] = ["staging"]
    keyring = opened_keyring(Keyring.model_validate(form))
    assert opened(keyring, [evaluation("evaluator-1")], "staging")
    with pytest.raises(VerificationFailed, match="not signed by an evaluator of support:prod"):
        opened(keyring, [evaluation("evaluator-1")], "prod")
    assert open_evidence(evaluation("evaluator-1"), BUNDLE, APP, None, keyring).signers == {"evaluator-1"}
    # An approval names its environment: it is judged there even when none is asked for.
    with pytest.raises(VerificationFailed, match="not signed by an approver"):
        open_evidence(approval("approver-1"), BUNDLE, APP, None, keyring)


def test_junk_does_not_stop_the_promoter() -> None:
    surrogate = Envelope(payload="eA==", payloadType="\ud800", signatures=[])
    envelopes = [
        evaluation("stranger"),
        provenance("builder-1"),
        approval("approver-1", environment="dev"),
        surrogate,
    ]
    counted, refused = gather_evidence(envelopes, BUNDLE, APP, "prod", KEYRING)
    assert [item.kind for item in counted] == ["provenance"]
    assert len(refused) == 3
    assert refused[0].digest == digest(envelope_bytes(envelopes[0]))
    assert all(item.why for item in refused)


PASS: Verdict = "pass"
FAIL: Verdict = "fail"
UNKNOWN: Verdict = "inconclusive"
PINNED = {"suite_digest": SUITE, "dataset_digest": DATASET}


@pytest.mark.parametrize(
    ("requirement", "envelopes", "verdict", "says"),
    [
        ({}, lambda: [evaluation("evaluator-1")], PASS, "measured by evaluator-1"),
        (PINNED, lambda: [evaluation("evaluator-1")], PASS, ""),
        ({}, list, UNKNOWN, "No evaluator"),
        ({}, lambda: [evaluation("evaluator-1", suite="other")], UNKNOWN, "No evaluator"),
        (PINNED, lambda: [evaluation("evaluator-1", suite_digest=OTHER)], UNKNOWN, "another suite file"),
        (PINNED, lambda: [evaluation("evaluator-1", dataset_digest=OTHER)], UNKNOWN, "another dataset"),
        ({}, lambda: [evaluation("evaluator-1", verdict="fail", why="hit: 0.1")], FAIL, "hit: 0.1"),
        ({}, lambda: [evaluation("evaluator-1", verdict="inconclusive")], UNKNOWN, ""),
        ({}, lambda: [evaluation("evaluator-1", verdict="error")], "error", ""),
        ({}, lambda: [evaluation("evaluator-1", complete=False)], UNKNOWN, "did not run to its end"),
        ({}, lambda: [evaluation("evaluator-1", cases=0)], UNKNOWN, "measured nothing"),
        ({}, lambda: [evaluation("evaluator-1", scores=[])], UNKNOWN, "measured nothing"),
        ({}, lambda: [evaluation("evaluator-1", must_pass_failed=["c-7"])], FAIL, "c-7"),
        (
            {},
            lambda: [evaluation("evaluator-1", scores=[score(floor=0.95, verdict="fail", why="0.9 < 0.95")])],
            FAIL,
            "0.9 < 0.95",
        ),
        # The newest of each evaluator counts, whichever way it turned.
        (
            {},
            lambda: [evaluation("evaluator-1", age=2 * HOUR), evaluation("evaluator-1", age=HOUR, verdict="fail")],
            FAIL,
            "",
        ),
        (
            {},
            lambda: [evaluation("evaluator-1", age=HOUR), evaluation("evaluator-1", age=2 * HOUR, verdict="fail")],
            PASS,
            "",
        ),
        ({}, lambda: [evaluation("evaluator-1"), evaluation("evaluator-1", verdict="fail")], FAIL, ""),
        # A newer failing result with another exam than the pinned one does not speak here.
        (
            PINNED,
            lambda: [
                evaluation("evaluator-1"),
                evaluation("evaluator-1", age=HOUR / 2, verdict="fail", suite_digest=OTHER),
            ],
            PASS,
            "",
        ),
        # Another evaluator's older failure is that evaluator's newest.
        (
            {},
            lambda: [evaluation("evaluator-1"), evaluation("evaluator-2", age=9 * HOUR, verdict="fail")],
            FAIL,
            "evaluator-2",
        ),
        ({"threshold": 2}, lambda: [evaluation("evaluator-1"), evaluation("evaluator-2")], PASS, ""),
        ({"threshold": 2}, lambda: [evaluation("evaluator-1", "evaluator-2")], PASS, ""),
        ({"threshold": 2}, lambda: [evaluation("evaluator-1")], UNKNOWN, "1 of 2"),
        (
            {"threshold": 2},
            lambda: [evaluation("evaluator-1"), evaluation("evaluator-1", age=2 * HOUR)],
            UNKNOWN,
            "1 of 2",
        ),
        ({"threshold": 2}, lambda: [evaluation("evaluator-1", "evaluator-1", "builder-1")], UNKNOWN, "1 of 2"),
    ],
)
def test_evaluations(
    requirement: dict[str, Any], envelopes: Callable[[], list[Envelope]], verdict: Verdict, says: str
) -> None:
    (check,) = required_evidence(asks(**requirement), opened(KEYRING, envelopes()), KEYRING)
    assert (check.name, check.verdict) == ("evaluation:support", verdict), check.why
    assert says in check.why
    assert bool(check.fix) == (verdict != "pass")


def test_a_retired_evaluator_speaks_until_an_active_one_does() -> None:
    keyring = opened_keyring(with_states(founding_keyring(), evaluator_1="retired"))
    old_fail = evaluation("evaluator-1", age=9 * HOUR, verdict="fail")
    old_pass = evaluation("evaluator-1", age=9 * HOUR)
    new_fail = evaluation("evaluator-1", age=HOUR / 2, verdict="fail")
    active = evaluation("evaluator-2")
    for envelopes, verdict in (
        ([old_pass], "pass"),
        ([old_fail], "fail"),
        ([old_fail, active], "pass"),
        ([new_fail, active], "fail"),
    ):
        assert verdict_of(required_evidence(asks(), opened(keyring, envelopes), keyring)) == verdict


def test_informative_scores_do_not_decide() -> None:
    assert judge_result(result(scores=[score(), score("latency", None, 0, verdict="inconclusive")]))[0] == "pass"


def test_a_bound_that_is_not_kept_contradicts_a_pass() -> None:
    kept = {"measure": "latency", "statistic": "p95", "value": 1.0, "rows": 20, "missing": 0, "verdict": "pass"}
    over = {**kept, "verdict": "fail", "bound": 0.5, "why": "over"}
    assert judge_result(result(measures=[{**kept, "bound": 2.0}]))[0] == "pass"
    assert judge_result(result(measures=[over])) == ("fail", "latency p95: over")
    assert judge_result(result(measures=[{**over, "verdict": "inconclusive"}]))[0] == "inconclusive"


@pytest.mark.parametrize(
    ("needed", "names", "verdict"),
    [
        (1, [("builder-1",)], PASS),
        (2, [("builder-1",), ("builder-2",)], PASS),
        (2, [("builder-1", "builder-2")], PASS),
        (2, [("builder-1",), ("builder-1",)], FAIL),
        (1, [], FAIL),
    ],
)
def test_provenance(needed: int, names: list[tuple[str, ...]], verdict: Verdict) -> None:
    found = opened(KEYRING, [provenance(*some) for some in names])
    (check,) = required_evidence(Gate(provenance=needed), found, KEYRING)
    assert (check.name, check.verdict) == ("provenance", verdict)


@pytest.mark.parametrize(
    ("needed", "envelopes", "verdict", "says"),
    [
        (1, lambda: [provenance("builder-1"), approval("approver-1")], PASS, "Approved by approver-1"),
        (1, lambda: [provenance("builder-1")], FAIL, "0 of 1"),
        (
            2,
            lambda: [provenance("builder-1"), approval("approver-1")],
            FAIL,
            "1 of 2 needed approvals (so far: approver-1)",
        ),
        (2, lambda: [provenance("builder-1"), approval("approver-1"), approval("approver-1")], FAIL, "1 of 2"),
        (2, lambda: [provenance("builder-1"), approval("approver-1"), approval("approver-2")], PASS, ""),
        # Self-approval compares owners: ben holds a builder's key and an approver's.
        (1, lambda: [provenance("builder-1"), approval("approver-ben")], FAIL, "nobody approves their own work"),
        (1, lambda: [provenance("builder-2"), approval("approver-ben")], PASS, ""),
        (1, lambda: [provenance("builder-2", "builder-1"), approval("approver-ben")], FAIL, ""),
        (1, lambda: [provenance("builder-2"), provenance("builder-1"), approval("approver-ben")], FAIL, ""),
        (2, lambda: [provenance("builder-1"), approval("approver-ben", "approver-1")], FAIL, "1 of 2"),
        (1, lambda: [provenance("builder-1"), approval("approver-ben", "approver-1")], PASS, ""),
        # Without a builder it cannot be known.
        (1, lambda: [approval("approver-1")], UNKNOWN, "Nobody signed as builder"),
    ],
)
def test_approvals(needed: int, envelopes: Callable[[], list[Envelope]], verdict: Verdict, says: str) -> None:
    (check,) = required_evidence(Gate(approvals=needed), opened(KEYRING, envelopes()), KEYRING)
    assert (check.name, check.verdict) == ("approvals", verdict), check.why
    assert says in check.why


def test_a_gate_that_asks_for_nothing_says_so() -> None:
    assert [(c.name, c.verdict) for c in required_evidence(Gate(), [], KEYRING)] == [("evidence", "pass")]


def test_checks_come_in_the_policys_order() -> None:
    form = {"provenance": 1, "approvals": 1, "evaluations": [{"suite": "zeta"}, {"suite": "alpha"}]}
    names = [check.name for check in required_evidence(Gate.model_validate(form), [], KEYRING)]
    assert names == ["provenance", "evaluation:zeta", "evaluation:alpha", "approvals"]


@pytest.mark.parametrize("by", ["envelope", "payload"])
def test_blocked_evidence_counts_nowhere(by: str) -> None:
    envelope = evaluation("evaluator-1")
    data = envelope_bytes(envelope) if by == "envelope" else payload_of(envelope)
    form = founding_keyring().form()
    form["blocked"] = [{"digest": digest(data), "reason": "the dataset leaked"}]
    keyring = opened_keyring(Keyring.model_validate(form))
    found = opened(keyring, [envelope])
    assert verdict_of(required_evidence(asks(), found, keyring)) == "inconclusive"
    assert current_evidence(asks(), found, keyring) == []
    # By the statement's digest it stays blocked however it is signed again.
    again = opened(keyring, [seal(payload_of(envelope), PAYLOAD_TYPE, signers("evaluator-2"))])
    assert verdict_of(required_evidence(asks(), again, keyring)) == ("pass" if by == "envelope" else "inconclusive")


WHO = st.lists(st.sampled_from(["1", "2", "ben"]), min_size=1, max_size=3, unique=True)
SAID = st.lists(st.tuples(st.sampled_from(["builder", "approver"]), WHO, st.integers(0, 3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(said=SAID, needed=st.integers(1, 2), approvals=st.integers(1, 3), order=st.randoms(use_true_random=False))
def test_a_head_carries_no_more_than_everyone_who_signed(
    said: list[Any], needed: int, approvals: int, order: Any
) -> None:
    """A bundle that is built and approved again and again; and it says the same as all that is attached."""
    envelopes = []
    for role, who, junk in said:
        names = [f"{role}-{one}" for one in who if (role, one) != ("builder", "ben")]
        if names:
            made = (provenance if role == "builder" else approval)(*names)
            nobody = [EnvelopeSignature(sig=base64.b64encode(bytes([n]) * 64).decode()) for n in range(junk)]
            envelopes.append(made.model_copy(update={"signatures": [*made.signatures, *nobody]}))
    order.shuffle(envelopes)
    found = opened(KEYRING, envelopes)
    gate = Gate(provenance=needed, approvals=approvals)
    carried = current_evidence(gate, found, KEYRING)
    told = [[(c.name, c.verdict, c.why) for c in required_evidence(gate, some, KEYRING)] for some in (found, carried)]
    assert told[0] == told[1]
    assert len(carried) <= len({signer for item in found for signer in item.signers})


EVALUATORS = st.sampled_from(["evaluator-1", "evaluator-2"])
RUNS = st.lists(
    st.tuples(EVALUATORS, st.integers(0, 5), st.sampled_from(["pass", "fail", "inconclusive", "error"])), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, threshold=st.integers(1, 2), order=st.randoms(use_true_random=False))
def test_order_does_not_matter_and_only_all_passing_passes(runs: list[Any], threshold: int, order: Any) -> None:
    envelopes = [evaluation(who, age=hours * HOUR, verdict=verdict) for who, hours, verdict in runs]
    gate = asks(threshold=threshold)
    found = opened(KEYRING, envelopes)
    (check,) = required_evidence(gate, found, KEYRING)
    shuffled = list(found)
    order.shuffle(shuffled)
    assert required_evidence(gate, shuffled, KEYRING)[0].verdict == check.verdict
    # What a head carries says the same as everything that is attached.
    assert required_evidence(gate, current_evidence(gate, shuffled, KEYRING), KEYRING)[0].verdict == check.verdict
    newest: dict[str, int] = {}
    for who, hours, _ in runs:
        newest[who] = min(hours, newest.get(who, hours))
    last = [verdict for who, hours, verdict in runs if newest[who] == hours]
    assert (check.verdict == "pass") == (len(newest) >= threshold and all(verdict == "pass" for verdict in last))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_never_makes_other_evidence(data: st.DataObject) -> None:
    good = evaluation("evaluator-1")
    payload = payload_of(good)
    place = data.draw(st.integers(0, len(payload) - 1))
    broken = payload[:place] + bytes([payload[place] ^ (1 << data.draw(st.integers(0, 7)))]) + payload[place + 1 :]
    forged = moved(seal(broken, PAYLOAD_TYPE, signers("stranger")), good)
    with pytest.raises(VerificationFailed):
        open_evidence(forged, BUNDLE, APP, "prod", KEYRING)
