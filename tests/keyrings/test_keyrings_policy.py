"""policy set, diff, export: from a strict YAML file to version N+1, signed here or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions import policy as policies
from bundlectl.actions import succession
from bundlectl.actions.applying import apply
from bundlectl.actions.keyring import policy_show
from bundlectl.actions.opening import open_current_policy, open_trust
from bundlectl.actions.policy import diff_policy, export_policy, set_policy
from bundlectl.actions.signing import open_request, sign_request
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import BundlectlError, Conflict, SourceError, UsageError, VerificationFailed
from bundlectl.model.keyring import Freeze, Gate
from bundlectl.trust.policy import seal_policy
from tests.support.ceremony import Ceremony
from tests.support.world import START, signer

SOURCE = """\
apiVersion: bundlectl/v1
kind: Policy
environments:
  dev: {}
  staging:
    evaluations: [{suite: support}]
  prod:
    provenance: 1
    evaluations: [{suite: support, max_age: 7d, floors: {contains: 0.8}}]
    attestations: [{type: "urn:example:red-team:v1", role: approver}]
    approvals: 1
    soak: {environment: staging, at_least: 1d}
    freezes: [{start: 2026-12-24T00:00:00Z, end: 2026-12-27T00:00:00Z, reason: holidays}]
    expires_after: 14d
"""
CHANGES = [
    'prod.attestations[0].role: absent -> "approver"',
    "prod.attestations[0].threshold: absent -> 1",
    'prod.attestations[0].type: absent -> "urn:example:red-team:v1"',
    "prod.evaluations[0].floors: {} -> absent",
    "prod.evaluations[0].floors.contains: absent -> 0.8",
    'prod.evaluations[0].max_age: absent -> "7d"',
    "prod.freezes: [] -> absent",
    'prod.freezes[0].end: absent -> "2026-12-27T00:00:00Z"',
    'prod.freezes[0].reason: absent -> "holidays"',
    'prod.freezes[0].start: absent -> "2026-12-24T00:00:00Z"',
    'prod.soak.at_least: absent -> "1d"',
    'prod.soak.environment: absent -> "staging"',
]


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    made = Ceremony(tmp_path)
    (tmp_path / "policy.yaml").write_text(SOURCE)
    return made


def test_set_diff_and_export(ceremony: Ceremony) -> None:
    ctx, file = ceremony.context(), ceremony.folder / "policy.yaml"
    diff = diff_policy(ctx, file, app="support")
    assert (diff.present, diff.changes) == (1, CHANGES)
    made = set_policy(ctx, file, app="support")
    assert (made.version, made.changes) == (2, CHANGES)
    present = open_current_policy(ctx, open_trust(ctx), "support")
    assert (present.version, present.digest) == (2, made.digest)
    with pytest.raises(UsageError, match="says already"):
        set_policy(ctx, file, app="support")
    again = ceremony.folder / "again.yaml"
    export_policy(ctx, "support", again)
    assert diff_policy(ctx, again, app="support").changes == []


def test_every_gate_survives_the_way_to_yaml_and_back(tmp_path: Path) -> None:
    gate = Gate(freezes=[Freeze(start=START, end=ceremony_end(), reason="no: yes, 012, ~, 'x'")], forbid_lint=["on"])
    ceremony = Ceremony(tmp_path, gates={"no": Gate(), "prod": gate})
    export_policy(ceremony.context(), "support", tmp_path / "policy.yaml")
    assert diff_policy(ceremony.context(), tmp_path / "policy.yaml", app="support").changes == []


def ceremony_end() -> Any:
    return START.replace(year=2027)


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ("provenance: 1", "provenence: 1", SourceError, "policy.yaml:8"),
        ("soak: {environment: staging", "soak: {environment: nowhere", VerificationFailed, "nowhere"),
        ("urn:example:red-team:v1", "https://slsa.dev/provenance/v1", VerificationFailed, "asked for otherwise"),
        ("role: approver", "role: promoter", SourceError, "policy.yaml:10"),
        ("kind: Policy", "kind: Keyring", SourceError, "policy.yaml:2"),
        ("approvals: 1", "approvals: yes", SourceError, "policy.yaml:11"),
    ],
)
def test_what_is_no_policy(ceremony: Ceremony, old: str, new: str, error: Any, says: str) -> None:
    file = ceremony.folder / "policy.yaml"
    assert old in SOURCE
    file.write_text(SOURCE.replace(old, new))
    with pytest.raises(error, match=says):
        set_policy(ceremony.context(), file, app="support")
    assert policy_show(ceremony.context(), "support").version == 1


def test_only_owners_set_it(ceremony: Ceremony) -> None:
    for name in ("root", "promoter", "stranger"):
        with pytest.raises(VerificationFailed, match="enough of the app's owners"):
            set_policy(ceremony.context(signer=name), ceremony.folder / "policy.yaml", app="support")


def test_owners_sign_elsewhere(ceremony: Ceremony, tmp_path: Path) -> None:
    ctx, request = ceremony.context(), tmp_path / "change.json"
    succession.set_app(ctx, "support", add=[ceremony.member("otto")], threshold=2)
    made = set_policy(ctx, tmp_path / "policy.yaml", app="support", request=request)
    assert [(who.threshold, who.principals) for who in made.signers] == [(2, ["otto", "owner"])]
    assert policy_show_version(ceremony) == 1
    sigs = [Path(sign_request(ceremony.offline(tmp_path / n, signer=n), request).file) for n in ("owner", "otto")]
    with pytest.raises(VerificationFailed, match="enough of the app's owners"):
        apply(ctx, request, sigs[:1])
    assert apply(ctx, request, sigs).changes == made.changes
    assert apply(ctx, request, sigs).version == 2
    assert policy_show(ctx, "support").version == 2
    with pytest.raises(UsageError, match="have to sign"):
        sign_request(ctx, request, signers=[ceremony.key("root")])


def policy_show_version(ceremony: Ceremony) -> int:
    return len(ceremony.world.registry.latest_policy("support", 0))


def test_a_made_up_present_policy_hides_nothing(ceremony: Ceremony, tmp_path: Path) -> None:
    """The attacker's request names a present policy that already is as weak as the next one: no diff to see."""
    ctx, request = ceremony.context(), tmp_path / "change.json"
    set_policy(ctx, tmp_path / "policy.yaml", app="support", request=request)
    opened = open_request(ctx, request)
    assert opened.request.policy is not None
    weak = {"dev": Gate(), "staging": Gate(), "prod": Gate()}
    forged = seal_policy(ceremony.world.policy_document.model_copy(update={"environments": weak}), [signer("mallory")])
    request.write_bytes(canonical(opened.request.model_copy(update={"policy": forged}).form()))
    with pytest.raises(VerificationFailed) as refused:
        sign_request(ctx, request)
    assert "does not follow" in refused.value.what


