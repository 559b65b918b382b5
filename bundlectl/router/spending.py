"""The stages that hold a request against limits: as it comes in, and before a model is called; and what it used."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from bundlectl.model.contract import Usage
from bundlectl.router.limits import Exceeded, Granted, soft_reason
from bundlectl.router.run import Refusal, Run
from bundlectl.stages.prompt import estimate_tokens


def check_limits(run: Run) -> Awaitable[None] | None:
    """Count the request against its tenant's and its task's limits; gives something to wait for only with Redis."""
    limits, request = run.compiled.limits, run.request
    if not limits.at_entry:
        return None
    needs = limits.entering(request.tenant_id, request.task)
    if not needs:
        return None
    taken = run.shared.counts.take(needs, run.time, refuse=limits.refuse)
    if isinstance(taken, Granted | Exceeded):
        _granted(run, taken)
        return None
    return _entered(run, taken)


def reserve(run: Run) -> Awaitable[None] | None:
    """Reserve what calling the chosen route may use at most; beyond a soft limit, go on with the cheaper route."""
    limits, request, invocation = run.compiled.limits, run.request, run.invocation
    if not limits.when_calling:
        return None
    if invocation is None:
        raise RuntimeError(f"request {run.id}: no route was chosen yet")
    chain, tokens = invocation.chain, run.prompt_tokens or 0
    needs = limits.calling(request.tenant_id, request.task, chain, tokens)
    if not needs:
        return None
    instead = []
    if limits.soft_route in chain[1:]:
        instead = limits.calling(request.tenant_id, request.task, chain[chain.index(limits.soft_route) :], tokens)
    taken = run.shared.counts.take(needs, run.time, instead=instead, refuse=limits.refuse)
    if isinstance(taken, Granted | Exceeded):
        _reserved(run, taken)
        return None
    return _called(run, taken)


def settle(run: Run, usage: Usage, usd: float | None) -> None:
    """Put what a request used in place of what it reserved; a price that is not known adds nothing."""
    if run.granted is None:
        return
    tokens, dollars = usage.input_tokens + usage.output_tokens, usd or 0.0
    if run.invocation is not None:
        for route, text in run.invocation.untold:
            more, dearer = run.compiled.limits.untold(route, run.prompt_tokens or 0, estimate_tokens(text))
            tokens, dollars = tokens + more, dollars + dearer
    run.shared.counts.settle(run.granted, tokens, dollars, run.time)


async def _entered(run: Run, taking: Coroutine[Any, Any, Granted | Exceeded]) -> None:
    _granted(run, await taking)


async def _called(run: Run, taking: Coroutine[Any, Any, Granted | Exceeded]) -> None:
    _reserved(run, await taking)


def _granted(run: Run, taken: Granted | Exceeded) -> Granted:
    if isinstance(taken, Exceeded):
        run.retry_after = taken.retry_after
        raise Refusal("limited", taken.reason())
    return taken


def _reserved(run: Run, taken: Granted | Exceeded) -> None:
    granted = run.granted = _granted(run, taken)
    if not granted.soft:
        return
    run.soft_limits = [soft_reason([need]) for need in granted.soft]
    run.shared.alarms.passed(granted)
    if granted.instead and run.invocation is not None and run.compiled.limits.soft_route is not None:
        run.invocation.spare(run.compiled.limits.soft_route, f"beyond the {soft_reason(granted.soft)}")
