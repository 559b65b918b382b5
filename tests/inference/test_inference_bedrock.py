"""Bedrock over a real socket: what boto3 would send and read is what we send and read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from botocore.config import Config

from bundlectl.inference.aws import AwsService
from bundlectl.inference.bedrock import BedrockProvider, open_bedrock
from bundlectl.inference.client import HttpClient
from bundlectl.inference.provider import ModelCall, ProviderError
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.components import Model
from bundlectl.model.errors import UsageError
from tests.support.fake_bedrock import API_KEY, KEY, SECRET, Answer, FakeBedrock, fake_bedrock, model_of

PROFILE = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-lite-v1:0"
Direct = Callable[..., BedrockProvider]
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBedrock]:
    async with fake_bedrock() as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


class Opener:
    def __init__(self) -> None:
        self.http = HttpClient()

    def __call__(
        self, parameters: dict[str, Any] | None = None, guards: Any = None, key: str | None = None, **binding: Any
    ) -> BedrockProvider:
        model = Model(provider="bedrock", model="amazon.nova-lite-v1:0", parameters=parameters or {})
        bound = ModelBinding(**({"region": "us-east-1"} | binding))
        return open_bedrock("small", model, bound, guards or {}, self.http, {}, key)


@pytest.fixture
async def direct(fake: FakeBedrock) -> AsyncIterator[Callable[..., BedrockProvider]]:
    """Providers without botocore's search for address and credentials."""
    http = HttpClient()

    def make(region: str = "us-east-1", inference_profile: str | None = None) -> BedrockProvider:
        service = AwsService(http, fake.url, signing_name="", region=region, credentials=None, api_key=API_KEY)
        return BedrockProvider(service, profile=inference_profile)

    yield make
    await http.close()


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    opener = Opener()
    yield opener
    await opener.http.close()


def call(**changes: Any) -> ModelCall:
    values: dict[str, Any] = {
        "model": "amazon.nova-lite-v1:0",
        "messages": [
            {"role": "system", "content": "Answer from the passages. é"},
            {"role": "user", "content": "How do I promote? é"},
        ],
        "question": "How do I promote?",
        "parameters": {"max_tokens": 50, "temperature": 0.0},
        "total": 5.0,
    }
    return ModelCall(**{**values, **changes})


@contextmanager
def official(region: str = "us-east-1") -> Iterator[Any]:
    client = boto3.session.Session().client(
        "bedrock-runtime", config=Config(region_name=region, retries={"total_max_attempts": 1})
    )
    yield client
    client.close()


FULL: dict[str, Any] = {
    "max_tokens": 50,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["END"],
    "additional": {"top_k": 5},
    "prompt_cache": "1h",
    "service_tier": "flex",
    "latency": "optimized",
    "structured_output": "schema",
}