def test_the_loser_of_a_race_is_told(ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ctx, request = ceremony.context(), tmp_path / "change.json"
    set_policy(ctx, tmp_path / "policy.yaml", app="support", request=request)
    sig = Path(sign_request(ctx, request, signers=[ceremony.key("owner")]).file)
    ceremony.world.next_policy()
    with pytest.raises(Conflict, match="does not follow policy 2"):
        apply(ctx, request, [sig])
    seal = policies.seal_policy

    def slow(*given: Any) -> Any:
        ceremony.world.next_policy()
        return seal(*given)

    monkeypatch.setattr(policies, "seal_policy", slow)
    with pytest.raises(Conflict, match="policy 3 of support first"):
        set_policy(ctx, tmp_path / "policy.yaml", app="support")


def test_a_policy_of_a_lost_owner_is_succeeded(ceremony: Ceremony, tmp_path: Path) -> None:
    """Key compromise of an owner: what the thief stored last counts nowhere, and does not stop the others."""
    ctx = ceremony.context()
    succession.set_app(ctx, "support", add=[ceremony.member("otto")])
    succession.compromise(ctx, "owner", reason="stolen")
    ceremony.world.next_policy({"dev": Gate(), "prod": Gate()})
    with pytest.raises(VerificationFailed):
        policy_show(ctx, "support")
    made = set_policy(ceremony.context(signer="otto"), tmp_path / "policy.yaml", app="support")
    assert made.version == 3
    assert made.changes[0].startswith("the present policy does not verify")
    assert policy_show(ctx, "support").version == 3


def test_the_first_policy_of_a_new_app(ceremony: Ceremony, tmp_path: Path) -> None:
    ctx = ceremony.context()
    with pytest.raises(BundlectlError, match="does not name the app"):
        set_policy(ctx, tmp_path / "policy.yaml", app="billing")
    succession.set_app(ctx, "billing", add=[ceremony.member("olga")])
    made = set_policy(ceremony.context(signer="olga"), tmp_path / "policy.yaml", app="billing")
    assert made.version == 1
    assert made.changes[:3] == ["new environment dev", "new environment prod", "new environment staging"]
    assert policy_show(ctx, "billing").app == "billing"
