"""Spans are made only where a tracer provider was set, and they carry no text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace

from bundlectl.router import telemetry
from bundlectl.router.identity import LOCAL, Identity
from bundlectl.router.router import Router
from tests.support.answering import NOW, contract, setting
from tests.support.fake_models import Fail, Say, fake_models


class Span(trace.NonRecordingSpan):
    """Keeps its name and attributes."""

    def __init__(self, name: str, attributes: Any) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.name = name
        self.attributes = dict(attributes or {})
        self.error: BaseException | None = None
        self.status: Any = None

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.status = status


class Recorder(trace.Tracer):
    """Keeps spans in the order of their end."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name: str, *args: Any, **kwargs: Any) -> Span:
        return Span(name, kwargs.get("attributes"))

    @contextmanager
    def start_as_current_span(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Span]:  # type: ignore[override]
        span = Span(name, kwargs.get("attributes"))
        try:
            yield span
        except BaseException as error:
            span.error = error
            raise
        finally:
            self.spans.append(span)


def test_without_an_sdk_there_is_no_tracer() -> None:
    assert telemetry.configured_tracer() is None


async def test_a_span_for_the_request_and_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(telemetry, "configured_tracer", lambda: recorder)
    async with fake_models() as fake, setting(fake.base_url) as s:
        fake.then(Say("The answer [1]."))
        router = Router(lambda: s.compiled, s.receipts, lambda: NOW)
        await router.handle(contract(), LOCAL)
        whole, recorder.spans = recorder.spans, []
        [event async for event in router.stream(contract(), LOCAL)]
        streamed, recorder.spans = recorder.spans, []
        await router.handle(contract(), Identity("nobody", frozenset(), frozenset()))
        refused, recorder.spans = recorder.spans, []
        fake.default = Fail(500)
        await router.handle(contract("chat", policy_profile="restricted"), LOCAL)
        failed = recorder.spans
    assert [span.name for span in whole] == [
        "bundlectl.identity", "bundlectl.limits", "bundlectl.access", "apply_guardrail", "bundlectl.cache", "retrieval",
        "bundlectl.packing", "bundlectl.prompt", "bundlectl.route", "bundlectl.budget", "chat gpt-4o-mini",
        "apply_guardrail", "bundlectl.output_validation", "bundlectl.request",
    ]  # fmt: skip
    chat = whole[10].attributes
    assert chat["gen_ai.operation.name"] == "chat" and chat["gen_ai.usage.input_tokens"] == 100
    assert whole[-1].attributes["bundlectl.status"] == 200
    assert [span.name for span in streamed][-2:] == ["chat gpt-4o-mini", "bundlectl.request"]
    assert refused[-1].attributes["bundlectl.refused"] == "access_denied" and refused[0].error is None
    assert failed[-1].status == trace.StatusCode.ERROR and failed[-2].error is not None
    said = str([span.attributes for span in whole + streamed])
    assert "promote" not in said and "The answer" not in said
