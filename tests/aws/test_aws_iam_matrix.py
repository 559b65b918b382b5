"""What each role may do in a registry on AWS, and what it is refused: the table of docs/iam.md, proved cell by cell.

The policies are those that CloudFormation (ministack) makes of the shipped templates. Three judges:

- *rules*: AWS's documented evaluation, conditions and bucket policy included (tests/support/iam.py);
- *moto*: signed calls against its IAM mode. It knows no conditions, and outside S3 no resources;
- *radosgw*: signed S3 calls against Ceph. It knows conditions and bucket policies, and nothing but S3.

``UPDATE_IAM=1 pytest tests/aws/test_aws_iam_matrix.py`` writes docs/iam.md anew.
"""

from __future__ import annotations

import inspect
import json
import os
import secrets
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from bundlectl.actions.context import Context
from bundlectl.actions.copying import copy
from bundlectl.actions.creating import Wanted, registry_create
from bundlectl.actions.promote import promote
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.keyring import Gate
from bundlectl.registry import layout
from bundlectl.registry.witness import locator_name, witness_name
from bundlectl.storage.aws import open_client
from bundlectl.storage.stacks import Stacks
from bundlectl.storage.store import open_store
from tests.support import ceph
from tests.support.aws import REGION, stand_in
from tests.support.ceremony import Ceremony
from tests.support.iam import allowed
from tests.support.world import entry

DOC = Path(__file__).resolve().parents[2] / "docs" / "iam.md"
APP, OTHER, ENV = "support", "sales", "prod"
DIGEST = "sha256:" + "ab" * 32

APP_ROLES = ("reader", "builder", "evaluator", "approver", "indexer", "copier", "gc")
ENV_ROLES = ("promoter", "renewer")
ROLES = (*APP_ROLES, *ENV_ROLES)
SIGNERS = tuple(role for role in ROLES if role not in ("reader", "copier"))
NOBODY: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One action on one thing, and the roles that may do it. Every role also has the reader's policy."""

    does: str
    verb: str
    key: str
    may: tuple[str, ...]


def _referrer(kind: str) -> str:
    return layout.referrer_key(APP, DIGEST, kind, DIGEST)


READ = {
    "keyring": layout.keyring_key(1),
    "policy": layout.policy_key(APP, 1),
    "blob": layout.blob_key(APP, DIGEST),
    "pack": layout.pack_key(APP, DIGEST),
    "attestation": _referrer("provenance"),
    "head": layout.head_key(APP, ENV),
    "history": layout.history_key(APP, ENV, 1, 1),
    "index": layout.index_pointer_key(APP, "docs"),
    "mark of gc": layout.gc_key(APP),
    "keyring of a source": layout.source_keyring_key(APP, DIGEST, 1),
}
WRITE = {
    "keyring": (layout.keyring_key(2), NOBODY),
    "policy": (layout.policy_key(APP, 2), NOBODY),
    "blob": (layout.blob_key(APP, DIGEST), ("builder", "evaluator", "indexer", "copier")),
    "pack": (layout.pack_key(APP, DIGEST), ("builder", "copier")),
    "provenance": (_referrer("provenance"), ("builder", "copier")),
    "evaluation": (_referrer("evaluation"), ("evaluator", "copier")),
    "approval": (_referrer("approval"), ("approver", "copier")),
    "override": (_referrer("override"), ("approver", "copier")),
    "other attestation": (_referrer("attestation"), ("builder", "evaluator", "approver", "copier")),
    "release of a source": (_referrer("release"), ("copier",)),
    "head of prod": (layout.head_key(APP, ENV), ENV_ROLES),
    "history of prod": (layout.history_key(APP, ENV, 1, 1), ENV_ROLES),
    "head of staging": (layout.head_key(APP, "staging"), NOBODY),
    "mark of gc": (layout.gc_key(APP), ("builder", "indexer", "copier", "gc", "promoter")),
    "keyring of a source": (layout.source_keyring_key(APP, DIGEST, 1), ("copier",)),
    "index pointer": (layout.index_pointer_key(APP, "docs"), ("indexer",)),
    "index table": (layout.index_folder(APP, "docs") + "/" + "ab" * 32 + "/part.lance", ("indexer", "copier")),
}
CELLS = (
    *(Cell(f"read {what}", "get", key, ROLES) for what, key in READ.items()),
    Cell("read another app", "get", layout.pack_key(OTHER, DIGEST), NOBODY),
    Cell("list the app", "list", layout.packs_prefix(APP), ROLES),
    Cell("list another app", "list", layout.packs_prefix(OTHER), NOBODY),
    *(Cell(f"write {what}", "put", key, may) for what, (key, may) in WRITE.items()),
    Cell("write another app's blob", "put", layout.blob_key(OTHER, DIGEST), NOBODY),
    Cell("write another app's head", "put", layout.head_key(OTHER, ENV), NOBODY),
    Cell("delete blob", "delete", layout.blob_key(APP, DIGEST), ("gc",)),
    Cell("delete pack", "delete", layout.pack_key(APP, DIGEST), ("gc",)),
    Cell("delete attestation", "delete", _referrer("provenance"), ("gc",)),
    Cell("delete head", "delete", layout.head_key(APP, ENV), NOBODY),
    Cell("delete history", "delete", layout.history_key(APP, ENV, 1, 1), NOBODY),
    Cell("delete keyring", "delete", layout.keyring_key(1), NOBODY),
    Cell("delete another app's blob", "delete", layout.blob_key(OTHER, DIGEST), NOBODY),
    Cell("list versions of the app", "versions", layout.packs_prefix(APP), ("gc",)),
    Cell("find the registry", "parameter", locator_name("r"), ROLES),
    Cell("read the witness", "parameter", witness_name("r", APP, ENV), ROLES),
    Cell("write the locator", "put parameter", locator_name("r"), NOBODY),
    Cell("write the witness of prod", "put parameter", witness_name("r", APP, ENV), ENV_ROLES),
    Cell("write the witness of staging", "put parameter", witness_name("r", APP, "staging"), NOBODY),
    *(Cell(f"sign as {role}", "sign", role, (role,)) for role in SIGNERS),
    Cell("change the bucket's policy", "policy", "", NOBODY),
)
ACTIONS = {
    "get": "s3:GetObject",
    "list": "s3:ListBucket",
    "put": "s3:PutObject",
    "delete": "s3:DeleteObject",
    "versions": "s3:ListBucketVersions",
    "parameter": "ssm:GetParameters",
    "put parameter": "ssm:PutParameter",
    "sign": "kms:Sign",
    "policy": "s3:PutBucketPolicy",
}
BY_MOTO = ("get", "put", "delete", "policy")
BY_MOTO_ACTION = ("parameter", "put parameter", "sign")
BY_CEPH = ("get", "list", "put", "delete", "versions", "policy")


