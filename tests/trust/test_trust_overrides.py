"""Overrides and attestations of any type: what counts, and what an override can never set aside."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from bundlectl.model.attestation import EVALUATION, OVERRIDE, PAYLOAD_TYPE, PROVENANCE, Envelope
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import AttestationRequirement, Blocked, EvaluationRequirement, Freeze, Gate, Policy, Soak
from bundlectl.model.types import format_time
from bundlectl.model.verdict import Verdict
from bundlectl.trust.envelope import make_statement, seal
from bundlectl.trust.evidence import gather_evidence
from bundlectl.trust.gate import Check, RollbackTarget, Situation, judge, verdict_of
from bundlectl.trust.keyring import VerifiedKeyring
from bundlectl.trust.overrides import waivable
from bundlectl.trust.policy import seal_policy
from bundlectl.trust.requirements import current_evidence, required_evidence
from tests.support.trust import (
    APP,
    BUNDLE,
    NOW,
    OTHER,
    approval,
    evaluation,
    founding_keyring,
    opened_keyring,
    provenance,
    score,
    signers,
    with_states,
)

KEYRING = opened_keyring()
HEAD = digest(b"head")
HOUR = timedelta(hours=1)
REVIEW = "urn:example:review:v1"
GATE = Gate(
    provenance=1,
    evaluations=[EvaluationRequirement(suite="support", max_age="30m", floors={"hit": 0.95})],
    approvals=1,
    soak=Soak(environment="staging", at_least="1d"),
    freezes=[Freeze(start=NOW - HOUR, end=NOW + HOUR, reason="closing of the books")],
    forbid_lint=["floating-model"],
    confirm=True,
)
"""The bundle below fails every check of it that an override can name, and no other."""
WAIVABLE = ["age:support", "floor:support/hit", "soak", "freeze", "lint:floating-model"]


def override(*names: str, **bent: Any) -> Envelope:
    predicate = {
        "environment": "prod",
        "checks": WAIVABLE,
        "previous": HEAD,
        "reason": "outage",
        "actor": names[0] if names else "nobody",
        "time": format_time(NOW),
        "expires": format_time(NOW + 4 * HOUR),
        **bent,
    }
    predicate = {key: value for key, value in predicate.items() if value is not None}
    return seal(make_statement(APP, bent.pop("bundle", BUNDLE), OVERRIDE, predicate), PAYLOAD_TYPE, signers(*names))


def judged(
    *more: Envelope, keyring: VerifiedKeyring = KEYRING, now: datetime = NOW, head: str | None = HEAD, **facts: Any
) -> list[Check]:
    envelopes = [provenance("builder-1"), evaluation("evaluator-1", scores=[score(mean=0.9)]), approval("approver-1")]
    attested, _ = gather_evidence([*envelopes, *more], BUNDLE, APP, "prod", keyring)
    known: dict[str, Any] = {
        "bytes_present": True,
        "snapshots": {},
        "lint": [("floating-model", "latest")],
        "live": {"staging": (BUNDLE, now - HOUR)},
        "rollback_target": RollbackTarget(bundle=None),
        "confirmed": "prod",
    }
    return judge(
        Situation(
            bundle=BUNDLE,
            app=APP,
            environment="prod",
            gate=GATE,
            attested=attested,
            keyring=keyring,
            now=now,
            head=head,
            **(known | facts),
        )
    )


def stopped(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.verdict != "pass" and not check.warning]


def test_what_can_be_overridden() -> None:
    assert waivable(GATE) == WAIVABLE == stopped(judged())
    assert waivable(Gate()) == []


def test_an_override_sets_aside_what_it_names_and_says_so() -> None:
    checks = judged(override("approver-2"))
    assert verdict_of(checks) == "pass"
    found = next(check for check in checks if check.name == "freeze")
    assert (found.verdict, found.warning) == ("fail", True)
    assert found.why.startswith(f"overridden by approver-2 until {format_time(NOW + 4 * HOUR)}: outage (Nothing is")
    assert found.override
    assert stopped(judged(override("approver-2", checks=["soak"]))) == [n for n in WAIVABLE if n != "soak"]


def name_of(envelope: Envelope) -> str:
    return digest(canonical(envelope.form()))


NEVER = ["bytes", "blocked", "keyring", "provenance", "evaluation:support", "approvals", "rollback-target", "confirm"]


@pytest.mark.parametrize("name", NEVER)
def test_what_is_never_overridden(name: str) -> None:
    facts: dict[str, Any] = {
        "bytes": {"bytes_present": False},
        "blocked": {"snapshots": None},
        "keyring": {"keyring": opened_keyring(founding_keyring(expires=NOW - HOUR))},
        "rollback-target": {"rollback_target": RollbackTarget(bundle=OTHER, present=False)},
        "confirm": {"confirmed": None},
    }
    signed: dict[str, list[Envelope]] = {
        "evaluation:support": [evaluation("evaluator-1", age=timedelta(), verdict="fail")],
    }
    waiver = override("approver-2", checks=[*WAIVABLE, *NEVER])
    if name in facts:
        checks = judged(waiver, **facts[name])
    elif name in signed:
        checks = judged(waiver, *signed[name])
    else:
        role = {"provenance": "builder_1", "approvals": "approver_1"}[name]
        lost = opened_keyring(with_states(founding_keyring(), **{role: "compromised"}))
        checks = judged(waiver, keyring=lost)
    assert name in stopped(checks)


@pytest.mark.parametrize(
    ("envelope", "keyring", "now"),
    [
        pytest.param(override("approver-ben"), KEYRING, NOW, id="by the bundle's builder"),
        pytest.param(override("promoter-1"), KEYRING, NOW, id="by a promoter"),
        pytest.param(override("approver-1", actor="approver-2"), KEYRING, NOW, id="in another's name"),
        pytest.param(override("approver-2", previous=OTHER), KEYRING, NOW, id="of another head: used before"),
        pytest.param(override("approver-2", previous=None), KEYRING, NOW, id="of a first release"),
        pytest.param(override("approver-2", environment="staging"), KEYRING, NOW, id="of another environment"),
        pytest.param(override("approver-2", bundle=OTHER), KEYRING, NOW, id="of another bundle"),
        pytest.param(override("approver-2"), KEYRING, NOW + 4 * HOUR, id="when its time is up"),
        pytest.param(override("approver-2"), KEYRING, NOW - HOUR, id="before its time"),
        pytest.param(
            override("approver-2", expires=format_time(NOW + 25 * HOUR)), KEYRING, NOW, id="that lives over a day"
        ),
        pytest.param(override("approver-2", expires=format_time(NOW)), KEYRING, NOW, id="that ends when it begins"),
        pytest.param(
            override("approver-2"),
            opened_keyring(with_states(founding_keyring(), approver_2="retired")),
            NOW,
            id="by a retired key",
        ),
        pytest.param(
            override("approver-2"),
            opened_keyring(
                founding_keyring(blocked=[Blocked(digest=name_of(override("approver-2")), reason="under pressure")])
            ),
            NOW,
            id="that root blocks",
        ),
    ],
)
def test_an_override_that_does_not_count(envelope: Envelope, keyring: VerifiedKeyring, now: datetime) -> None:
    without = stopped(judged(keyring=keyring, now=now))
    assert set(WAIVABLE) & set(without)
    assert stopped(judged(envelope, keyring=keyring, now=now)) == without


def test_no_builder_no_override() -> None:
    lost = opened_keyring(with_states(founding_keyring(), builder_1="compromised"))
    assert "soak" in stopped(judged(override("approver-2"), keyring=lost))


# ---------------------------------------------------------------- attestations of any type


def review(*names: str, type_: str = REVIEW) -> Envelope:
    return seal(make_statement(APP, BUNDLE, type_, {"conclusion": "fine"}), PAYLOAD_TYPE, signers(*names))


def asking(role: Any = "approver", threshold: int = 1) -> Gate:
    return Gate(attestations=[AttestationRequirement(type=REVIEW, role=role, threshold=threshold)])


@pytest.mark.parametrize(
    ("gate", "envelopes", "verdict", "says"),
    [
        (asking(), [review("approver-1")], "pass", "Signed by approver-1"),
        (asking(), [], "fail", "0 of 1"),
        (asking(), [review("approver-1", type_="urn:example:other:v1")], "fail", "0 of 1"),
        (asking(), [review("evaluator-1")], "fail", "role approver"),
        (asking("evaluator"), [review("evaluator-1")], "pass", "evaluator-1"),
        (asking(threshold=2), [review("approver-1"), review("approver-1")], "fail", "1 of 2"),
        (asking(threshold=2), [review("approver-1", "approver-2")], "pass", "approver-1, approver-2"),
        (asking(), [review("approver-ben")], "fail", "nobody reviews their own work"),
        (asking(threshold=2), [review("approver-1"), review("approver-ben")], "fail", "1 of 2"),
    ],
)
def test_attestations(gate: Gate, envelopes: list[Envelope], verdict: Verdict, says: str) -> None:
    attested, _ = gather_evidence([provenance("builder-1"), *envelopes], BUNDLE, APP, "prod", KEYRING)
    [check] = required_evidence(gate, attested, KEYRING)
    assert check.name == f"attestation:{REVIEW}"
    assert check.verdict == verdict
    assert says in check.why


def test_a_review_without_a_builder_is_inconclusive() -> None:
    attested, _ = gather_evidence([review("approver-1")], BUNDLE, APP, "prod", KEYRING)
    assert [check.verdict for check in required_evidence(asking(), attested, KEYRING)] == ["inconclusive"]


def test_a_head_carries_only_what_the_gate_asks_for() -> None:
    other = review("approver-1", type_="urn:example:other:v1")
    attested, refused = gather_evidence(
        [provenance("builder-1"), review("approver-1"), other, override("approver-2")], BUNDLE, APP, "prod", KEYRING
    )
    assert (len(attested), refused) == (4, [])
    assert [item.predicate_type for item in current_evidence(asking(), attested, KEYRING)] == [PROVENANCE, REVIEW]


@pytest.mark.parametrize(
    ("types", "says"), [([REVIEW, REVIEW], "twice"), ([PROVENANCE], "otherwise"), ([EVALUATION], "otherwise")]
)
def test_a_policy_asks_once_and_in_the_right_field(types: list[str], says: str) -> None:
    gate = Gate(attestations=[AttestationRequirement(type=type_, role="approver") for type_ in types])
    with pytest.raises(VerificationFailed, match=says):
        seal_policy(Policy(app=APP, version=1, environments={"prod": gate}), signers("owner-1"))


def test_old_policies_keep_their_bytes() -> None:
    assert "attestations" not in Gate().form()
    assert "attestations" not in Policy(app=APP, version=1, environments={"dev": Gate()}).form()["environments"]["dev"]
