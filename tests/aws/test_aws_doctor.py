"""`registry doctor`: a registry that is well, and each way in which one is not."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bundlectl.actions.context import Context
from bundlectl.actions.creating import Wanted, registry_create
from bundlectl.actions.doctor import Examined, examine, role_of
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.registry import layout
from bundlectl.storage.aws import open_client
from bundlectl.storage.stacks import Stacks
from tests.aws.test_aws_iam_matrix import moto_iam
from tests.support.aws import StandIn, stand_in
from tests.support.workspace import Workspace


def context(url: str | Path, now: datetime | None = None, signer: str | None = None, **environ: str) -> Context:
    return Context(
        registry_url=str(url),
        clock=lambda: now or datetime.now(UTC),
        new_id=lambda: secrets.token_hex(8),
        environ=environ,
        signer_uri=signer,
    )


def wrong(found: Examined) -> dict[str, str]:
    """Give the verdict of each check that does not pass; each says a fix."""
    bad = [check for check in found.checks if check.verdict != "pass"]
    assert all(check.fix for check in bad), bad
    return {check.name: check.verdict for check in bad}


# ---------------------------------------------------------------- a folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a registry in S3 leaves on a machine is left in the test's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path)


def test_a_folder_that_is_well(work: Workspace) -> None:
    ran = work.run("registry", "doctor")
    assert ran.code == 0, ran.out + ran.err
    assert "fail" not in ran.out
    found = work.run("registry", "doctor", "-o", "json", "--signer", "file:.bundlectl/keys/builder.pem")
    assert found.json["verdict"] == "pass"
    signer = next(check for check in found.json["checks"] if check["name"] == "signer")
    assert signer["why"].endswith("active: builder")


def test_what_is_wrong_in_a_folder_is_named_with_its_fix(work: Workspace) -> None:
    home = work.folder / ".bundlectl"
    registry = home / "registry"
    (home / "keys" / "promoter.pem").chmod(0o644)
    (registry / "keyring").chmod(0o777)
    left = registry / "keyring" / ".tmp-0123"
    left.write_bytes(b"")
    os.utime(left, (1, 1))
    (registry / "keyring" / ".tmp-4567").write_bytes(b"")  # of a writer at work
    (home / "pin").write_text("sha256:" + "0" * 64)
    found = examine(context(registry))
    assert wrong(found) == {"others": "fail", "keys": "fail", "leftovers": "fail", "keyring": "fail"}
    assert "1 temporary" in next(check.why for check in found.checks if check.name == "leftovers")
    ran = work.run("registry", "doctor", code=3)
    assert "chmod 600" in ran.out
    work.run("registry", "doctor", "--role", "king", code=2)
    work.run("registry", "doctor", "--registry", "nowhere", code=2)


def test_a_key_that_is_nobodys_and_a_keyring_that_ends(work: Workspace, tmp_path: Path) -> None:
    work.run("keyring", "generate", str(tmp_path / "new.pem"))
    found = examine(context(work.folder / ".bundlectl" / "registry", signer=f"file:{tmp_path / 'new.pem'}"))
    assert wrong(found) == {"signer": "fail"}
    far = datetime.now(UTC) + timedelta(days=36500)
    expiry = wrong(examine(context(work.folder / ".bundlectl" / "registry", far)))
    document = json.loads(work.run("keyring", "show", "-o", "json").out)
    assert expiry == ({"keyring expiry": "fail"} if document.get("expires") else {})


# ---------------------------------------------------------------- a bucket


@pytest.fixture(params=["moto", "ministack"])
def aws(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with pytest.MonkeyPatch.context() as patch:
        started = stand_in(request.param)
        for key, value in started.environ.items():
            patch.setenv(key, value)
        yield started


def seeded(aws: StandIn, work: Workspace, bucket: str, prefix: str = "") -> dict[str, str]:
    """Put the workspace's keyring into a bucket; gives the environment with its pin."""
    data = (work.folder / ".bundlectl" / "registry" / "keyring" / "1.json").read_bytes()
    aws.client("s3").put_object(Bucket=bucket, Key=prefix + layout.keyring_key(1), Body=data, IfNoneMatch="*")
    return {"BUNDLECTL_PIN": (work.folder / ".bundlectl" / "pin").read_text().strip()}


