"""A trace goes through the router: in by the caller's headers, out with every call of a model. With the real SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bundlectl.inference.client import HttpClient
from bundlectl.model.components import Embedding
from bundlectl.retrieval.index import open_index
from bundlectl.router import telemetry
from bundlectl.router.identity import LOCAL
from bundlectl.router.propagation import Traced, http_spans, propagator
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.retrieval.builders import HashEmbedder, asker, built, document, use
from tests.router.test_router_server import ask, body, serving
from tests.support.answering import NOW, contract, setting
from tests.support.fake_models import Cut, Fail, Say, fake_models

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"


class Sdk:
    """A tracer provider of one test, and what it exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        self.headers = propagator({})

    def take(self) -> dict[str, list[ReadableSpan]]:
        """Give what was exported since, by name."""
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        self._exporter.clear()
        return found


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    made = Sdk()
    monkeypatch.setattr(telemetry, "configured_tracer", lambda: made.tracer)
    return made


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return trace.format_trace_id(span.context.trace_id)


def id_of(span: Any) -> str:
    return trace.format_span_id((span.context if isinstance(span, ReadableSpan) else span).span_id)


async def test_callers_traces_and_calls_of_models(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    http = HttpClient(observe=http_spans(sdk.tracer, sdk.headers))
    monkeypatch.setattr("tests.support.answering.HttpClient", lambda: http)
    async with fake_models() as fake, setting(fake.base_url) as s:
        router = Router(lambda: s.compiled, s.receipts, lambda: NOW)
        app: Any = Traced(Server([Served("support", "prod", lambda: s.compiled, router)]), sdk.headers)
        async with serving(app=app) as client:
            await ask(client, body(), traceparent=PARENT)
            found = sdk.take()
            (request,), (chat,), (call,) = found["bundlectl.request"], found["chat gpt-4o-mini"], found["POST"]
            assert {trace_of(span) for spans in found.values() for span in spans} == {TRACE}
            assert request.parent is not None and id_of(request.parent) == CALLER and request.parent.is_remote
            assert call.parent == chat.context and call.kind == chat.kind == trace.SpanKind.CLIENT
            assert fake.headers[-1]["traceparent"] == f"00-{TRACE}-{id_of(call)}-01"
            assert call.attributes is not None and call.attributes["http.response.status_code"] == 200
            assert call.attributes["server.address"] == "127.0.0.1" and call.attributes["server.port"]

            fake.then(Fail(503), Say("Use promote [1]."))
            async with client.post("/v1/requests", json=body(), headers={"accept": "text/event-stream"}) as response:
                assert "event: done" in await response.text()
            found = sdk.take()
            first, second = found["POST"]
            assert [span.attributes["http.response.status_code"] for span in (first, second)] == [503, 200]  # type: ignore[index]
            assert not first.status.is_ok and first.attributes["error.type"] == "503"  # type: ignore[index]
            (chat,) = found["chat gpt-4o-mini"]
            assert first.parent == second.parent == chat.context, "one operation, with all its retries"
            assert trace_of(chat) != TRACE and chat.attributes["gen_ai.usage.input_tokens"] == 100  # type: ignore[index]

            for wrong in ("00-0-0-01", PARENT.replace(TRACE, "0" * 32), "x" * 5000):
                await ask(client, body(), traceparent=wrong)
                assert trace_of(sdk.take()["bundlectl.request"][0]) != TRACE
            await ask(client, body(), traceparent=PARENT[:-1] + "0", tracestate="shop=1")
            assert sdk.take() == {}, "who does not record decides for the whole trace"
            assert fake.headers[-1]["traceparent"].startswith(f"00-{TRACE}-")
            assert fake.headers[-1]["traceparent"].endswith("-00") and fake.headers[-1]["tracestate"] == "shop=1"


async def test_a_call_that_fails_names_what_failed(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    http = HttpClient(observe=http_spans(sdk.tracer, sdk.headers))
    monkeypatch.setattr("tests.support.answering.HttpClient", lambda: http)
    async with fake_models() as fake, setting(fake.base_url) as s:
        router = Router(lambda: s.compiled, s.receipts, lambda: NOW)
        fake.default = Cut()
        await router.handle(contract("chat", policy_profile="restricted"), LOCAL)
        (chat,) = sdk.take()["chat own-8b"]
        assert not chat.status.is_ok and chat.attributes is not None
        assert chat.attributes["gen_ai.provider.name"] == "openai" and chat.attributes["error.type"] == "broken_stream"
        fake.default = Fail(500)
        await router.handle(contract(), LOCAL)
        found = sdk.take()
        (last,) = found["chat plain"]
        assert last.attributes is not None and last.attributes["bundlectl.route"] == "last", "a fallback answered"
        assert "error.type" not in last.attributes
        (await http.get(fake.base_url, "keys")).release()
        assert sdk.take() == {}, "what belongs to no request is no span"


async def test_the_question_is_embedded_in_a_span_of_its_own(sdk: Sdk, tmp_path: Path) -> None:
    settings = Embedding(provider="wordllama", model="l2_supercat", dimensions=256)
    traced = telemetry.TracedEmbedder(HashEmbedder(), settings, sdk.tracer)
    index = open_index(tmp_path, built(tmp_path, [document("a.md", "# A\n\nHow to promote.\n")]), traced)
    with sdk.tracer.start_as_current_span("retrieval") as retrieval:
        found = await index.search("How?", asker(), use("hybrid"))
        await index.search("How?", asker(), use("lexical"))
    assert found.hits
    (span,) = sdk.take()["embeddings l2_supercat"]
    assert span.parent == retrieval.get_span_context() and span.kind == trace.SpanKind.INTERNAL
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "wordllama",
        "gen_ai.request.model": "l2_supercat",
        "gen_ai.embeddings.dimension.count": 256,
    }


def test_which_headers_travel() -> None:
    assert propagator({}).fields == {"traceparent", "tracestate"}
    assert propagator({"OTEL_PROPAGATORS": "tracecontext,baggage"}) is propagate.get_global_textmap()
