"""registry create: show what a registry in S3 would consist of, then make it, or change it to what is asked now.

One stack for the bucket, one for each app's roles, one for each environment's: an app or an environment is added
without touching another, and each template is plain CloudFormation that can be read before it is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bundlectl.actions.context import Context
from bundlectl.model.errors import UsageError
from bundlectl.model.types import STORE_NAME, Strict
from bundlectl.resources import template
from bundlectl.storage.stacks import ChangeSet, Stacks
from bundlectl.storage.store import is_key

ENVIRONMENTS = ("dev", "staging", "prod")
APP_ROLES = ("builder", "evaluator", "approver", "indexer", "gc")
ENVIRONMENT_ROLES = ("promoter", "renewer")
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_MAX_POLICY_NAME = 128
KEEP_VERSIONS = 90
"""As long as gc keeps releases: what it deleted, and a head that someone put back, can be restored for so long."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for."""

    url: str
    name: str
    apps: tuple[str, ...]
    environments: tuple[str, ...] = ENVIRONMENTS
    object_lock: int = 0
    """Days for which no version can be deleted; 0: no Object Lock."""
    keep_versions: int = KEEP_VERSIONS
    """Days for which a version is kept after it was replaced or deleted; 0: for ever. Never less than the lock."""
    encryption: Literal["kms", "s3"] = "kms"
    signing_keys: bool = True
    readers: tuple[str, ...] = ()
    """Other accounts that may read."""


class PlannedResource(Strict):
    """What becomes of one resource of a stack."""

    action: Literal["add", "modify", "replace", "remove"]
    resource: str
    type: str


class PlannedStack(Strict):
    """One stack: without changes it already is as it is to be."""

    stack: str
    template: str
    changes: list[PlannedResource]


class CreatedRegistry(Strict):
    """What was planned, and with ``done`` made. ``signers``: the key of each role, as ``--signer`` takes it."""

    url: str
    name: str
    region: str
    settings: dict[str, str]
    costs: list[str]
    stacks: list[PlannedStack]
    signers: dict[str, str]
    done: bool
    next: list[str]


@dataclass(frozen=True)
class _Stack:
    name: str
    template: str
    parameters: dict[str, str]
    conditions: dict[str, bool]


def registry_create(
    ctx: Context, wanted: Wanted, *, region: str | None = None, plan_only: bool = False, stacks: Stacks | None = None
) -> CreatedRegistry:
    """Make a registry's bucket, keys and policies, or change them.

    Args:
        ctx: the context; its registry is not looked at.
        wanted: what is asked for.
        region: another region than the configured one.
        plan_only: say what would be made, and make nothing.
        stacks: where to; by default the account of the default credentials.

    Raises:
        UsageError: what is asked for cannot be, or would replace or remove what holds data or signs.
        BackendUnavailable: CloudFormation cannot be asked, or failed: names the resources and their reasons.
    """
    _check(wanted)
    stacks = stacks or Stacks(region=region)
    plans = [(stack, _propose(stacks, stack)) for stack in _stacks(wanted, _key(wanted, stacks))]
    result = _result(wanted, stacks, plans)
    try:
        _refuse_loss([plan for _, plan in plans])
    except UsageError:
        _discard(stacks, plans)
        raise
    if plan_only:
        _discard(stacks, plans)
        return result
    for line in plan_lines(result):
        ctx.reporter.say(line)
    with ctx.reporter.progress("stacks", len(plans)) as bar:
        for at, (stack, plan) in enumerate(plans):
            # The first stack gives the key that the others name.
            now = stack if at == 0 else _stacks(wanted, _key(wanted, stacks))[at]
            # What was proposed may have named another one.
            if now != stack and not plan.new:
                stacks.discard(plan)
                plan = _propose(stacks, now)
            stacks.carry_out(
                plan, template(now.template), now.parameters, lambda *told: ctx.reporter.say(_event(*told))
            )
            bar.advance(note=stack.name)
    return result.model_copy(update={"done": True})


def plan_lines(result: CreatedRegistry) -> list[str]:
    """Write a plan for people."""
    lines = [f"{result.url} in {result.region}, to be known as ssm:/bundlectl/{result.name}"]
    lines += [f"  {name:<12} {value}" for name, value in result.settings.items()]
    lines += [f"  costs        {cost}" for cost in result.costs]
    for stack in result.stacks:
        lines.append(f"{stack.stack}{'' if stack.changes else ': nothing to change'}")
        lines += [f"  {change.action:<8} {change.resource:<18} {change.type}" for change in stack.changes]
    return lines


