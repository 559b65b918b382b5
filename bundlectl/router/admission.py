"""The first stages: may this caller ask this, and may this text come in."""

from __future__ import annotations

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
    beyond = sorted(set(request.data_scope).difference(run.task.scopes))
    if beyond:
        run.access = "deny"
        raise Refusal("access_denied", f"{', '.join(beyond)} is beyond what this task may see.")
    decision = run.compiled.access.decide(
        AccessQuestion(
            task=request.task,
            tenant=request.tenant_id,
            role=request.user_role,
            scopes=frozenset(request.data_scope),
            profile=request.policy_profile,
            resource_tenant=request.tenant_id,
        )
    )
    run.access = "allow" if decision.allow else "deny"
    run.access_policies = list(decision.policies)
    if not decision.allow or decision.errors:
        run.access = "deny"
        raise Refusal("access_denied", "The policies of this release do not permit the request.")


async def guard_input(run: Run) -> None:
    """Inspect every string of the input; from here on the redacted input is the only one there is.

    What looks at text elsewhere is shown what the detectors left.
    """
    guarded = run.profile.input.apply_json(run.request.input)
    run.guards["input"] = guard_record("input", guarded.action, guarded.findings)
    if guarded.action == "block":
        raise Refusal("input_blocked", f"The input was blocked: {_named(guarded.findings)}.")
    run.input = guarded.value
    if run.profile.input_inspectors:
        run.input, seen = await inspect_json(run.profile.input_inspectors, run.input, "input")
        run.guards["input"] = joined(run.guards["input"], seen, "input")
        if seen.action == "block":
            raise Refusal("input_blocked", f"The input was blocked: {_named(seen.findings)}.")
    asked = run.input.get(run.task.question_input, "")
    run.question = asked if isinstance(asked, str) else ""


def _named(findings: dict[str, int]) -> str:
    return ", ".join(sorted(findings)) or "unchecked"
