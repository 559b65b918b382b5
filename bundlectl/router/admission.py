"""The first stages: may this caller ask this, and may this text come in."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from bundlectl.router.inspecting import inspect_json, joined
from bundlectl.router.run import Refusal, Run, guard_record
from bundlectl.stages.access import AccessQuestion


def check_identity(run: Run) -> None:
    """Hold the contract's tenant and role against what the identity may claim."""
    request = run.request
    if not run.identity.may_claim(request.tenant_id, request.user_role):
        raise Refusal("access_denied", "The caller may not act for this tenant in this role.")


def check_access(run: Run) -> None:
    """Hold the scopes against the task's, then ask the bundle's policies.

    The resource is the request's own tenant's; the policies' room compares both.
    """
    request = run.request
    scopes = frozenset(request.data_scope)
    beyond = scopes.difference(run.task.scopes)
    if beyond:
        run.access = "deny"
        raise Refusal("access_denied", f"{', '.join(sorted(beyond))} is beyond what this task may see.")
    decision = run.compiled.access.decide(
        AccessQuestion(
            task=request.task,
            tenant=request.tenant_id,
            role=request.user_role,
            scopes=scopes,
            profile=request.policy_profile,
            resource_tenant=request.tenant_id,
        )
    )
    allowed = decision.allow and not decision.errors
    run.access = "allow" if allowed else "deny"
    run.access_policies = decision.policies
    if not allowed:
        raise Refusal("access_denied", "The policies of this release do not permit the request.")


def guard_input(run: Run) -> Awaitable[None] | None:
    """Inspect every string of the input; from here on the redacted input is the only one there is.

    What looks at text elsewhere is shown what the detectors left, and waited for.
    """
    guarded = run.profile.input.apply_json(run.request.input)
    run.guards["input"] = guard_record("input", guarded.action, guarded.findings)
    if guarded.action == "block":
        raise Refusal("input_blocked", f"The input was blocked: {_named(guarded.findings)}.")
    if run.profile.input_inspectors:
        return _inspect(run, guarded.value)
    _take(run, guarded.value)
    return None


async def _inspect(run: Run, value: dict[str, Any]) -> None:
    value, seen = await inspect_json(run.profile.input_inspectors, value, "input")
    run.guards["input"] = joined(run.guards["input"], seen, "input")
    if seen.action == "block":
        raise Refusal("input_blocked", f"The input was blocked: {_named(seen.findings)}.")
    _take(run, value)


def _take(run: Run, value: dict[str, Any]) -> None:
    run.input = value
    asked = value.get(run.task.question_input, "")
    run.question = asked if isinstance(asked, str) else ""


def _named(findings: dict[str, int]) -> str:
    return ", ".join(sorted(findings)) or "unchecked"