def _check(wanted: Wanted) -> None:
    found = _URL.fullmatch(wanted.url)
    prefix = ((found["prefix"] or "") if found else "").rstrip("/")
    if found is None or (prefix and not is_key(prefix)):
        raise UsageError(f"{wanted.url!r} does not name a place in S3.", fix="Use s3://bucket or s3://bucket/prefix.")
    for what, names in (("registry", (wanted.name,)), ("app", wanted.apps), ("environment", wanted.environments)):
        for name in names:
            if STORE_NAME.fullmatch(name) is None:
                raise UsageError(
                    f"{name!r} cannot be the name of a{'n' if what[0] in 'ae' else ''} {what}.",
                    fix="Use lower-case letters, digits and -, at most 40, starting with a letter or digit.",
                )
        if len(set(names)) != len(names):
            raise UsageError(f"A name of a{'n' if what[0] in 'ae' else ''} {what} is given twice.")
    if wanted.object_lock < 0 or wanted.object_lock > 36500:
        raise UsageError("Object Lock lasts 1 to 36500 days.")
    if wanted.keep_versions < 0 or wanted.keep_versions > 36500:
        raise UsageError("Former versions are kept for 1 to 36500 days, or with 0 for ever.")
    for account in wanted.readers:
        if re.fullmatch(r"\d{12}", account) is None:
            raise UsageError(f"{account!r} is no account.", fix="An account's id has 12 digits.")
    for app in wanted.apps:
        for environment in wanted.environments:
            longest = f"bundlectl.{wanted.name}.{app}.{environment}.promoter"
            if len(longest) > _MAX_POLICY_NAME:
                raise UsageError(
                    f"The policy {longest} would have {len(longest)} characters.",
                    why=f"IAM takes {_MAX_POLICY_NAME}.",
                    fix="Give the registry, the app or the environment a shorter name.",
                )


def _kept_days(wanted: Wanted) -> int:
    """Give for how long a former version is kept: S3 would not delete a locked one, so nothing less is promised."""
    return max(wanted.keep_versions, wanted.object_lock) if wanted.keep_versions else 0


def _place(wanted: Wanted) -> tuple[str, str]:
    bucket, _, prefix = wanted.url.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    return bucket, f"{prefix}/" if prefix else ""


def _base_name(wanted: Wanted) -> str:
    return f"bundlectl-{wanted.name}"


def _stacks(wanted: Wanted, key: str) -> list[_Stack]:
    """Give every stack: the bucket's first, then each app's, followed by its environments'."""
    bucket, prefix = _place(wanted)
    base = {"Name": wanted.name, "BucketName": bucket, "Prefix": prefix}
    made = [
        _Stack(
            _base_name(wanted),
            "registry",
            base
            | {
                "Encryption": wanted.encryption,
                "ObjectLockDays": str(wanted.object_lock),
                "KeepVersionsDays": str(_kept_days(wanted)),
                "ReaderAccounts": ",".join(wanted.readers),
            },
            {"HasKey": wanted.encryption == "kms"},
        )
    ]
    for app in wanted.apps:
        of_app = base | {"App": app, "BucketKey": key, "SigningKeys": "yes" if wanted.signing_keys else "no"}
        keys = {"HasKeys": wanted.signing_keys}
        made.append(_Stack(f"{_base_name(wanted)}-{app}", "app", of_app, keys))
        made += [
            _Stack(f"{_base_name(wanted)}-{app}-{env}", "environment", of_app | {"Environment": env}, keys)
            for env in wanted.environments
        ]
    return made


def _propose(stacks: Stacks, stack: _Stack) -> ChangeSet:
    there = stacks.parameters(stack.name)
    # bundlectl-a-b-c may be app b-c of registry a, or app c of registry a-b.
    for name in ("Name", "App", "Environment", "BucketName", "Prefix"):
        if there is not None and there.get(name, "") != stack.parameters.get(name, ""):
            raise UsageError(
                f"The stack {stack.name} is another one's: its {name} is {there.get(name, '')!r}.",
                why=f"Here it would be {stack.parameters.get(name, '')!r}.",
                fix="Give this registry another name, or its bucket and prefix as they were.",
            )
    return stacks.propose(stack.name, template(stack.template), stack.parameters, stack.conditions)


