"""registry doctor, for a registry in S3: the bucket's settings, Parameter Store, the clock, and permissions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from bundlectl.actions.context import Context
from bundlectl.actions.doctor import Writer
from bundlectl.actions.opening import read_pin
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.registry import layout
from bundlectl.storage.aws import (
    DEADLINE_SECONDS,
    READ_SECONDS,
    Failure,
    Patience,
    Refused,
    Unanswered,
    open_client,
    refusal,
)
from bundlectl.trust.check import Check

CLOCK_SECONDS = 60.0
IMMUTABLE = ("keyring/*", "policy/*", "blobs/*", "packs/*", "referrers/*", "sources/*", "history/*")
"""How the resources end for which the bucket's policy must demand that writes create."""
_AGAIN = "Make it so with: bundlectl registry create s3://… --name NAME --app APP"
_BOGUS = '"bundlectl-doctor"'
"""No object has this ETag."""


def examine_bucket(ctx: Context, *, role: Writer | None, app: str | None, env: str | None) -> list[Check]:
    """Examine a registry in S3.

    Raises:
        BackendUnavailable: S3 or Parameter Store cannot be reached, or there is no such bucket.
        UsageError: the role needs an app or an environment.
    """
    located = ctx.locate()
    bucket, _, prefix = located.url.removeprefix("s3://").partition("/")
    looks = _Looks(bucket, f"{prefix.rstrip('/')}/" if prefix else "")
    found = [looks.clock(ctx.clock())]
    found += [looks.versions(), looks.public(), looks.transport(), looks.writes(), looks.encryption()]
    found += looks.reading()
    if located.locator is not None:
        pin, named = located.locator.pin, read_pin(ctx)
        same = pin == named
        why = (
            "Parameter Store's pin is this machine's, or follows from it"
            if same
            else f"Parameter Store says {pin}, not {named}"
        )
        fix = f"If the newer one is right: bundlectl registry locate {ctx.registry_url} --registry {located.url}"
        # A keyring that moved on is pinned by a later version: an administrator's choice, not a defect.
        found.append(Check("pin in Parameter Store", "pass" if same else "inconclusive", why, "" if same else fix))
    if role is not None:
        found += looks.writing(role, app, env)
    return found


