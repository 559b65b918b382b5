"""SageMaker endpoints over a real socket: what boto3 would send and read is what we send and read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import boto3
import pytest

from bundlectl.inference.client import HttpClient
from bundlectl.inference.provider import ModelCall
from bundlectl.inference.sagemaker import SageMakerProvider, open_sagemaker
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.errors import UsageError
from tests.support.fake_bedrock import KEY, SECRET, Answer, FakeBedrock, fake_bedrock, model_of

TEXT = "Schön: `promote`\nthen “verify” [1]."


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBedrock]:
    async with fake_bedrock() as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        for name in ("AWS_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        server.default = Answer(TEXT)
        yield server


@pytest.fixture
async def http() -> AsyncIterator[Any]:
    session = HttpClient()
    yield session
    await session.close()


def opened(http: Any, **binding: Any) -> SageMakerProvider:
    return open_sagemaker("own", ModelBinding(**binding), http, {})


def call(**changes: Any) -> ModelCall:
    values: dict[str, Any] = {
        "model": "own-llm",
        "messages": [{"role": "user", "content": "How do I promote? é"}],
        "question": "How do I promote?",
        "parameters": {"temperature": 0, "max_tokens": 50},
        "total": 5.0,
    }
    return ModelCall(**{**values, **changes})


@pytest.mark.parametrize("streamed", [False, True], ids=["InvokeEndpoint", "WithResponseStream"])
async def test_the_request_is_the_one_that_boto3_sends_and_the_reply_the_one_it_reads(
    fake: FakeBedrock, http: Any, streamed: bool
) -> None:
    ours = opened(http, endpoint="prod-llm", inference_component="lora-7", target_variant="blue")
    body = {
        "temperature": 0,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "How do I promote? é"}],
        "stream": streamed,
    } | ({"stream_options": {"include_usage": True}} if streamed else {})
    asked = {
        "EndpointName": "prod-llm",
        "InferenceComponentName": "lora-7",
        "TargetVariant": "blue",
        "ContentType": "application/json",
        "Body": json.dumps(body),
    }
    client = boto3.session.Session().client("sagemaker-runtime")
    if streamed:
        deltas = [delta async for delta in ours.stream(call())]
        assert "".join(delta.text for delta in deltas) == TEXT
        reply = deltas[-1].reply

        def read() -> bytes:
            answer = client.invoke_endpoint_with_response_stream(**asked)
            return b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"])

        assert (await asyncio.to_thread(read)).endswith(b"data: [DONE]\n\n")
    else:
        reply = await ours.generate(call())
        answer = await asyncio.to_thread(client.invoke_endpoint, **asked)
        assert json.loads(answer["Body"].read())["choices"][0]["message"]["content"] == TEXT
    client.close()
    assert reply is not None and reply.text == TEXT
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (100, 7)
    mine, reference = fake.seen
    assert (mine.path, mine.body) == (reference.path, reference.body)
    amazon = [
        {name.lower(): value for name, value in seen.headers.items() if name.lower().startswith("x-amzn-sagemaker")}
        for seen in fake.seen
    ]
    assert amazon[0] == amazon[1]
    assert len(amazon[0]) == 2
    scopes = [seen.headers["Authorization"].split()[1].split("/", 2)[2] for seen in fake.seen]
    assert scopes == ["eu-west-1/sagemaker/aws4_request,"] * 2


async def test_the_bundles_own_names(fake: FakeBedrock, http: Any) -> None:
    schema = {"type": "object"}
    await opened(http).generate(call(parameters={"model": "adapter-2"}, schema=schema))
    assert model_of(fake.seen[0].path) == "own-llm"
    assert fake.seen[0].body["model"] == "adapter-2"
    assert fake.seen[0].body["response_format"]["json_schema"]["schema"] == schema


async def test_a_credential_is_not_silently_unused(fake: FakeBedrock, http: Any) -> None:
    with pytest.raises(UsageError, match="takes none"):
        opened(http, credential="env:KEY")


async def test_streams_leave_the_connection_open(fake: FakeBedrock, http: Any) -> None:
    ours = opened(http)
    for _ in range(3):
        async for _ in ours.stream(call()):
            pass
    assert fake.connections == 1