@dataclass(frozen=True)
class Deployed:
    """What CloudFormation made of the templates."""

    bucket: str
    prefix: str
    name: str
    policies: dict[str, list[Any]]
    """By role: the statements of the reader's policy and its own."""
    bucket_policy: list[Any]
    keys: dict[str, str]
    account: str

    def resource(self, cell: Cell) -> str:
        if cell.verb in ("list", "versions", "policy"):
            return f"arn:aws:s3:::{self.bucket}"
        if "parameter" in cell.verb:
            return f"arn:aws:ssm:{REGION}:{self.account}:parameter{self.parameter(cell)}"
        return self.keys[cell.key] if cell.verb == "sign" else f"arn:aws:s3:::{self.bucket}/{self.prefix}{cell.key}"

    def parameter(self, cell: Cell) -> str:
        return cell.key.replace("/bundlectl/r", f"/bundlectl/{self.name}")


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    aws = stand_in("ministack")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in aws.environ.items():
            patch.setenv(key, value)
        name = f"m{secrets.token_hex(3)}"
        wanted = Wanted(f"s3://{name}-bucket/team", name, (APP,), (ENV,))
        ctx = Context(registry_url="unused", clock=lambda: datetime.now(UTC), new_id=lambda: "id")
        made = registry_create(ctx, wanted, stacks=Stacks(client=open_client("cloudformation"), pause=0.05))
        iam, s3, kms = aws.client("iam"), aws.client("s3"), aws.client("kms")
        documents = {}
        for policy in iam.list_policies(Scope="Local")["Policies"]:
            if policy["PolicyName"].startswith(f"bundlectl.{name}."):
                version = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
                document = version["PolicyVersion"]["Document"]
                role = policy["PolicyName"].rsplit(".", 1)[-1]
                documents[role] = (document if isinstance(document, dict) else json.loads(document))["Statement"]
        assert sorted(documents) == sorted(ROLES)
        keys = {
            who.rsplit(" ", 1)[-1]: kms.describe_key(KeyId=uri.removeprefix("awskms:"))["KeyMetadata"]["Arn"]
            for who, uri in made.signers.items()
        }
        yield Deployed(
            f"{name}-bucket",
            "team/",
            name,
            {role: [*documents["reader"], *(documents[role] if role != "reader" else [])] for role in ROLES},
            json.loads(s3.get_bucket_policy(Bucket=f"{name}-bucket")["Policy"])["Statement"],
            keys,
            aws.client("sts").get_caller_identity()["Account"],
        )


