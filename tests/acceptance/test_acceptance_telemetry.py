"""`bundlectl serve` exports spans and metrics where the standard variables ask for it, and else nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bundlectl.actions.context import Silent
from bundlectl.actions.tracing import begin_telemetry
from tests.acceptance.serving import serving
from tests.acceptance.test_acceptance_outage import with_a_model
from tests.support.fake_collector import collector
from tests.support.fake_models import Say, fake_models_in_a_thread
from tests.support.workspace import Workspace

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_spans_and_metrics_of_an_answer_reach_the_collector(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path)
    with fake_models_in_a_thread() as fake, collector() as found:
        fake.default = Say('{"answer": "Within 30 days [1].", "citations": [1]}')
        with_a_model(work, fake)
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": found.url, "OTEL_RESOURCE_ATTRIBUTES": "team=shop"}
        with serving(work, "dev", env=settings) as (server, client):
            answer = client.ask({"traceparent": f"00-{TRACE}-{CALLER}-01", "baggage": "secret=1"}).json
            assert server.stop() == 0, server.said
    names = [name for _, name, _ in found.spans]
    assert {"bundlectl.request", "bundlectl.access", "retrieval", "chat big", "apply_guardrail"} <= set(names)
    assert {trace for _, trace, _, _ in found.places} == {TRACE}, "one trace, and the caller's"
    ids = {name: (span, parent) for name, _, span, parent in found.places}
    assert ids["bundlectl.request"][1] == CALLER
    assert ids["POST"][1] == ids["chat big"][0] and ids["chat big"][1] == ids["bundlectl.request"][0]
    sent = {name.lower(): value for name, value in fake.headers[-1].items()}
    assert sent["traceparent"] == f"00-{TRACE}-{ids['POST'][0]}-01" and "baggage" not in sent
    assert found.spans[0][0]["service.name"] == "bundlectl" and found.spans[0][0]["team"] == "shop"
    spans = {name: attributes for _, name, attributes in found.spans}
    assert spans["bundlectl.request"]["bundlectl.receipt"] == answer["receipt"]
    assert spans["chat big"]["gen_ai.operation.name"] == "chat"
    assert (spans["chat big"]["gen_ai.provider.name"], spans["chat big"]["gen_ai.request.model"]) == ("openai", "big")
    assert spans["chat big"]["gen_ai.usage.input_tokens"] == 100
    [(_, of, count, seconds)] = [one for one in found.points if one[0] == "gen_ai.client.operation.duration"]
    assert (of["gen_ai.request.model"], of["gen_ai.response.model"]) == ("big", "fake-model-0125")
    assert count == 1 and 0 < seconds < 30 and "error.type" not in of
    tokens = {of["gen_ai.token.type"]: total for name, of, _, total in found.points if name.endswith("token.usage")}
    assert tokens["input"] == 100 and tokens["output"] > 0
    assert "30 days" not in repr(found.spans) + repr(found.points), "no texts"


NOTHING: list[Mapping[str, str]] = [
    {},
    {"OTEL_SERVICE_NAME": "shop"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
    {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    },
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
]


@pytest.mark.parametrize("environ", NOTHING)
def test_nothing_is_set_up_unless_it_is_asked_for(environ: Mapping[str, str]) -> None:
    told: list[str] = []

    class Told(Silent):
        def warn(self, text: str) -> None:
            told.append(text)

    context = replace(Workspace(Path()).context(), environ=dict(environ), reporter=Told())
    assert begin_telemetry(context) is None
    assert len(told) == ("grpc" in environ.values())
