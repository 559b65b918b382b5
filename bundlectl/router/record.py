"""The last stage: the answer and its receipt. No text of the user, the documents or the model enters a receipt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import Final

from bundlectl import __version__
from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Answer, Cost, Degraded, Usage
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.router.answering import answer_digest
from bundlectl.router.routing import CompiledRoute
from bundlectl.router.run import Run

STATUS: Final = {
    "answered": 200,
    "no_answer": 200,
    "output_blocked": 200,
    "unauthenticated": 401,
    "access_denied": 403,
    "contract": 422,
    "input_blocked": 422,
    "limited": 429,
    "unavailable": 503,
}
"""HTTP status by outcome: a refusal's code, or ``answered``, ``contract`` (no answer was tried), ``unavailable``
(nothing could answer, and trying again later may help)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. ``answer`` is ``None`` when there is an ``error``: nothing could answer it.

    ``passages``: what was packed into the prompt; its text is in neither answer nor receipt.
    """

    answer: Answer | None
    receipt: Receipt
    status: int
    error: BundlectlError | None = None
    passages: tuple[Passage, ...] = ()
    retry_after: float | None = None
    """For status 429: the seconds after which the request would pass; ``None``: it never will."""


def conclude(run: Run) -> Outcome:
    """Make the answer and the receipt."""
    invocation = run.invocation
    attempts = invocation.attempts if invocation else []
    usage = attempts[0].usage if len(attempts) == 1 else _together([attempt.usage for attempt in attempts])
    cost = run.cost = run.compiled.prices.cost(invocation.spent if invocation is not None else ())
    replied = invocation is not None and run.reply is not None and run.error is None
    route, degraded = run.route, None
    if invocation is not None and replied:
        route = invocation.route
        if (why := invocation.degraded) is not None:
            degraded = Degraded(reason=why)
    answered = run.refused is None and run.error is None
    receipt = _receipt(run, route, usage, cost, degraded, replied=replied, answered=answered)
    if run.error is not None:
        key = "contract" if run.error.code == "contract" else "unavailable"
        return Outcome(None, receipt, STATUS[key], run.error, run.passages)
    answer = Answer.unchecked(
        {
            "output": run.output if answered else None,
            "format": "structured_json" if run.task.format == "structured_json" else "text",
            "refused": run.refused,
            "degraded": degraded,
            "citations": list(run.citations) if answered else [],
            "release": run.compiled.ref,
            "route": receipt.route,
            "model": run.hit.model
            if run.hit is not None
            else route.model_name
            if route is not None and replied
            else None,
            "usage": usage,
            "cost": cost,
            "receipt": run.id,
            "cache": "hit" if run.hit is not None else None,
            "cached_from": run.hit.receipt if run.hit is not None else None,
            "cut": True if answered and run.reply is not None and run.reply.cut and run.task.format == "text" else None,
            "pinned": run.pinned,
        }
    )
    status = STATUS[run.refused.code if run.refused else "answered"]
    return Outcome(answer, receipt, status, passages=run.passages, retry_after=run.retry_after)


def _together(parts: list[Usage]) -> Usage:
    return Usage(
        input_tokens=sum(part.input_tokens for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        cache_read_tokens=sum(part.cache_read_tokens or 0 for part in parts) or None,
        cache_write_5m_tokens=sum(part.cache_write_5m_tokens or 0 for part in parts) or None,
        cache_write_1h_tokens=sum(part.cache_write_1h_tokens or 0 for part in parts) or None,
    )


def _receipt(
    run: Run,
    route: CompiledRoute | None,
    usage: Usage,
    cost: Cost,
    degraded: Degraded | None,
    *,
    replied: bool,
    answered: bool,
) -> Receipt:
    request, invocation, hit = run.request, run.invocation, run.hit
    provider = route.provider if route is not None and replied else None
    return Receipt.unchecked(
        {
            "apiVersion": "bundlectl/v1",
            "kind": "Receipt",
            "id": run.id,
            "time": (run.time if run.time.tzinfo is UTC else run.time.astimezone(UTC)).replace(microsecond=0),
            "identity": run.identity.name,
            "task": request.task,
            "tenant": request.tenant_id,
            "role": request.user_role,
            "scopes": request.data_scope,
            "latency_class": request.latency_class,
            "response_format": run.task.format,
            "profile": request.policy_profile,
            "release": run.compiled.ref,
            "components": run.compiled.components,
            "code_version": __version__,
            "input_digest": run.input_digest,
            "access": run.access,
            "access_policies": list(run.access_policies),
            "route": route.name if route is not None else hit.route if hit is not None else None,
            "route_why": run.route_why,
            "attempts": invocation.attempts if invocation else [],
            "retrieval": run.retrieval,
            "prompt_digest": run.prompt_digest,
            "prompt_tokens": run.prompt_tokens,
            "prompt_reached_model": provider.reads_prompt if provider is not None else None,
            "guards": list(run.guards.values()),
            "validation": run.validation,
            "cache": run.cache,
            "refused": run.refused,
            "degraded": degraded,
            "usage": usage,
            "cost": cost,
            "stages": run.stages,
            "answer_digest": answer_digest(run.output) if answered and run.output is not None else None,
            "error": {"error": run.error.code, "stage": run.failed_stage} if run.error else None,
            "soft_limits": run.soft_limits,
            "cached_from": hit.receipt if hit is not None else None,
            "pinned": run.pinned,
        }
    )