def context_of(deployed: Deployed, cell: Cell) -> dict[str, str]:
    found = {"aws:SecureTransport": "true"}
    if cell.verb in ("list", "versions"):
        found["s3:prefix"] = deployed.prefix + cell.key
    if cell.verb == "put":
        found |= {"s3:if-none-match": "*", "s3:ObjectCreationOperation": "true"}
    return found


# ---------------------------------------------------------------- the rules


@pytest.mark.parametrize("role", ROLES)
def test_by_the_rules(deployed: Deployed, role: str) -> None:
    for cell in CELLS:
        found = allowed(
            ACTIONS[cell.verb],
            deployed.resource(cell),
            context_of(deployed, cell),
            identity=deployed.policies[role],
            resource_policy=deployed.bucket_policy if cell.verb not in BY_MOTO_ACTION else (),
        )
        assert found == (role in cell.may), f"{role}: {cell.does}"


def test_every_key_of_the_layout_is_in_the_table() -> None:
    """A key function that the table does not know has no permission either: place it here and in the templates."""
    known = {
        "keyring_key",
        "policy_key",
        "blob_key",
        "pack_key",
        "referrer_key",
        "head_key",
        "history_key",
        "index_pointer_key",
        "gc_key",
        "source_keyring_key",
    }
    found = {name for name, _ in inspect.getmembers(layout, inspect.isfunction) if name.endswith("_key")}
    assert found == known


def test_writes_without_a_condition_and_plain_http_are_refused_to_everybody(deployed: Deployed) -> None:
    everything = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
    swapped = {"head of prod", "head of staging", "index pointer", "mark of gc"}
    for what, (key, _) in WRITE.items():
        arn = f"arn:aws:s3:::{deployed.bucket}/{deployed.prefix}{key}"
        base = {"aws:SecureTransport": "true", "s3:ObjectCreationOperation": "true"}

        def may(arn: str = arn, base: Mapping[str, str] = base, **condition: str) -> bool:
            context = {**base, **{name.replace("_", ":", 1).replace("_", "-"): v for name, v in condition.items()}}
            return allowed("s3:PutObject", arn, context, identity=everything, resource_policy=deployed.bucket_policy)

        assert may(s3_if_none_match="*"), what
        assert may() == (what == "index table"), what
        assert may(s3_if_match="tag") == (what in swapped or what == "index table"), what
        assert not may(base={"aws:SecureTransport": "false"}, s3_if_none_match="*")


# ---------------------------------------------------------------- moto


