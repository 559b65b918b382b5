"""Root and promoter in AWS KMS: keyrings and releases signed there, verified here without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlectl.actions import succession
from bundlectl.actions.opening import open_trust
from bundlectl.actions.promote import promote
from bundlectl.actions.signing import sign_request
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.keyring import Gate
from tests.support.aws import StandIn, stand_in
from tests.support.ceremony import Ceremony


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = stand_in("ministack")
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


def make_key(kms: StandIn, name: str) -> str:
    client = kms.client("kms")
    arn = str(client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"])
    client.create_alias(AliasName=f"alias/{name}", TargetKeyId=arn)
    return f"awskms:{arn}"


def test_keyrings_and_releases_signed_in_kms(kms: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceremony = Ceremony(tmp_path, gates={"dev": Gate()})
    ctx = ceremony.context()
    root, ci = make_key(kms, "ceremony-root"), make_key(kms, "ceremony-ci")
    succession.rotate_root(
        ctx,
        add=[f"root-kms,security,{root}"],
        remove=["root"],
        signers=[ceremony.key("root"), root],
        reason="root moves to KMS",
    )
    succession.add(ctx, "ci", owner="platform", role="promoter", key="awskms:alias/ceremony-ci", signers=[root])
    assert open_trust(ctx).roles_of("ci") == {"promoter"}
    ref = f"support@{ceremony.world.bundle('v1').digest}"
    released = promote(ceremony.context(signer_uri=ci), ref, environment="dev", reason="from CI").released
    assert released is not None
    assert released.actor == "ci"
    request = tmp_path / "change.json"
    succession.block(ctx, ceremony.world.pin, reason="x", request=request)
    assert sign_request(ctx, request, signers=["awskms:alias/ceremony-root"]).signed_by == ["root-kms"]
    # KMS is gone: nothing can be signed, and what was signed still verifies.
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    monkeypatch.setattr("bundlectl.trust.awskms.DEADLINE_SECONDS", 0.3)
    assert ceremony.world.verify("dev", keyring=open_trust(ctx)).release.actor == "ci"
    with pytest.raises(BackendUnavailable, match="AWS KMS cannot be reached"):
        promote(ceremony.context(signer_uri="awskms:alias/ceremony-ci"), ref, environment="dev", reason="again")
