"""Requests through the router to Bedrock, on the fake that fails and on ministack's own Converse."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bundlectl.model.components import Model
from bundlectl.model.errors import UsageError
from bundlectl.router.identity import LOCAL
from tests.support.answering import contract, parts, setting
from tests.support.aws import stand_in
from tests.support.fake_bedrock import (
    KEY,
    SECRET,
    Answer,
    FakeBedrock,
    Step,
    StreamError,
    Without,
    aws_failure,
    fake_bedrock,
)
from tests.support.fake_models import Stall

NOVA = "amazon.nova-lite-v1:0"


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBedrock]:
    async with fake_bedrock() as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield server


def app(**parameters: Any) -> dict[str, Any]:
    values = parts()
    values["models"]["small"] = Model(provider="bedrock", model=NOVA, parameters={"max_tokens": 100, **parameters})
    values["models"]["own"] = Model(provider="sagemaker", model="own-endpoint")
    return values


async def test_an_answer_with_its_price_and_what_the_provider_says_it_took(fake: FakeBedrock) -> None:
    cached = {"inputTokens": 1000, "outputTokens": 100, "totalTokens": 1500, "cacheReadInputTokens": 400}
    fake.then(Answer("Run promote [1].", usage=cached))
    async with setting(fake.url, values=app(prompt_cache="5m")) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    assert outcome.status == 200 and outcome.answer.output == "Run promote [1]."
    attempt = outcome.receipt.attempts[0]
    assert (attempt.provider, attempt.outcome, attempt.provider_seconds) == ("bedrock", "ok", 0.25)
    assert attempt.provider_model is None, "Converse does not name it"
    assert outcome.receipt.usage.form() == {"input_tokens": 1400, "output_tokens": 100, "cache_read_tokens": 400}
    assert outcome.answer.cost.usd == pytest.approx((1000 * 0.06 + 400 * 0.015 + 100 * 0.24) / 1e6)


async def test_json_of_a_schema(fake: FakeBedrock) -> None:
    fake.then(Answer(tool={"answer": "Run promote.", "citations": [2]}, text="", stop="tool_use"))
    async with setting(fake.url, values=app(structured_output="tool")) as s:
        outcome = await s.router.handle(contract("ask_json", response_format="structured_json"), LOCAL)
    assert outcome.answer.output == {"answer": "Run promote.", "citations": [2]}
    assert outcome.answer.degraded is None


ROUTES: list[tuple[str, list[Step], str | None, list[str]]] = [
    ("throttled once", [aws_failure("ThrottlingException", 429), Answer()], None, ["throttled", "ok"]),
    ("not ready twice", [aws_failure("ModelNotReadyException", 429)] * 2, "second", ["unavailable"] * 2 + ["ok"]),
    ("denied", [aws_failure("AccessDeniedException", 403)], "second", ["refused", "ok"]),
    ("guardrail", [Answer("No.", stop="guardrail_intervened")], "second", ["refused", "ok"]),
    ("stalls in the stream", [Stall("stream", "Half")], "second", ["timeout", "ok"]),
    ("exception in the stream", [StreamError("modelStreamErrorException")], None, ["broken_stream", "ok"]),
    ("no end", [Without(("metadata",))], None, ["broken_stream", "ok"]),
    (
        "nothing answers",
        [aws_failure("ServiceUnavailableException", 503)] * 2 + [aws_failure("ModelError", 424)],
        "last",
        ["unavailable"] * 3 + ["ok"],
    ),
]


@pytest.mark.parametrize(("steps", "other", "outcomes"), [r[1:] for r in ROUTES], ids=[r[0] for r in ROUTES])
async def test_a_misbehaving_model(
    fake: FakeBedrock, steps: list[Step], other: str | None, outcomes: list[str]
) -> None:
    fake.then(*steps)
    async with setting(fake.url, values=app()) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    assert [attempt.outcome for attempt in outcome.receipt.attempts] == outcomes
    assert outcome.answer.route == (other or "fast")
    assert "SECRET" not in outcome.receipt.model_dump_json()


async def test_what_is_bound_reaches_the_wire(fake: FakeBedrock) -> None:
    profile = "us.amazon.nova-lite-v1:0"
    small = {"base_url": fake.url, "inference_profile": profile, "region": "us-west-2"}
    guards = {"bedrock": {"id": "abc123", "version": "3"}}
    bindings = {"models": {"small": small, "own": {"base_url": fake.url}}, "guards": guards}
    async with setting(fake.url, values=app(), bindings=bindings) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    sent = fake.seen[0]
    assert sent.path == "/model/us.amazon.nova-lite-v1%3A0/converse-stream"
    assert "/us-west-2/bedrock/" in sent.headers["Authorization"]
    assert sent.body["guardrailConfig"]["guardrailIdentifier"] == "abc123"
    assert outcome.answer.cost.usd is None, "prices of us-west-2 are not in the book"


async def test_what_does_not_fit_makes_nothing(fake: FakeBedrock) -> None:
    with pytest.raises(UsageError, match="small"):
        async with setting(fake.url, values=app(max_tokns=7)):
            pass


@pytest.mark.parametrize("first_token", ["8s", None], ids=["ConverseStream", "Converse"])
async def test_on_ministack(monkeypatch: pytest.MonkeyPatch, first_token: str | None) -> None:
    """A server that others wrote; found by AWS_ENDPOINT_URL, with nothing bound but the region."""
    aws = stand_in("ministack")
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    values = app()
    fast = values["routes"].routes["fast"].model_copy(update={"first_token": first_token, "timeout": "10s"})
    values["routes"] = values["routes"].model_copy(update={"routes": values["routes"].routes | {"fast": fast}})
    async with setting(values=values, bindings={"models": {"small": {"region": "us-east-1"}}}) as s:
        outcome = await s.router.handle(contract(), LOCAL)
        streamed = [part async for part in s.router.stream(contract(), LOCAL)]
    assert outcome.receipt.attempts[0].outcome == "ok", outcome.receipt.attempts
    assert outcome.answer.output.startswith(f"[ministack mock nova {NOVA}]")
    assert outcome.answer.usage.input_tokens > 0 and outcome.answer.cost.usd
    assert json.dumps(str(streamed)).count("ministack mock") >= 1