class _Looks:
    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._s3 = open_client("s3")
        self._patience = Patience(DEADLINE_SECONDS, READ_SECONDS)
        self._arn = f"arn:aws:s3:::{bucket}"

    def clock(self, now: datetime) -> Check:
        """Compare the clock to S3's; the first call, which tells whether there is a bucket."""
        try:
            reply = self._ask(lambda: self._s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1))
            headers = reply["ResponseMetadata"]["HTTPHeaders"]
        except Refused as error:
            if error.failure.code == "NoSuchBucket":
                raise BackendUnavailable(
                    f"There is no bucket {self._bucket}.", why=error.failure.why, fix="bundlectl registry create --help"
                ) from error
            return self._not_seen("clock", error.failure, "s3:ListBucket", self._arn, "fail")
        if "date" not in headers:
            return Check("clock", "inconclusive", "S3 did not say its time")
        there = parsedate_to_datetime(headers["date"])
        off = abs((now - there.astimezone(UTC)).total_seconds())
        if off > CLOCK_SECONDS:
            return Check(
                "clock", "fail", f"it is {off:.0f} s off S3's", "Set the clock (NTP): signatures depend on it."
            )
        return Check("clock", "pass", "it agrees with S3's")

    def versions(self) -> Check:
        """Look whether versions are kept."""
        return self._setting(
            "versions",
            "s3:GetBucketVersioning",
            lambda: self._s3.get_bucket_versioning(Bucket=self._bucket).get("Status"),
            lambda status: (status == "Enabled", f"versioning is {status or 'off'}"),
        )

    def public(self) -> Check:
        """Look whether public access is blocked."""

        def judge(found: Any) -> tuple[bool, str]:
            off = [name for name, on in (found or {"all of it": False}).items() if not on]
            return not off, f"public access is not blocked: {', '.join(off)}" if off else "public access is blocked"

        return self._setting(
            "public access",
            "s3:GetBucketPublicAccessBlock",
            lambda: self._s3.get_public_access_block(Bucket=self._bucket)["PublicAccessBlockConfiguration"],
            judge,
        )

    def transport(self) -> Check:
        """Look whether the bucket's policy refuses plain HTTP."""
        return self._policy("transport", _tls_only)

    def writes(self) -> Check:
        """Look whether the bucket's policy demands conditional writes."""
        return self._policy("conditional writes", _conditional)

    def encryption(self) -> Check:
        """Look how the bucket encrypts, and whether its key can be used."""
        found: list[Any] = []

        def judge(rule: Any) -> tuple[bool, str]:
            found.append(rule)
            return rule is not None, f"by {rule['SSEAlgorithm']}" if rule else "nothing is encrypted by default"

        check = self._setting(
            "encryption",
            "s3:GetEncryptionConfiguration",
            lambda: self._s3.get_bucket_encryption(Bucket=self._bucket)["ServerSideEncryptionConfiguration"]["Rules"][
                0
            ]["ApplyServerSideEncryptionByDefault"],
            judge,
        )
        key = found[0].get("KMSMasterKeyID") if found and found[0] else None
        return self._key_state(key) if key else check

    def reading(self) -> list[Check]:
        """Try whether these credentials may list and read, and are told what is missing."""
        key = self._prefix + layout.keyring_key(1)
        # The last version that a number can name: no registry has it.
        none = self._prefix + layout.keyring_key(10**16 - 1)
        found = []
        for name, at in (("read", key), ("tell what is missing", none)):
            try:
                self._ask(lambda at=at: self._s3.head_object(Bucket=self._bucket, Key=at))  # type: ignore[misc]
            except Refused as error:
                if error.failure.status == 404:
                    found.append(Check(name, "pass", "allowed"))
                    continue
                action = "s3:GetObject" if name == "read" else "s3:ListBucket"
                resource = f"{self._arn}/{at}" if name == "read" else self._arn
                found.append(self._not_seen(name, error.failure, action, resource, "fail"))
            else:
                found.append(Check(name, "pass", "allowed"))
        return found

    def writing(self, role: Writer, app: str | None, env: str | None) -> list[Check]:
        """Try what a role writes, in ways that cannot succeed: 412 says that it was allowed."""
        if app is None or (role in ("promoter", "renewer") and env is None):
            raise UsageError(f"Which {role}?", fix="Name it: --app APP, and --env ENV for a promoter or renewer.")
        if role in ("promoter", "renewer"):
            return [self._try_write(layout.head_key(app, env or ""), {"IfMatch": _BOGUS})]
        if role == "indexer":
            return [self._try_write(layout.index_pointer_key(app, "doctor"), {"IfMatch": _BOGUS})]
        under = {
            "builder": layout.packs_prefix(app),
            "evaluator": layout.app_prefix(app) + "blobs/",
            "approver": layout.app_prefix(app) + "referrers/",
            "copier": layout.app_prefix(app) + "referrers/",
        }
        if role not in under:
            return [Check(f"write as {role}", "inconclusive", "deleting is not tried")]
        page = self._ask(lambda: self._s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + under[role]))
        kind = {"approver": "/approval/", "copier": "/release/"}.get(role, "")
        keys = [one["Key"].removeprefix(self._prefix) for one in page.get("Contents", []) if kind in one["Key"]]
        if not keys:
            one = kind.strip("/") or "object"
            why = f"no {one} is stored under {under[role]} that it could be tried on"
            return [Check(f"write as {role}", "inconclusive", why, "Examine it again after the first one.")]
        return [self._try_write(keys[0], {"IfNoneMatch": "*"})]

    def _try_write(self, key: str, condition: dict[str, str]) -> Check:
        name = f"write {key}"
        at = self._prefix + key
        try:
            self._ask(lambda: self._s3.put_object(Bucket=self._bucket, Key=at, Body=b"", **condition))
        except Refused as error:
            if error.failure.status in (404, 412):
                return Check(name, "pass", "allowed; nothing was written")
            return self._not_seen(name, error.failure, "s3:PutObject", f"{self._arn}/{at}", "fail")
        return Check(name, "fail", "S3 ignored the condition of a write", "This is no S3 that keeps a registry.")

    def _policy(self, name: str, judge: Callable[[Any], tuple[bool, str]]) -> Check:
        return self._setting(
            name,
            "s3:GetBucketPolicy",
            lambda: json.loads(self._s3.get_bucket_policy(Bucket=self._bucket)["Policy"])["Statement"],
            lambda statements: judge(statements or []),
        )

    def _key_state(self, key: str) -> Check:
        kms = open_client("kms")
        try:
            told = self._ask(lambda: kms.describe_key(KeyId=key))["KeyMetadata"]
        except Refused as error:
            return self._not_seen("encryption", error.failure, "kms:DescribeKey", key, "inconclusive")
        good = told["KeyState"] == "Enabled" and told["KeyUsage"] == "ENCRYPT_DECRYPT"
        why = f"by {key}, which is {told['KeyState']} for {told['KeyUsage']}"
        return Check(
            "encryption", "pass" if good else "fail", why, "" if good else "Enable it, or cancel its deletion."
        )

    def _setting(
        self, name: str, action: str, look: Callable[[], Any], judge: Callable[[Any], tuple[bool, str]]
    ) -> Check:
        try:
            found = self._ask(look)
        except Refused as error:
            if error.failure.status != 404 and "NotFound" not in error.failure.code:
                return self._not_seen(name, error.failure, action, self._arn, "inconclusive")
            found = None  # it was never set
        good, why = judge(found)
        return Check(name, "pass" if good else "fail", why, "" if good else _AGAIN)

    def _not_seen(self, name: str, failure: Failure, action: str, resource: str, verdict: Any) -> Check:
        said, fix = refusal(failure, action, resource)
        return Check(name, verdict, said, fix)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return self._patience.ask(call, self._patience.until(), write=False)
        except Refused:
            raise
        except Unanswered as error:
            raise BackendUnavailable(
                f"AWS did not answer within {self._patience.deadline:g} s.",
                why=error.failure.why,
                fix="Check the network, AWS_ENDPOINT_URL_S3 and the service's health, then repeat.",
            ) from error


def _denies(statements: Any, operator: str, key: str, value: str) -> list[Mapping[str, Any]]:
    return [
        one
        for one in statements
        if one["Effect"] == "Deny"
        and one.get("Principal") in ("*", {"AWS": "*"})
        and one.get("Condition", {}).get(operator, {}).get(key) in (value, [value])
    ]


def _tls_only(statements: Any) -> tuple[bool, str]:
    found = _denies(statements, "Bool", "aws:SecureTransport", "false")
    good = any("s3:*" in one["Action"] for one in found)
    return good, "plain HTTP is refused" if good else "plain HTTP is not refused by the bucket's policy"


def _conditional(statements: Any) -> tuple[bool, str]:
    found = _denies(statements, "Null", "s3:if-none-match", "true")
    resources = [
        end for one in found for end in ([one["Resource"]] if isinstance(one["Resource"], str) else one["Resource"])
    ]
    missing = [end for end in IMMUTABLE if not any(one.endswith(f"/{end}") for one in resources)]
    if missing:
        return False, f"the bucket's policy does not demand If-None-Match on {', '.join(missing)}"
    return True, "what never changes can only be created"
