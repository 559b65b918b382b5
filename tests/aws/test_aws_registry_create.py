"""`registry create` against ministack's CloudFormation: plan, make, change, refuse, fail."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bundlectl.actions.context import Context, Silent
from bundlectl.actions.creating import Wanted, plan_lines, registry_create
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.storage.aws import open_client
from bundlectl.storage.stacks import Stacks
from tests.support.aws import StandIn, stand_in

TEMPLATES = Path(__file__).resolve().parents[2] / "bundlectl" / "templates"


class Listener(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    started = stand_in("ministack")
    for key, value in started.environ.items():
        monkeypatch.setenv(key, value)
    return started


@pytest.fixture
def ctx() -> Context:
    return Context(
        registry_url="unused",
        clock=lambda: datetime.now(UTC),
        new_id=lambda: secrets.token_hex(12),
        reporter=Listener(),
    )


def wanted() -> Wanted:
    name = f"r{secrets.token_hex(3)}"
    return Wanted(url=f"s3://{name}-bucket/team", name=name, apps=("support",), environments=("staging", "prod"))


def stacks() -> Stacks:
    return Stacks(client=open_client("cloudformation"), pause=0.05)


def test_the_templates_are_clean() -> None:
    lint = Path(sys.executable).with_name("cfn-lint")
    ran = subprocess.run(
        [lint, "-r", "eu-central-1", "--", *sorted(TEMPLATES.glob("*.yaml"))], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_plan_make_change(aws: StandIn, ctx: Context) -> None:
    asked = wanted()
    plan = registry_create(ctx, asked, plan_only=True, stacks=stacks())
    assert not plan.done
    assert [stack.stack.removeprefix(f"bundlectl-{asked.name}") for stack in plan.stacks] == [
        "",
        "-support",
        "-support-staging",
        "-support-prod",
    ]
    assert {change.resource for change in plan.stacks[0].changes} == {"Key", "KeyAlias", "Bucket", "BucketPolicy"}
    assert stacks().parameters(f"bundlectl-{asked.name}") is None, "a plan makes nothing"
    text = "\n".join(plan_lines(plan))
    assert "TLS only" in text
    assert "9 signing keys" in text

    made = registry_create(ctx, asked, stacks=stacks())
    assert made.done
    assert isinstance(ctx.reporter, Listener)
    assert any("BucketPolicy" in line and "complete" in line for line in ctx.reporter.said)
    s3 = aws.client("s3")
    bucket = f"{asked.name}-bucket"
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    # ministack makes no lifecycle rules: that the template's is one, cfn-lint says.
    given = stacks().parameters(f"bundlectl-{asked.name}")
    assert given is not None
    assert given["KeepVersionsDays"] == "90"
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    sids = [one["Sid"] for one in json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]]
    assert sids == ["TlsOnly", "WhatNeverChangesIsOnlyCreated", "WhatChangesIsOnlySwapped"]
    kms = aws.client("kms")
    assert len(made.signers) == 9
    for uri in made.signers.values():
        key = kms.describe_key(KeyId=uri.removeprefix("awskms:"))["KeyMetadata"]
        assert (key["KeySpec"], key["KeyUsage"], key["KeyState"]) == ("ECC_NIST_P256", "SIGN_VERIFY", "Enabled")

    more = replace(asked, apps=("support", "sales"))
    changed = registry_create(ctx, more, plan_only=True, stacks=stacks())
    assert [stack.stack for stack in changed.stacks if stack.changes] == [
        f"bundlectl-{asked.name}-sales",
        f"bundlectl-{asked.name}-sales-staging",
        f"bundlectl-{asked.name}-sales-prod",
    ]
    assert registry_create(ctx, more, stacks=stacks()).done


@pytest.mark.parametrize(
    ("keep", "lock", "said"),
    [
        (90, 0, "kept for 90 days after they were replaced or deleted"),
        (30, 365, "kept for 365 days after they were replaced or deleted"),
        (0, 365, "kept for ever"),
    ],
)
def test_former_versions_are_not_promised_to_go_before_their_lock(
    aws: StandIn, ctx: Context, keep: int, lock: int, said: str
) -> None:
    asked = replace(wanted(), keep_versions=keep, object_lock=lock)
    assert registry_create(ctx, asked, plan_only=True, stacks=stacks()).settings["versions"] == said


def test_a_stack_of_another_registry_is_left_alone(aws: StandIn, ctx: Context) -> None:
    asked = replace(wanted(), apps=("b",), environments=("prod",), signing_keys=False)
    registry_create(ctx, asked, stacks=stacks())
    with pytest.raises(UsageError, match="another one's"):
        registry_create(ctx, replace(asked, name=f"{asked.name}-b", apps=("c",)), stacks=stacks())


def test_wrong_wishes_are_told_before_aws_is_asked(ctx: Context) -> None:
    asked = wanted()
    for wish in (
        replace(asked, url="http://x"),
        replace(asked, apps=("Bad",)),
        replace(asked, apps=("a", "a")),
        replace(asked, object_lock=-1),
        replace(asked, keep_versions=-1),
        replace(asked, readers=("12",)),
        replace(asked, name="n" * 40, apps=("a" * 40,), environments=("e" * 40,)),
    ):
        with pytest.raises(UsageError):
            registry_create(ctx, wish, stacks=Stacks(client=object()))


def test_a_failed_stack_names_the_resource_and_its_reason(aws: StandIn, ctx: Context) -> None:
    asked = wanted()
    told = {
        "Events": [
            {
                "EventId": "1",
                "LogicalResourceId": "Bucket",
                "ResourceType": "AWS::S3::Bucket",
                "ResourceStatus": "CREATE_FAILED",
                "ResourceStatusReason": "bucket is already owned by another account",
            },
            {
                "EventId": "2",
                "LogicalResourceId": "Key",
                "ResourceType": "AWS::KMS::Key",
                "ResourceStatus": "CREATE_FAILED",
                "ResourceStatusReason": "Resource creation cancelled",
            },
        ]
    }
    client = Failing(told["Events"])
    with pytest.raises(BackendUnavailable, match="ROLLBACK_COMPLETE") as caught:
        registry_create(ctx, asked, stacks=Stacks(client=client, pause=0))
    assert caught.value.why == "Bucket (AWS::S3::Bucket): bucket is already owned by another account"
    with pytest.raises(UsageError, match="could not be made") as again:
        registry_create(ctx, asked, stacks=Stacks(client=client, pause=0))
    assert "delete-stack" in again.value.fix


class Failing:
    """CloudFormation in which every stack fails; ministack has no such case."""

    class meta:
        region_name = "eu-central-1"

    def __init__(self, events: list[dict[str, str]]) -> None:
        self.events: list[dict[str, str]] = []
        self.coming = list(reversed(events))
        self.parameters: list[dict[str, str]] = []

    def describe_stacks(self, StackName: str) -> object:
        if not self.parameters or StackName.endswith(("-support", "-staging", "-prod")):
            return {"Stacks": [{"StackStatus": "REVIEW_IN_PROGRESS"}]}
        status = "ROLLBACK_COMPLETE" if self.events else "REVIEW_IN_PROGRESS"
        return {"Stacks": [{"StackStatus": status, "Parameters": self.parameters}]}

    def create_change_set(self, **asked: object) -> object:
        self.parameters = asked["Parameters"]  # type: ignore[assignment]
        return {"Id": "arn"}

    def describe_change_set(self, **_: object) -> object:
        change = {"Action": "Add", "LogicalResourceId": "Bucket", "ResourceType": "AWS::S3::Bucket"}
        return {"Status": "CREATE_COMPLETE", "Changes": [{"Type": "Resource", "ResourceChange": change}]}

    def execute_change_set(self, **_: object) -> object:
        self.events = self.coming
        return {}

    def describe_stack_events(self, **_: object) -> object:
        return {"StackEvents": self.events}
