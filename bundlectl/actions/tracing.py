"""Spans and metrics over OTLP, where the environment's standard variables ask for them and the extra is there.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Nothing is set up, and nothing of the
SDK is imported, unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or that of one signal is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from bundlectl.actions.context import Context

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_HTTP: Final = "http/protobuf"


def begin_telemetry(ctx: Context) -> Callable[[], None] | None:
    """Set up what this process exports; before any router is made, and once in a process.

    Gives what sends the rest at the end and waits for it; ``None`` when nothing was set up.
    """
    environ = ctx.environ
    signals = [signal for signal in ("TRACES", "METRICS") if _wanted(environ, signal)]
    if not signals:
        return None
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter") is None:
        ctx.reporter.warn(f"{_ENDPOINT} is set, and nothing is exported: pip install 'bundlectl[otel]'")
        return None
    protocol = environ.get(_PROTOCOL, _HTTP)
    if protocol != _HTTP:
        ctx.reporter.warn(f"{_PROTOCOL} is {protocol}, and nothing is exported: only {_HTTP} is")
        return None
    from opentelemetry.sdk.resources import Resource

    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before what is said here.
    named = "OTEL_SERVICE_NAME" in environ or "service.name" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "bundlectl"})
    ends = [_spans(resource) if signal == "TRACES" else _metrics(resource) for signal in signals]

    def end() -> None:
        for one in ends:
            one()

    return end


def _wanted(environ: Mapping[str, str], signal: str) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    return bool(environ.get(_ENDPOINT) or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))


def _spans(resource: Resource) -> Callable[[], None]:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _metrics(resource: Resource) -> Callable[[], None]:
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown
