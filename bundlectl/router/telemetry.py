"""Spans and metrics, where the process has set up OpenTelemetry's SDK; without it none are made: they cost something.

One span per request, one per stage. Model calls and searches carry the GenAI conventions' names
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); ``bundlectl.*`` is for what those lack. No texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

from bundlectl import __version__

if TYPE_CHECKING:
    from bundlectl.router.record import Outcome
    from bundlectl.router.run import Run


def configured_tracer() -> trace.Tracer | None:
    """Give a tracer when a tracer provider was set for this process; ``None`` when the API would do nothing."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer("bundlectl", __version__)


class Instruments:
    """The GenAI conventions' metrics of model calls: how long one took, and its tokens."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Duration of a call of a model.",
            explicit_bucket_boundaries_advisory=[0.01 * 2**n for n in range(14)],
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens sent to a model and received from it.",
            explicit_bucket_boundaries_advisory=[4.0**n for n in range(14)],
        )

    def record(self, run: Run, outcome: Outcome) -> None:
        """Record a request's calls; what was not called, as it was switched off or rested, is none."""
        for attempt in outcome.receipt.attempts:
            if attempt.outcome in ("disabled", "open_circuit"):
                continue
            of = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": attempt.provider,
                "gen_ai.request.model": run.compiled.routes[attempt.route].model.model or attempt.model,
                "bundlectl.app": run.compiled.ref.app,
                "bundlectl.environment": run.compiled.ref.environment,
            }
            if attempt.provider_model is not None:
                of["gen_ai.response.model"] = attempt.provider_model
            failed: dict[str, str] = {} if attempt.outcome == "ok" else {"error.type": attempt.outcome}
            self._duration.record(attempt.seconds, of | failed)
            for kind, count in (("input", attempt.usage.input_tokens), ("output", attempt.usage.output_tokens)):
                if count:
                    self._tokens.record(count, of | {"gen_ai.token.type": kind})


def configured_instruments() -> Instruments | None:
    """Give the metrics when a meter provider was set for this process; ``None`` when the API would do nothing."""
    provider = metrics.get_meter_provider()
    if type(provider).__module__.startswith("opentelemetry.metrics"):  # the API's own
        return None
    return Instruments(provider.get_meter("bundlectl", __version__))


@contextmanager
def request_span(tracer: trace.Tracer, run: Run) -> Iterator[trace.Span]:
    """Open the span of one request."""
    ref = run.compiled.ref
    with tracer.start_as_current_span(
        "bundlectl.request",
        kind=trace.SpanKind.SERVER,
        attributes={
            "bundlectl.receipt": run.id,
            "bundlectl.task": run.request.task,
            "bundlectl.app": ref.app,
            "bundlectl.environment": ref.environment,
            "bundlectl.serial": ref.serial,
            "bundlectl.bundle": ref.bundle,
        },
    ) as span:
        yield span


@contextmanager
def stage_span(tracer: trace.Tracer, name: str, run: Run) -> Iterator[None]:
    """Open the span of one stage and say at its end what the stage found."""
    with tracer.start_as_current_span(_NAMES.get(name, f"bundlectl.{name}"), kind=trace.SpanKind.INTERNAL) as span:
        yield
        if name == "invoke" and run.invocation is not None:
            route = run.invocation.route
            span.set_attribute("gen_ai.operation.name", "chat")
            span.set_attribute("gen_ai.provider.name", route.model.provider)
            span.set_attribute("gen_ai.request.model", route.model.model or route.model_name)
            span.set_attribute("bundlectl.route", route.name)
            if run.reply is not None:
                span.set_attribute("gen_ai.usage.input_tokens", run.reply.usage.input_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", run.reply.usage.output_tokens)
        elif name == "retrieval" and run.retrieval is not None:
            span.set_attribute("gen_ai.operation.name", "retrieval")
            span.set_attribute("gen_ai.data_source.id", run.retrieval.snapshot)
            span.set_attribute("bundlectl.candidates", run.retrieval.candidates)


def end_request(span: trace.Span, outcome: Outcome) -> None:
    """Say on the request's span what became of it."""
    span.set_attribute("bundlectl.status", outcome.status)
    if outcome.receipt.route is not None:
        span.set_attribute("bundlectl.route", outcome.receipt.route)
    if outcome.receipt.refused is not None:
        span.set_attribute("bundlectl.refused", outcome.receipt.refused.code)
    if outcome.receipt.degraded is not None:
        span.set_attribute("bundlectl.degraded", True)
    if outcome.error is not None:
        span.set_status(trace.StatusCode.ERROR, outcome.error.code)


_NAMES = {
    "invoke": "chat",
    "retrieval": "retrieval",
    "input_guard": "apply_guardrail",
    "output_guard": "apply_guardrail",
}
