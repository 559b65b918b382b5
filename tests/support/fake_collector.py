"""An OpenTelemetry collector on 127.0.0.1 that takes OTLP over HTTP and keeps it."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """What came: spans as (resource, name, attributes), data points as (metric, attributes, count, sum)."""

    url: str = ""
    spans: list[tuple[dict[str, Any], str, dict[str, Any]]] = field(default_factory=list)
    points: list[tuple[str, dict[str, Any], int, float]] = field(default_factory=list)
    places: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Spans as (name, trace id, span id, parent's id), in hex."""

    def take(self, path: str, data: bytes) -> None:
        """Read one export."""
        if path == "/v1/traces":
            for part in ExportTraceServiceRequest.FromString(data).resource_spans:
                resource = _values(part.resource.attributes)
                for scope in part.scope_spans:
                    self.spans += [(resource, span.name, _values(span.attributes)) for span in scope.spans]
                    self.places += [
                        (span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                        for span in scope.spans
                    ]
        elif path == "/v1/metrics":
            for held in ExportMetricsServiceRequest.FromString(data).resource_metrics:
                for scope in held.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.histogram.data_points:
                            self.points.append((metric.name, _values(point.attributes), point.count, point.sum))


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """Run it on a free port; ``url`` is the endpoint's."""
    found = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            found.take(self.path, gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
