"""The policy: the owners' threshold, root's floor, and the gates that a new app starts with."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bundlectl.model.attestation import KEYRING_PAYLOAD_TYPE, POLICY_PAYLOAD_TYPE
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import NotFound, VerificationFailed
from bundlectl.model.keyring import EvaluationRequirement, Freeze, Gate, Keyring, Policy, Soak
from bundlectl.trust.envelope import seal
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED
from bundlectl.trust.policy import check_policy, new_policy, next_policy, open_policy, seal_policy
from tests.support.trust import (
    APP,
    NOW,
    OTHER,
    founding_keyring,
    opened_keyring,
    opened_policy,
    signers,
    with_states,
)

WANTED = [EvaluationRequirement(suite="support")]


def two_owners() -> Keyring:
    form = founding_keyring().form()
    form["apps"][APP]["owners"]["threshold"] = 2
    return Keyring.model_validate(form)


def test_a_new_app_starts_with_three_gates() -> None:
    policy = opened_policy(opened_keyring())
    assert policy.version == 1
    assert policy.gate("dev") == Gate()
    assert [wanted.suite for wanted in policy.gate("staging").evaluations] == ["support"]
    prod = policy.gate("prod")
    assert [wanted.suite for wanted in prod.evaluations] == ["support"]
    assert prod.soak == Soak(environment="staging")
    assert prod.confirm
    assert prod.expires_after == "14d"
    with pytest.raises(NotFound, match="no environment 'qa'") as caught:
        policy.gate("qa")
    assert "dev, prod, staging" in caught.value.why


@pytest.mark.parametrize(
    "names",
    [
        ("root-1", "root-2"),
        ("builder-1",),
        ("stranger",),
        ("promoter-1", "approver-1"),
    ],
)
def test_only_owners_sign_policies(names: tuple[str, ...]) -> None:
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        open_policy(seal_policy(new_policy(APP, WANTED), signers(*names)), opened_keyring(), APP)


def test_the_owners_threshold() -> None:
    keyring = opened_keyring(two_owners())
    document = new_policy(APP, WANTED)
    for names in (("owner-1",), ("owner-1", "owner-1"), ("owner-1", "root-1")):
        with pytest.raises(VerificationFailed, match="1 of 2 needed signed: owner-1"):
            open_policy(seal_policy(document, signers(*names)), keyring, APP)
    assert open_policy(seal_policy(document, signers("owner-1", "owner-2")), keyring, APP).version == 1


def test_retired_owners_count_for_what_origins_name_and_compromised_never() -> None:
    envelope = seal_policy(new_policy(APP, WANTED), signers("owner-1"))
    retired = opened_keyring(with_states(founding_keyring(), owner_1="retired"))
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        open_policy(envelope, retired, APP)
    assert open_policy(envelope, retired, APP, states=ACTIVE_OR_RETIRED).version == 1
    stolen = opened_keyring(with_states(founding_keyring(), owner_1="compromised"))
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        open_policy(envelope, stolen, APP, states=ACTIVE_OR_RETIRED)


def test_another_apps_policy_is_none() -> None:
    keyring = opened_keyring()
    envelope = seal_policy(new_policy("billing", WANTED), signers("owner-1"))
    with pytest.raises(VerificationFailed, match="not a policy of support"):
        open_policy(envelope, keyring, APP)
    with pytest.raises(VerificationFailed, match="does not name the app"):
        open_policy(envelope, keyring, "billing")


def test_wrong_payload_type() -> None:
    envelope = seal(canonical(new_policy(APP, WANTED).form()), KEYRING_PAYLOAD_TYPE, signers("owner-1"))
    with pytest.raises(VerificationFailed, match="wrong payload type"):
        open_policy(envelope, opened_keyring(), APP)


def test_roots_floor() -> None:
    form = founding_keyring().form()
    form["apps"][APP]["policy"] = 2
    keyring = opened_keyring(Keyring.model_validate(form))
    first = new_policy(APP, WANTED)
    with pytest.raises(VerificationFailed, match="no longer counts"):
        open_policy(seal_policy(first, signers("owner-1")), keyring, APP)
    second = Policy(app=APP, version=2, previous=OTHER, environments=first.environments)
    assert open_policy(seal_policy(second, signers("owner-1")), keyring, APP).version == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"version": 2}, "predecessor"),
        ({"previous": OTHER}, "predecessor"),
        ({"environments": {"prod": Gate(soak=Soak(environment="prod"))}}, "soak"),
        ({"environments": {"prod": Gate(soak=Soak(environment="gone"))}}, "soak"),
        ({"environments": {"prod": Gate(evaluations=WANTED * 2)}}, "suite twice"),
        (
            {"environments": {"prod": Gate(freezes=[Freeze(start=NOW, end=NOW, reason="party")])}},
            "ends before it starts",
        ),
    ],
)
def test_a_policy_keeps_its_own_rules(fields: dict[str, Any], says: str) -> None:
    document = Policy(**{"app": APP, "version": 1, "environments": {"dev": Gate()}, **fields})
    with pytest.raises(VerificationFailed, match=says):
        check_policy(document)
    signed = seal(canonical(document.form()), POLICY_PAYLOAD_TYPE, signers("owner-1"))
    with pytest.raises(VerificationFailed, match=says):
        open_policy(signed, opened_keyring(), APP)


def test_the_next_policy_follows() -> None:
    keyring = opened_keyring()
    first = opened_policy(keyring)
    gates = {
        **first.document.environments,
        "dev": Gate(freezes=[Freeze(start=NOW, end=NOW + timedelta(1), reason="x")]),
    }
    for version, previous in ((2, OTHER), (3, first.digest)):
        wrong = Policy(app=APP, version=version, previous=previous, environments=gates)
        with pytest.raises(VerificationFailed, match="does not follow") as caught:
            next_policy(first, seal_policy(wrong, signers("owner-1")), keyring)
        assert first.digest in caught.value.fix
    second = Policy(app=APP, version=2, previous=first.digest, environments=gates)
    assert next_policy(first, seal_policy(second, signers("owner-2")), keyring).version == 2
