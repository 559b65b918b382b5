"""Spans and metrics, where the process has set up OpenTelemetry's SDK; without it none are made: they cost something.

One span per request, one per stage. Model calls and searches carry the GenAI conventions' names
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); ``bundlectl.*`` is for what those lack. No texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

from bundlectl import __version__

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from bundlectl.inference.embeddings import Embedder
    from bundlectl.model.components import Embedding
    from bundlectl.router.invocation import Invocation
    from bundlectl.router.record import Outcome
    from bundlectl.router.routing import CompiledRoute
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
                "gen_ai.provider.name": provider_name(attempt.provider),
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
    if name == "invoke" and run.invocation is not None:
        with _chat_span(tracer, run, run.invocation):
            yield
        return
    with tracer.start_as_current_span(_NAMES.get(name, f"bundlectl.{name}"), kind=trace.SpanKind.INTERNAL) as span:
        yield
        if name == "retrieval" and run.retrieval is not None:
            span.set_attribute("gen_ai.operation.name", "retrieval")
            span.set_attribute("gen_ai.data_source.id", run.retrieval.snapshot)
            span.set_attribute("bundlectl.candidates", run.retrieval.candidates)


@contextmanager
def _chat_span(tracer: trace.Tracer, run: Run, invocation: Invocation) -> Iterator[None]:
    """Open the span of getting a reply, with all retries; in the end it names the model that gave it or failed last."""
    first = invocation.route
    kind = trace.SpanKind.INTERNAL if first.model.provider == "extractive" else trace.SpanKind.CLIENT
    attributes = _chat_attributes(first)
    name = f"chat {attributes['gen_ai.request.model']}"
    with tracer.start_as_current_span(name, kind=kind, attributes=attributes) as span:
        try:
            yield
        finally:
            if invocation.route is not first:
                attributes = _chat_attributes(invocation.route)
                span.update_name(f"chat {attributes['gen_ai.request.model']}")
                span.set_attributes(attributes)
            last = invocation.attempts[-1] if invocation.attempts else None
            if last is not None and last.provider_model is not None:
                span.set_attribute("gen_ai.response.model", last.provider_model)
            if last is not None and last.outcome != "ok":
                span.set_attribute("error.type", last.outcome)
            if run.reply is not None:
                span.set_attribute("gen_ai.usage.input_tokens", run.reply.usage.input_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", run.reply.usage.output_tokens)


def _chat_attributes(route: CompiledRoute) -> dict[str, str]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider_name(route.model.provider),
        "gen_ai.request.model": route.model.model or route.model_name,
        "bundlectl.route": route.name,
    }


def provider_name(provider: str) -> str:
    """Give a provider's name in the conventions, where they have one."""
    return {"bedrock": "aws.bedrock"}.get(provider, provider)


class TracedEmbedder:
    """An embedder whose every call is a span."""

    def __init__(self, embedder: Embedder, settings: Embedding, tracer: trace.Tracer) -> None:
        """Take the embedder, what it was made from, and the tracer."""
        self._embedder = embedder
        self._tracer = tracer
        # What embeds in this process is no client of anybody.
        self._kind = trace.SpanKind.INTERNAL if settings.provider == "wordllama" else trace.SpanKind.CLIENT
        self._name = f"embeddings {settings.model}"
        self._attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": provider_name(settings.provider),
            "gen_ai.request.model": settings.model,
            "gen_ai.embeddings.dimension.count": settings.dimensions,
        }

    @property
    def dimensions(self) -> int:
        """Length of every vector."""
        return self._embedder.dimensions

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Give one vector per text."""
        with self._tracer.start_as_current_span(self._name, kind=self._kind, attributes=self._attributes):
            return self._embedder.embed(texts)


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
    "retrieval": "retrieval",
    "input_guard": "apply_guardrail",
    "output_guard": "apply_guardrail",
}