@contextmanager
def moto_iam(url: str) -> Iterator[None]:
    """Have moto check every signature and policy."""

    def set_count(count: str) -> str:
        request = urllib.request.Request(
            f"{url}/moto-api/reset-auth", data=count.encode(), headers={"content-type": "text/plain"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return str(json.load(reply)["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"])

    before = set_count("0")
    try:
        yield
    finally:
        set_count(before)


def for_moto(statements: list[Any]) -> str:
    """Leave out what moto cannot judge: conditions; outside S3, resources."""
    kept = []
    for one in statements:
        if "Condition" in one:
            continue
        s3 = str(one["Action"]).find("s3:") >= 0
        kept.append(one if s3 else {**one, "Resource": "*"})
    return json.dumps({"Version": "2012-10-17", "Statement": kept})


def test_by_moto(deployed: Deployed) -> None:
    aws = stand_in("moto")
    iam, s3, ssm, kms = (aws.client(service) for service in ("iam", "s3", "ssm", "kms"))
    s3.create_bucket(Bucket=deployed.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    ssm.put_parameter(Name=f"/bundlectl/{deployed.name}", Value="x", Type="String")
    key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    users = {}
    for role in ROLES:
        user = f"{deployed.name}-{role}"
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=for_moto(deployed.policies[role]))
        made = iam.create_access_key(UserName=user)["AccessKey"]
        users[role] = (made["AccessKeyId"], made["SecretAccessKey"])

    def client(service: str, keys: tuple[str, str]) -> Any:
        return boto3.session.Session().client(
            service,  # type: ignore[call-overload]
            endpoint_url=aws.url,
            region_name=REGION,
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
        )

    seen = 0
    with moto_iam(aws.url):
        for role, keys in users.items():
            clients = {service: client(service, keys) for service in ("s3", "ssm", "kms")}
            for cell in CELLS:
                if cell.verb in BY_MOTO:
                    expected = role in cell.may
                elif cell.verb in BY_MOTO_ACTION:  # the action alone: on any resource that the role has it for
                    expected = any(role in other.may for other in CELLS if other.verb == cell.verb)
                else:
                    continue
                assert tried(clients, deployed, cell, key) == expected, f"{role}: {cell.does}"
                seen += 1
        wrong = client("s3", (users["builder"][0], "not the secret"))
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            wrong.get_object(Bucket=deployed.bucket, Key="team/keyring/1.json")
    assert seen == len(ROLES) * sum(cell.verb in (*BY_MOTO, *BY_MOTO_ACTION) for cell in CELLS)


def tried(clients: Mapping[str, Any], deployed: Deployed, cell: Cell, signing_key: str = "") -> bool:
    """Make the call; False if it is denied. Not found, or there already, is past the permission."""
    where = {"Bucket": deployed.bucket}
    at = where | {"Key": deployed.prefix + cell.key}
    try:
        if cell.verb == "get":
            clients["s3"].get_object(**at)
        elif cell.verb == "put":
            clients["s3"].put_object(**at, Body=b"x")
        elif cell.verb == "delete":
            clients["s3"].delete_object(**at)
        elif cell.verb == "list":
            clients["s3"].list_objects_v2(**where, Prefix=deployed.prefix + cell.key)
        elif cell.verb == "versions":
            clients["s3"].list_object_versions(**where, Prefix=deployed.prefix + cell.key)
        elif cell.verb == "policy":
            clients["s3"].put_bucket_policy(**where, Policy='{"Version": "2012-10-17", "Statement": []}')
        elif cell.verb == "parameter":
            clients["ssm"].get_parameters(Names=[deployed.parameter(cell)])
        elif cell.verb == "put parameter":
            clients["ssm"].put_parameter(Name=deployed.parameter(cell), Value="x", Type="String", Overwrite=True)
        else:
            clients["kms"].sign(
                KeyId=signing_key, Message=bytes(32), MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256"
            )
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("AccessDenied", "AccessDeniedException", "403"):
            return False
        assert code in ("NoSuchKey", "PreconditionFailed", "MalformedPolicy"), code
    return True


def test_a_copier_copies_and_releases_nothing(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb itself, with signed calls, as each role: what ``copy`` writes is what the copier may write."""
    aws = stand_in("moto")
    bucket = aws.bucket("copied")
    for key, value in aws.environ.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    source = Ceremony(tmp_path / "source", gates={ENV: Gate()})
    target = Ceremony(tmp_path / "target", gates={ENV: Gate()}, principals={"person": entry("person")})
    bundle = source.world.bundle("v1")
    source.world.promote(ENV, bundle)
    there = open_store(f"s3://{bucket}/team")
    for name in target.world.store.list(""):
        there.create(name, target.world.store.get(name).data)
    monkeypatch.chdir(tmp_path)
    iam = aws.client("iam")
    keys = {}
    for role in ("builder", "copier"):
        user = f"{deployed.name}-{role}-copies"
        iam.create_user(UserName=user)
        # The permission to list has a condition, which moto does not know.
        lists = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{deployed.bucket}"}
        document = for_moto([*deployed.policies[role], lists]).replace(deployed.bucket, bucket)
        iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=document)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        keys[role] = (made["AccessKeyId"], made["SecretAccessKey"])

    def context() -> Context:
        pinned = {"BUNDLECTL_PIN": target.world.pin}
        return target.context(registry_url=f"s3://{bucket}/team", environ=pinned, signer="promoter")

    def become(role: str) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[role][0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[role][1])

    reference = f"{APP}@{bundle.digest}"
    with moto_iam(aws.url):
        become("builder")
        with pytest.raises(BackendUnavailable, match="does not permit s3:PutObject"):
            copy(source.context(), context(), reference)
        become("copier")
        done = copy(source.context(), context(), reference)
        assert (done.attestations, len(done.releases)) == (3, 1)
        with pytest.raises(BackendUnavailable, match="does not permit s3:PutObject"):
            promote(context(), reference, environment=ENV, reason="in a test")


# ---------------------------------------------------------------- Ceph


def for_ceph(statements: list[Any]) -> str:
    """Leave out what is not S3's: it refuses a policy that names other services."""
    kept = [one for one in statements if "s3:" in str(one["Action"])]
    return json.dumps({"Version": "2012-10-17", "Statement": kept})


@pytest.mark.skipif(bool(ceph.missing()), reason=f"not installed: {', '.join(ceph.missing())}")
@pytest.mark.debian
def test_by_ceph(deployed: Deployed) -> None:
    gateway = ceph.gateway()
    owner = gateway.user(f"{deployed.name}-owner")
    gateway.caps(f"{deployed.name}-owner", "user-policy=*")
    s3, iam = gateway.client("s3", owner), gateway.client("iam", owner)
    s3.create_bucket(Bucket=deployed.bucket)
    s3.put_bucket_versioning(Bucket=deployed.bucket, VersioningConfiguration={"Status": "Enabled"})
    for key in (*READ.values(), layout.pack_key(OTHER, DIGEST)):
        s3.put_object(Bucket=deployed.bucket, Key=deployed.prefix + key, Body=b"x")
    with ThreadPoolExecutor(4) as pool:  # each is a process that starts slowly
        keys_of = dict(zip(ROLES, pool.map(lambda role: gateway.user(f"{deployed.name}-{role}"), ROLES), strict=True))
    for role, keys in keys_of.items():
        user = f"{deployed.name}-{role}"
        iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=for_ceph(deployed.policies[role]))
        clients = {"s3": gateway.client("s3", keys)}
        for cell in CELLS:
            if cell.verb in BY_CEPH:
                assert tried(clients, deployed, cell) == (role in cell.may), f"{role}: {cell.does}"
        # What is not there is told as such, because the role may list: a resolver asks for keyring N+1.
        with pytest.raises(ClientError, match="NoSuchKey"):
            clients["s3"].get_object(Bucket=deployed.bucket, Key=deployed.prefix + layout.keyring_key(9))


# ---------------------------------------------------------------- the page

PAGE = """# IAM

What each role may do in a registry on AWS. `bundlectl registry create` makes a managed policy for each role of an app
and of each environment; whoever has a role gets the policy `reader` and the role's own. This page is written by the
test that proves it (`tests/aws/test_aws_iam_matrix.py`), which fails where the two differ.

`x`: may. Everything else is refused. The roles are those of the app `support`, and of its environment `prod`.

{table}

## What proved it

Every role tried every cell. No stand-in is faithful, so each judges what it can:

| proof | what it is | what it judges |
| --- | --- | --- |
| rules | AWS's documented order of evaluation, in {n_rules} cells | all, with conditions and the bucket's policy |
| moto | signed calls to moto's IAM mode | objects; of `ssm` and `kms` the action, not the resource |
| moto (action) | the same | the role has the action on some resource |
| radosgw | signed S3 calls to Ceph's gateway, where it is installed | objects, lists with their condition, versions |

By the rules alone are judged: that plain HTTP is refused, that a write without `If-None-Match` is refused on what
never changes, and one without any condition on heads. No stand-in gives these conditions their keys.
Encryption with a customer-managed key is used by no stand-in.

## What the table does not show

- Names of objects: S3 tells a missing object from a forbidden one only to those who may list, and asks for that
  permission without a prefix. So a role may also list without a prefix, and see the names (apps, environments,
  digests) of the whole bucket; not what they hold. Apps whose names are secret from each other need buckets of
  their own.
- A copier signs nothing, and may attach anything that was signed elsewhere: what counts of it, the keyring says.
- A promoter and a renewer may do the same to the bucket. What they may do to a release is decided by their keys.
- Keyring and policy are written by nobody but the account's administrator, and believed only with root's and the
  owners' signatures.
"""


def page() -> str:
    lines = ["| action | " + " | ".join(ROLES) + " | proved by |", "| --- |" + " --- |" * (len(ROLES) + 1)]
    for cell in CELLS:
        proofs = ["rules"]
        proofs += ["moto"] if cell.verb in BY_MOTO else ["moto (action)"] if cell.verb in BY_MOTO_ACTION else []
        proofs += ["radosgw"] if cell.verb in BY_CEPH else []
        marks = " | ".join("x" if role in cell.may else " " for role in ROLES)
        lines.append(f"| {cell.does} | {marks} | {', '.join(proofs)} |")
    return PAGE.format(table="\n".join(lines), n_rules=len(CELLS) * len(ROLES))


def test_the_page_says_what_is_proved() -> None:
    if os.environ.get("UPDATE_IAM"):
        DOC.write_text(page(), encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == page(), "UPDATE_IAM=1 pytest tests/aws/test_aws_iam_matrix.py writes it"
