"""How a trace goes through this process: in with a caller's ``traceparent``, out with each HTTP call of a model.

Only where an SDK is set up; else neither is made. By default only W3C's trace context travels
(https://www.w3.org/TR/trace-context/): a caller's baggage is no business of whoever runs a model. What
``OTEL_PROPAGATORS`` names goes before that, ``none`` being nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bundlectl.inference.client import Observed, Observer
from bundlectl.inference.provider import ProviderError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


def propagator(environ: Mapping[str, str]) -> TextMapPropagator:
    """Give what reads and writes the headers of a trace."""
    return propagate.get_global_textmap() if environ.get("OTEL_PROPAGATORS") else TraceContextTextMapPropagator()


class Traced:
    """ASGI around a server: spans of a request become children of the caller's, where its headers name one."""

    def __init__(self, app: Asgi, headers: TextMapPropagator) -> None:
        """Take the server, and what reads headers."""
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer within the caller's trace. What is no trace is as if it were not there."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carrier: dict[str, str] = {}
        for name, value in scope["headers"]:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            carrier[key] = f"{carrier[key]},{text}" if key in carrier else text
        token = context.attach(self._headers.extract(carrier, context.get_current()))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def http_spans(tracer: trace.Tracer, headers: TextMapPropagator) -> Observer:
    """Give what makes each call of a client, within a trace, a span of HTTP's conventions, and names it in the call.

    https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client-span: one span for each attempt, from
    before its first byte until the reply's headers are there. What no span of ours asks for, such as an issuer's keys,
    is left alone.
    """

    @contextmanager
    def observe(method: str, url: str) -> Iterator[Observed]:
        asking = trace.get_current_span().get_span_context()
        if not asking.is_valid or asking.is_remote:
            yield _Call({}, None)
            return
        parts = urlsplit(url)
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            "url.full": urlunsplit(parts._replace(query="", fragment="")),
        }
        span = tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=attributes)
        sent: dict[str, str] = {}
        headers.inject(sent, trace.set_span_in_context(span))
        try:
            yield _Call(sent, span)
        except BaseException as error:
            _failed(span, error.kind if isinstance(error, ProviderError) else type(error).__name__)
            raise
        finally:
            span.end()

    return observe


@dataclass(frozen=True, slots=True)
class _Call:
    headers: Mapping[str, str]
    span: trace.Span | None

    def answered(self, status: int) -> None:
        if self.span is not None:
            self.span.set_attribute("http.response.status_code", status)
            if status >= 400:
                _failed(self.span, str(status))


def _failed(span: trace.Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(trace.StatusCode.ERROR)