def _refuse_loss(plans: Sequence[ChangeSet]) -> None:
    """Refuse changes after which releases would be gone or signatures could not be made."""
    lost = [
        f"{change.action} {change.resource} of {plan.stack}"
        for plan in plans
        for change in plan.changes
        if change.action in ("replace", "remove") and change.type in ("AWS::S3::Bucket", "AWS::KMS::Key")
    ]
    if lost:
        raise UsageError(
            "This would replace or remove what holds the registry or signs for it; nothing was changed.",
            why="; ".join(lost),
            fix="Ask for the settings that it was made with, or make another registry and copy to it.",
        )


def _discard(stacks: Stacks, plans: Sequence[tuple[_Stack, ChangeSet]]) -> None:
    for _, plan in plans:
        stacks.discard(plan)


def _key(wanted: Wanted, stacks: Stacks) -> str:
    return stacks.outputs(_base_name(wanted)).get("KeyArn", "") if wanted.encryption == "kms" else ""


def _event(resource: str, status: str, reason: str) -> str:
    return f"  {status.lower().replace('_', ' '):<28} {resource}{': ' + reason if reason else ''}"


def _result(wanted: Wanted, stacks: Stacks, plans: Sequence[tuple[_Stack, ChangeSet]]) -> CreatedRegistry:
    signers, days = _signers(wanted), _kept_days(wanted)
    lock = f"{wanted.object_lock} days, governance mode, for every object" if wanted.object_lock else "no"
    settings = {
        "versions": f"kept for {days} days after they were replaced or deleted" if days else "kept for ever",
        "public": "blocked",
        "transport": "TLS only",
        "writes": "what never changes is only created, what changes is only swapped",
        "encryption": "a customer-managed key" if wanted.encryption == "kms" else "keys of S3",
        "object lock": lock,
        "readers": ", ".join(wanted.readers) or "this account",
    }
    costs = []
    if wanted.encryption == "kms":
        costs.append("1 key for the bucket, billed by the month and, with a bucket key, by few requests")
    if signers:
        costs.append(f"{len(signers)} signing keys, billed by the month and by the signature; --no-keys makes none")
    costs.append(f"former versions are billed until they expire: {f'{days} days' if days else 'never'}")
    if wanted.object_lock:
        costs.append("Object Lock holds index text and receipts too: keep what must be erasable in another bucket")
    return CreatedRegistry(
        url=wanted.url,
        name=wanted.name,
        region=stacks.region,
        settings=settings,
        costs=costs,
        stacks=[
            PlannedStack(
                stack=stack.name,
                template=stack.template,
                changes=[PlannedResource(action=c.action, resource=c.resource, type=c.type) for c in plan.changes],
            )
            for stack, plan in plans
        ],
        signers=signers,
        done=False,
        next=[
            f"bundlectl keyring init --app {wanted.apps[0]} --registry {wanted.url}",
            *_first_keys(wanted, signers),
            f"bundlectl registry locate ssm:/bundlectl/{wanted.name} --registry {wanted.url}",
            f"bundlectl registry doctor --registry {wanted.url}",
        ],
    )


def _first_keys(wanted: Wanted, signers: dict[str, str]) -> list[str]:
    """Give how the first key in KMS enters the keyring: until it stands there, what it signs counts nowhere."""
    if not signers:
        return []
    where, uri = next(iter(signers.items()))
    app, role = where.split(" ")
    add = f"bundlectl keyring add ci-{role} --owner WHO --role {role} --key {uri} --apps {app} --registry {wanted.url}"
    return [f"{add}  (and so for each key above)"]


def _signers(wanted: Wanted) -> dict[str, str]:
    if not wanted.signing_keys:
        return {}
    found = {}
    for app in wanted.apps:
        for role in APP_ROLES:
            found[f"{app} {role}"] = f"awskms:alias/bundlectl/{wanted.name}/{app}/{role}"
        for environment in wanted.environments:
            for role in ENVIRONMENT_ROLES:
                path = f"{wanted.name}/{app}/{environment}"
                found[f"{app}:{environment} {role}"] = f"awskms:alias/bundlectl/{path}/{role}"
    return found