@pytest.mark.parametrize("streamed", [False, True], ids=["Converse", "ConverseStream"])
async def test_the_request_is_the_one_that_boto3_sends(fake: FakeBedrock, opened: Opener, streamed: bool) -> None:
    ours = opened(guards={"bedrock": {"id": "abc123", "version": "3"}}, inference_profile=PROFILE, region=None)
    given = call(parameters=FULL, schema=SCHEMA)
    if streamed:
        assert [delta async for delta in ours.stream(given)][-1].reply
    else:
        await ours.generate(given)
    guard = {"guardrailIdentifier": "abc123", "guardrailVersion": "3"}
    asked: dict[str, Any] = {
        "modelId": PROFILE,
        "messages": [{"role": "user", "content": [{"text": "How do I promote? é"}]}],
        "system": [{"text": "Answer from the passages. é"}, {"cachePoint": {"type": "default", "ttl": "1h"}}],
        "inferenceConfig": {"maxTokens": 50, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
        "guardrailConfig": guard | ({"streamProcessingMode": "sync"} if streamed else {}),
        "additionalModelRequestFields": {"top_k": 5},
        "serviceTier": {"type": "flex"},
        "performanceConfig": {"latency": "optimized"},
        "outputConfig": {
            "textFormat": {
                "type": "json_schema",
                "structure": {"jsonSchema": {"schema": json.dumps(SCHEMA, separators=(",", ":")), "name": "answer"}},
            }
        },
    }
    with official("eu-west-1") as theirs:
        if streamed:
            await asyncio.to_thread(lambda: list(theirs.converse_stream(**asked)["stream"]))
        else:
            await asyncio.to_thread(theirs.converse, **asked)
    mine, reference = fake.seen
    assert mine.body == reference.body
    assert mine.path == reference.path
    assert mine.headers["Content-Type"] == reference.headers["Content-Type"]
    scopes = [seen.headers["Authorization"].split()[1].split("/", 2)[2] for seen in fake.seen]
    assert scopes == ["eu-west-1/bedrock/aws4_request,"] * 2
    assert model_of(mine.path) == PROFILE


async def test_boto3_reads_the_fakes_answers_as_we_do(fake: FakeBedrock, opened: Opener) -> None:
    """So that what the fake says is what the service says, as far as its official client can tell."""
    answer = Answer("Schön: `promote` [1].", usage={"inputTokens": 9, "outputTokens": 4, "totalTokens": 13})
    fake.default = answer
    said = {"modelId": "m", "messages": [{"role": "user", "content": [{"text": "?"}]}]}
    with official() as theirs:
        whole = await asyncio.to_thread(theirs.converse, **said)
        stream = await asyncio.to_thread(lambda: list(theirs.converse_stream(**said)["stream"]))
    assert whole["output"]["message"]["content"] == [{"text": answer.text}]
    deltas = [event["contentBlockDelta"]["delta"]["text"] for event in stream if "contentBlockDelta" in event]
    assert "".join(deltas) == answer.text
    ours = opened()
    reply = await ours.generate(call())
    gathered = [delta async for delta in ours.stream(call())]
    assert [delta.text for delta in gathered[:-1]] == deltas
    assert reply == gathered[-1].reply
    assert reply.text == answer.text
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (9, 4)
    assert reply.provider_seconds == 0.25


async def test_connections_are_used_again_after_streams_too(fake: FakeBedrock, opened: Opener) -> None:
    ours = opened()
    for _ in range(3):
        await ours.generate(call())
        async for _ in ours.stream(call()):
            pass
    assert fake.connections == 1


async def test_a_prompt_of_megabytes_is_sent(fake: FakeBedrock, direct: Direct) -> None:
    await direct().generate(call(messages=[{"role": "user", "content": "x" * 2**21}]))
    assert len(fake.seen[0].body["messages"][0]["content"][0]["text"]) == 2**21


async def test_turns_alternate_and_hold_no_blank_texts(fake: FakeBedrock, direct: Direct) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "system", "content": "late"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": " \n"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    await direct().generate(call(messages=messages))
    assert fake.seen[0].body["system"] == [{"text": "late"}]
    assert fake.seen[0].body["messages"] == [
        {"role": "user", "content": [{"text": "one"}, {"text": "two"}]},
        {"role": "assistant", "content": [{"text": "three"}]},
        {"role": "user", "content": [{"text": "four"}]},
    ]
    with pytest.raises(ProviderError) as caught:
        await direct().generate(call(messages=[{"role": "system", "content": "only"}]))
    assert caught.value.kind == "refused"
    assert len(fake.seen) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_schema_by_instruction_or_by_tool(fake: FakeBedrock, direct: Direct, streamed: bool) -> None:
    async def ask(how: dict[str, Any]) -> str:
        given = call(schema=SCHEMA, parameters=how)
        if not streamed:
            return (await direct().generate(given)).text
        deltas = [delta async for delta in direct().stream(given)]
        assert deltas[-1].reply is not None
        assert "".join(delta.text for delta in deltas) == deltas[-1].reply.text
        return deltas[-1].reply.text

    fake.then(
        Answer('{"answer": "x"}'), Answer("Let me see.", tool={"answer": "ü"}, stop="tool_use"), Answer("no tool")
    )
    assert await ask({"prompt_cache": "5m"}) == '{"answer": "x"}'
    system = fake.seen[0].body["system"]
    assert json.loads(system[1]["text"].split("\n", 1)[1]) == SCHEMA
    assert system[2] == {"cachePoint": {"type": "default"}}
    assert json.loads(await ask({"structured_output": "tool"})) == {"answer": "ü"}
    tools = fake.seen[1].body["toolConfig"]
    assert tools["tools"][0]["toolSpec"]["inputSchema"] == {"json": SCHEMA}
    assert tools["toolChoice"] == {"tool": {"name": "answer"}}
    with pytest.raises(ProviderError) as caught:
        await ask({"structured_output": "tool"})
    assert caught.value.kind == "invalid"


CACHED = {
    "inputTokens": 10,
    "outputTokens": 7,
    "totalTokens": 417,
    "cacheReadInputTokens": 100,
    "cacheWriteInputTokens": 300,
}
USAGES: list[tuple[dict[str, Any], str | None, tuple[int | None, ...]]] = [
    ({"inputTokens": 10, "outputTokens": 7}, None, (10, 7, None, None, None)),
    (CACHED | {"cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}, "5m", (10, 7, None, None, None)),
    (CACHED, "5m", (410, 7, 100, 300, None)),
    (CACHED, "1h", (410, 7, 100, None, 300)),
    (
        CACHED | {"cacheDetails": [{"ttl": "1h", "inputTokens": 200}, {"ttl": "5m", "inputTokens": 100}]},
        "1h",
        (410, 7, 100, 100, 200),
    ),
    ({"inputTokens": "many", "outputTokens": -1}, None, (0, 0, None, None, None)),
]


@pytest.mark.parametrize(("usage", "ttl", "expected"), USAGES)
async def test_usage_counts_all_input_and_what_of_it_was_cached(
    fake: FakeBedrock, direct: Direct, usage: dict[str, Any], ttl: str | None, expected: tuple[int | None, ...]
) -> None:
    fake.default = Answer(usage=usage)
    parameters = {"prompt_cache": ttl} if ttl else {}
    found = (await direct().generate(call(parameters=parameters))).usage
    assert tuple(found.model_dump().values()) == expected


@pytest.mark.parametrize(
    ("also", "parameters", "binding", "name"),
    [
        ({}, {}, {}, "amazon.nova-lite-v1:0"),
        ({}, {}, {"inference_profile": "us.amazon.nova-lite-v1:0"}, "us.amazon.nova-lite-v1:0"),
        ({}, {}, {"region": "eu-central-1"}, "eu-central-1/amazon.nova-lite-v1:0"),
        ({"serviceTier": {"type": "default"}}, {"service_tier": "flex"}, {}, "amazon.nova-lite-v1:0"),
        ({"serviceTier": {"type": "flex"}}, {"service_tier": "flex"}, {}, "amazon.nova-lite-v1:0@flex"),
        ({}, {"service_tier": "priority"}, {}, "amazon.nova-lite-v1:0@priority"),
        ({}, {"latency": "optimized"}, {}, "amazon.nova-lite-v1:0@optimized"),
        ({"performanceConfig": {"latency": "standard"}}, {"latency": "optimized"}, {}, "amazon.nova-lite-v1:0"),
        ({"trace": {"promptRouter": {"invokedModelId": "m2"}}}, {}, {}, "m2"),
    ],
)
async def test_the_price_is_that_of_what_was_served(
    fake: FakeBedrock,
    direct: Direct,
    also: dict[str, Any],
    parameters: dict[str, Any],
    binding: dict[str, Any],
    name: str,
) -> None:
    fake.default = Answer(also=also)
    ours = direct(**binding)
    reply = await ours.generate(call(parameters=parameters))
    assert reply.priced_as == name
    if not also:
        model = Model(provider="bedrock", model=call().model, parameters=parameters)
        assert ours.priced_as(model) == name, "so that as much can be reserved beforehand"
    assert [delta.reply async for delta in ours.stream(call(parameters=parameters))][-1] == reply


async def test_an_api_key_takes_the_place_of_the_signature(fake: FakeBedrock, opened: Opener) -> None:
    await opened(key=API_KEY).generate(call())
    assert fake.seen[0].headers["Authorization"] == f"Bearer {API_KEY}"
    with pytest.raises(ProviderError) as caught:
        await opened(key="another").generate(call())
    assert caught.value.kind == "refused" and "another" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"parameters": {"max_tokns": 5}},
        {"parameters": {"temperature": "hot"}},
        {"parameters": {"service_tier": "gold"}},
        {"guards": {"bedrock": {"id": "abc"}}},
        {"guards": {"bedrock": {"id": "abc", "version": "latest"}}},
        {"region": None},
        {"region": "not a region"},
        {"base_url": "nowhere"},
    ],
)
async def test_what_does_not_fit_is_refused_before_anything_serves(
    fake: FakeBedrock, opened: Opener, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        opened(**arguments)


async def test_parameters_that_do_not_fit_make_no_call(fake: FakeBedrock, direct: Direct) -> None:
    with pytest.raises(ProviderError) as caught:
        await direct().generate(call(parameters={"max_tokns": 5}))
    assert caught.value.kind == "refused" and "max_tokns" in caught.value.why
    assert not fake.seen


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("stop", "cut"), [("end_turn", False), ("max_tokens", True)])
async def test_a_reply_that_was_cut_off_says_so(
    fake: FakeBedrock, direct: Direct, streamed: bool, stop: str, cut: bool
) -> None:
    fake.default = Answer("At most 10", stop=stop)
    reply = await direct().generate(call(first_token=2.0 if streamed else None))
    assert (reply.text, reply.cut) == ("At most 10", cut)