def test_a_bare_bucket_lacks_each_setting(aws: StandIn, work: Workspace) -> None:
    bucket = aws.bucket()
    environ = seeded(aws, work, bucket)
    found = wrong(examine(context(f"s3://{bucket}", **environ)))
    assert found.keys() >= {"versions", "public access", "transport", "conditional writes"}
    assert set(found.values()) == {"fail"}
    late = context(f"s3://{bucket}", datetime.now(UTC) + timedelta(minutes=9), **environ)
    assert wrong(examine(late))["clock"] == "fail"
    assert "keyring" in wrong(examine(context(f"s3://{bucket}/elsewhere", **environ)))
    with pytest.raises(BackendUnavailable, match="no bucket"):
        examine(context("s3://not-there-at-all"))


def test_what_create_makes_is_well(work: Workspace) -> None:
    aws = stand_in("ministack")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in aws.environ.items():
            patch.setenv(key, value)
        name = f"d{secrets.token_hex(3)}"
        wanted = Wanted(f"s3://{name}-bucket/team", name, ("hello",), ("prod",))
        stacks = Stacks(client=open_client("cloudformation"), pause=0.05)
        made = registry_create(context("unused"), wanted, stacks=stacks)
        environ = seeded(aws, work, f"{name}-bucket", "team/")
        assert wrong(examine(context(made.url, **environ))) == {}
        s3, kms = aws.client("s3"), aws.client("kms")
        key = kms.create_key()["KeyMetadata"]["KeyId"]
        by_key = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
        rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": by_key}]}
        s3.put_bucket_encryption(Bucket=f"{name}-bucket", ServerSideEncryptionConfiguration=rules)
        assert wrong(examine(context(made.url, **environ))) == {}
        kms.disable_key(KeyId=key)
        assert wrong(examine(context(made.url, **environ))) == {"encryption": "fail"}
        signer = made.signers["hello builder"]
        assert wrong(examine(context(made.url, signer=signer, **environ)))["signer"] == "fail", "nobody's yet"


def test_missing_permissions_are_named(work: Workspace) -> None:
    aws = stand_in("moto")
    bucket = aws.bucket()
    environ = seeded(aws, work, bucket)
    s3, iam = aws.client("s3"), aws.client("iam")
    s3.put_object(Bucket=bucket, Key=layout.head_key("hello", "prod"), Body=b"head")
    s3.put_object(Bucket=bucket, Key=layout.pack_key("hello", "sha256:" + "a" * 64), Body=b"pack")
    user = f"u{secrets.token_hex(3)}"
    iam.create_user(UserName=user)
    allow = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:ListObjectsV2", "s3:GetObject", "s3:HeadObject", "s3:PutObject"],
        "Resource": [
            f"arn:aws:s3:::{bucket}",
            f"arn:aws:s3:::{bucket}/keyring/*",
            f"arn:aws:s3:::{bucket}/*/head.json",
        ],
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=document)
    made = iam.create_access_key(UserName=user)["AccessKey"]
    keys = {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
    with pytest.MonkeyPatch.context() as patch, moto_iam(aws.url):
        for key, value in (aws.environ | keys).items():
            patch.setenv(key, value)
        patch.delenv("AWS_SESSION_TOKEN")

        def judged(role: str) -> Examined:
            return examine(context(f"s3://{bucket}", **environ), role=role_of(role), app="hello", env="prod")

        promoter, builder = judged("promoter"), judged("builder")
    said = {check.name: check for check in promoter.checks}
    assert said["versions"].verdict == "inconclusive"
    assert "s3:GetBucketVersioning" in said["versions"].fix
    assert said[f"write {layout.head_key('hello', 'prod')}"].verdict == "pass"
    assert said["read"].verdict == "pass"
    denied = next(check for check in builder.checks if check.name.startswith("write "))
    assert denied.verdict == "fail"
    assert f"s3:PutObject on arn:aws:s3:::{bucket}/apps/hello/packs/" in denied.fix
    assert s3.get_object(Bucket=bucket, Key=layout.head_key("hello", "prod"))["Body"].read() == b"head"


def test_a_role_needs_its_app(work: Workspace) -> None:
    aws = stand_in("moto")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in aws.environ.items():
            patch.setenv(key, value)
        bucket = aws.bucket()
        environ = seeded(aws, work, bucket)
        with pytest.raises(UsageError, match="Which promoter"):
            examine(context(f"s3://{bucket}", **environ), role="promoter", app="hello")
